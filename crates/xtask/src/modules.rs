//! Which kernel modules a guest needs, and in which order they load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What form-init counts on, whatever the kernel has built in: disks and their file system, network, the report port,
/// entropy, memory that the host can ask back, and the power button with the device that it is read from.
const WANTED: [&str; 9] = [
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "button",
    "evdev",
];

/// The files of the modules that are wanted and not built in, each after all that it depends on.
///
/// `root` is the kernel's `/lib/modules/VERSION`.
pub(crate) fn closure(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = BTreeMap::new();
    collect(&root.join("kernel"), &mut files)?;
    let builtin = root.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin).with_context(|| format!("cannot read {}", builtin.display()))?;
    let builtin: BTreeSet<String> = builtin.lines().map(|line| name(Path::new(line))).collect();
    let dependencies = |name: &str| -> Result<Option<Vec<String>>> {
        if builtin.contains(name) {
            return Ok(None);
        }
        let Some(file) = files.get(name) else { bail!("the kernel has no module {name}, and not built in either") };
        depends(&read(file)?).with_context(|| format!("{} does not say what it depends on", file.display())).map(Some)
    };
    let order = sort(&WANTED, &dependencies)?;
    Ok(order.iter().filter_map(|name| files.get(name).cloned()).collect())
}

/// Depth first, so that a module comes after what it depends on. `dependencies` gives `None` for what needs no loading.
fn sort(wanted: &[&str], dependencies: &dyn Fn(&str) -> Result<Option<Vec<String>>>) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        dependencies: &dyn Fn(&str) -> Result<Option<Vec<String>>>,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(needed) = dependencies(name)? else { return Ok(()) };
        for dependency in &needed {
            visit(dependency, dependencies, seen, order)?;
        }
        order.push(name.to_owned());
        Ok(())
    }
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for name in wanted {
        visit(name, dependencies, &mut seen, &mut order)?;
    }
    Ok(order)
}

/// The `depends=` of a module's `.modinfo` section.
///
/// The section is strings between NULs, and no other place of a module has this text after a NUL; so the file's
/// headers need not be read.
fn depends(module: &[u8]) -> Option<Vec<String>> {
    let list = module.split(|&b| b == 0).find_map(|text| text.strip_prefix(b"depends="))?;
    let list = std::str::from_utf8(list).ok()?;
    Some(list.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

/// A module, uncompressed: form-init gives it to the kernel as it is.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("zst") => zstd::decode_all(&bytes[..]).with_context(|| format!("cannot decompress {}", file.display())),
        Some("xz") => {
            bail!("{} is compressed with xz, which is not read here: take a kernel with .ko or .ko.zst", file.display())
        }
        _ => Ok(bytes),
    }
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if [".ko", ".ko.zst", ".ko.xz"]
            .iter()
            .any(|end| path.as_os_str().as_encoded_bytes().ends_with(end.as_bytes()))
        {
            files.insert(name(&path), path);
        }
    }
    Ok(())
}

/// A module's name: in file names, and only there, "-" may stand for "_". No name has a dot.
pub(crate) fn name(file: &Path) -> String {
    let file = file.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str) -> Result<Option<Vec<String>>> {
        Ok(match name {
            "virtio_pci" => Some(vec!["virtio_ring".into(), "virtio".into()]),
            "virtio_ring" => Some(vec!["virtio".into()]),
            "virtio" => Some(vec![]),
            "ext4" => None,
            other => bail!("no {other}"),
        })
    }

    #[test]
    fn a_module_comes_once_and_after_what_it_depends_on() {
        let order = sort(&["ext4", "virtio_pci", "virtio_ring"], &kernel).unwrap();
        assert_eq!(order, ["virtio", "virtio_ring", "virtio_pci"]);
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        assert_eq!(sort(&["tun"], &kernel).unwrap_err().to_string(), "no tun");
    }

    #[test]
    fn a_module_may_be_compressed() {
        let root = tempfile::tempdir().unwrap();
        let kernel = root.path().join("kernel/drivers");
        fs::create_dir_all(&kernel).unwrap();
        let builtin: String = WANTED[1..].iter().map(|name| format!("kernel/{name}.ko\n")).collect();
        fs::write(root.path().join("modules.builtin"), builtin).unwrap();
        let (pci, ring) = (b"\0depends=virtio-ring\0", b"\0depends=\0");
        fs::write(kernel.join("virtio-pci.ko.zst"), zstd::encode_all(&pci[..], 0).unwrap()).unwrap();
        fs::write(kernel.join("virtio_ring.ko"), ring).unwrap();
        let found = closure(root.path()).unwrap();
        assert_eq!(found.iter().map(|file| name(file)).collect::<Vec<_>>(), ["virtio_ring", "virtio_pci"]);
        assert_eq!(read(&found[1]).unwrap(), pci);

        fs::rename(kernel.join("virtio_ring.ko"), kernel.join("virtio_ring.ko.xz")).unwrap();
        let said = closure(root.path()).unwrap_err().to_string();
        assert!(said.contains("virtio_ring.ko.xz is compressed with xz"), "{said}");
    }

    #[test]
    fn dependencies_are_read_from_between_nuls() {
        let module = b"\x7fELF\0depending\0license=GPL\0depends=virtio,virtio-ring\0retpoline=Y\0";
        assert_eq!(depends(module), Some(vec!["virtio".into(), "virtio_ring".into()]));
        assert_eq!(depends(b"\0depends=\0"), Some(vec![]));
        assert_eq!(depends(b"\x7fELF"), None);
    }
}
