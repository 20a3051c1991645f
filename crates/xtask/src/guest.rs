//! What a guest boots: Debian's cloud kernel, and an initramfs with form-init and the modules that it needs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use flate2::{Compression, GzBuilder};

use crate::cpio::{Archive, Entry};
use crate::host::{cargo, output, run, say, target_directory, write_if_changed};
use crate::modules;

/// Debian's name for "the newest kernel without drivers for real machines".
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The files that a virtual machine boots from.
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// Builds `vmlinuz` and `initramfs` in `out`, and the examples' build contexts in `out/examples`.
///
/// The kernel is downloaded once and kept in `$FORMATION_CACHE`, or in `target/guest-cache`; nobody is asked for another
/// until that is deleted. The same kernel and the same sources give the same bytes.
///
/// # Errors
/// If Debian's archive cannot be reached for a kernel that is not kept yet, or a tool fails.
pub(crate) fn build(out: &Path) -> Result<Guest> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let cache =
        std::env::var_os("FORMATION_CACHE").map_or_else(|| target_directory().join("guest-cache"), PathBuf::from);
    let kernel = kernel(&cache)?;
    let programs = build_static(&["form-init", "hello"])?;

    let guest = Guest { kernel: out.join("vmlinuz"), initramfs: out.join("initramfs") };
    let image = only_entry(&kernel.join("boot"), "vmlinuz-")?;
    write_if_changed(&guest.kernel, &read(&image)?)?;
    let modules = modules::closure(&only_entry(&kernel.join("lib/modules"), "")?)?;
    write_if_changed(&guest.initramfs, &initramfs(&read(&programs.join("form-init"))?, &modules)?)?;

    let context = out.join("examples/hello");
    fs::create_dir_all(&context).with_context(|| format!("cannot make {}", context.display()))?;
    write_if_changed(&context.join("Formfile"), &read(Path::new("examples/hello/Formfile"))?)?;
    // Beside its Formfile too, so that `form run examples/hello` does what it says.
    for hello in [context.join("hello"), PathBuf::from("examples/hello/hello")] {
        write_if_changed(&hello, &read(&programs.join("hello"))?)?;
        fs::set_permissions(&hello, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", hello.display()))?;
    }
    Ok(guest)
}

/// Writes an initramfs with `init` and what it needs of the kernel's `modules`.
///
/// # Errors
/// If a file cannot be read or written, or a module is nowhere.
pub(crate) fn pack(init: &Path, modules: &Path, out: &Path) -> Result<()> {
    write_if_changed(out, &initramfs(&read(init)?, &modules::closure(modules)?)?)
}

/// Where the guest's files go if nobody says otherwise.
pub(crate) fn default_out() -> PathBuf {
    target_directory().join("guest-image")
}

/// The directory with the unpacked kernel package: the last that is kept in `cache`, or else Debian's newest.
fn kernel(cache: &Path) -> Result<PathBuf> {
    let unpacked_at = |entry: &fs::DirEntry| entry.metadata().and_then(|meta| meta.modified()).ok();
    let kept = fs::read_dir(cache).into_iter().flatten().flatten();
    let kept = kept.filter(|entry| entry.file_name().to_string_lossy().starts_with("linux-image-"));
    if let Some(newest) = kept.max_by_key(unpacked_at) {
        return Ok(newest.path());
    }
    let (package, file) = match newest_kernel() {
        Ok(found) => found,
        // A fresh machine has no package lists yet.
        Err(_) => {
            run("apt-get", &["update", "-qq"])?;
            newest_kernel()?
        }
    };
    let unpacked = cache.join(file.trim_end_matches(".deb"));
    say(format_args!("downloading {file}"));
    let work = cache.join("incoming");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let status = Command::new("apt-get")
        .args(["download", "-qq", "-o", "APT::Sandbox::User=root", &package])
        .current_dir(&work)
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get download {package} failed ({status})");
    }
    let contents = work.join("contents");
    run("dpkg-deb", &["-x".as_ref(), only_entry(&work, &package)?.as_os_str(), contents.as_os_str()])?;
    // Only a package that is unpacked to its end gets its name.
    fs::rename(&contents, &unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
    let _ = fs::remove_dir_all(&work);
    Ok(unpacked)
}

/// The name and the file name (with its version) of the package that [`META_PACKAGE`] stands for.
fn newest_kernel() -> Result<(String, String)> {
    let depends = output("apt-cache", &["depends", META_PACKAGE])?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .ok_or_else(|| anyhow!("apt-cache knows no {META_PACKAGE}"))?;
    let uris = output("apt-get", &["download", "--print-uris", package])?;
    let file = uris.split_whitespace().find(|word| word.ends_with(".deb"));
    let file = file.ok_or_else(|| anyhow!("apt-get knows no file for {package}"))?;
    Ok((package.to_owned(), file.to_owned()))
}

/// Builds `packages` as static programs; returns the directory they are in.
///
/// The flags are given for the target alone (by `--config`, not RUSTFLAGS): procedural macros run on the host, and
/// cannot be static. The gnu target can, so no other toolchain has to be installed.
fn build_static(packages: &[&str]) -> Result<PathBuf> {
    let flags = format!("target.{TARGET}.rustflags=['-Ctarget-feature=+crt-static']");
    let mut command = cargo();
    command.args(["build", "--quiet", "--profile", "guest", "--target", TARGET, "--config", &flags]);
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    let status = command.env_remove("RUSTFLAGS").status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build of {} failed ({status})", packages.join(", "));
    }
    Ok(target_directory().join(TARGET).join("guest"))
}

fn initramfs(init: &[u8], modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", "lib", "lib/modules"] {
        archive.add(directory, &Entry::Directory);
    }
    // The kernel opens it for process 1 before anything is mounted.
    archive.add("dev/console", &Entry::CharacterDevice { major: 5, minor: 1 });
    archive.add("init", &Entry::File { mode: 0o755, bytes: init });
    let mut order = String::new();
    for file in modules {
        let name = format!("{}.ko", modules::name(file));
        archive.add(&format!("lib/modules/{name}"), &Entry::File { mode: 0o644, bytes: &modules::read(file)? });
        order.push_str(&name);
        order.push('\n');
    }
    archive.add("lib/modules/order", &Entry::File { mode: 0o644, bytes: order.as_bytes() });
    // gzip, which every kernel unpacks; at this size nothing is won by another.
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(&archive.finish())?;
    Ok(gzip.finish()?)
}

/// The one entry of `directory` whose name begins with `prefix`.
fn only_entry(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    match (found.pop(), found.pop()) {
        (Some(one), None) => Ok(one),
        _ => bail!("{} should have exactly one {prefix}*", directory.display()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_kept_is_taken_and_nobody_is_asked() {
        let cache = tempfile::tempdir().unwrap();
        let kept = cache.path().join("linux-image-0.0.1-cloud-amd64_0.0.1-1_amd64");
        // One whose download was cut short is none.
        fs::create_dir_all(cache.path().join("incoming/contents")).unwrap();
        fs::create_dir(&kept).unwrap();
        assert_eq!(kernel(cache.path()).unwrap(), kept);
    }
}
