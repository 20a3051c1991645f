//! Kernel modules out of the initramfs.
//!
//! Whoever packed the initramfs wrote down the order, so that nothing about dependencies has to be known here.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::console::say;

/// The modules, and `order`: their file names, one a line, each after what it depends on.
const DIRECTORY: &str = "/lib/modules";

/// Loads every module. One that fails is only told on the console: whether it mattered shows when its device is
/// looked for, and that error says more.
pub(crate) fn load() {
    let directory = Path::new(DIRECTORY);
    let order = match std::fs::read_to_string(directory.join("order")) {
        Ok(order) => order,
        // A kernel with everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return say(format_args!("{DIRECTORY}/order: {error}")),
    };
    for name in in_order(&order) {
        if let Err(error) = insert(&directory.join(name)) {
            say(format_args!("module {}: {error}", name.display()));
        }
    }
    // The initramfs stays in memory for as long as the guest runs.
    let _ = std::fs::remove_dir_all(directory);
}

/// The file names of an `order` file. Anything but a plain name is left out.
fn in_order(order: &str) -> impl Iterator<Item = &OsStr> {
    order.lines().map(str::trim).filter(|line| !line.is_empty()).filter_map(|line| {
        let name = Path::new(line).file_name()?;
        (name == line).then_some(name)
    })
}

fn insert(path: &Path) -> io::Result<()> {
    match finit_module(File::open(path)?, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_in_the_order_written_and_only_from_their_directory() {
        let names: Vec<_> = in_order("virtio.ko\n\n virtio_ring.ko \n../evil.ko\nvirtio_pci.ko").collect();
        assert_eq!(names, ["virtio.ko", "virtio_ring.ko", "virtio_pci.ko"]);
    }
}
