//! The file systems of a guest, from the initramfs to the root disk.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::console::say;

const NEW_ROOT: &str = "/newroot";

/// One mount: type, where, flags, options. What moves to the root disk is mounted once, at the start.
type Mount = (&'static str, &'static str, MsFlags, Option<&'static str>);

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

const KERNEL: [Mount; 3] = [
    ("proc", "/proc", SAFE, None),
    ("sysfs", "/sys", SAFE, None),
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=0755")),
];

const REST: [Mount; 6] = [
    ("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), Some("mode=0620,gid=5,ptmxmode=0666")),
    ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), Some("mode=1777")),
    ("mqueue", "/dev/mqueue", SAFE, None),
    ("cgroup2", "/sys/fs/cgroup", SAFE, None),
    ("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), Some("mode=0755")),
    ("tmpfs", "/tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), Some("mode=1777")),
];

/// What programs expect in /dev and the kernel does not put there.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what is needed to find anything at all.
pub(crate) fn kernel() -> anyhow::Result<()> {
    KERNEL.iter().try_for_each(|one| mount_one(one).with_context(|| format!("cannot mount {}", one.1)))
}

/// Mounts the root disk and makes it `/`. The kernel's file systems move along.
pub(crate) fn switch_root(disk: &Path, read_only: bool) -> anyhow::Result<()> {
    directory(Path::new(NEW_ROOT), 0o755).context("cannot make the root disk's mount point")?;
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    mount(Some(disk), NEW_ROOT, Some("ext4"), flags, None::<&str>)
        .with_context(|| format!("cannot mount the root disk {} as ext4", disk.display()))?;
    for (_, target, ..) in KERNEL {
        let moved = format!("{NEW_ROOT}{target}");
        directory(Path::new(&moved), 0o755).with_context(|| format!("the root disk has no {target}"))?;
        mount(Some(target), moved.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .with_context(|| format!("cannot move {target} to the root disk"))?;
    }
    // The initramfs cannot be unmounted; the root disk is moved over it instead, and chroot makes that the root of
    // every process to come.
    chdir(NEW_ROOT).context("cannot enter the root disk")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("cannot move the root disk to /")?;
    chroot(".").context("cannot make the root disk the root")?;
    chdir("/").context("cannot enter /")
}

/// Lets the root file system fill its disk, which may be larger than the image was. One that cannot grow still works.
pub(crate) fn grow(disk: &Path) {
    let name = disk.file_name().unwrap_or_default();
    let sectors = fs::read_to_string(Path::new("/sys/block").join(name).join("size")).unwrap_or_default();
    let grown = || -> rustix::io::Result<bool> {
        let before = rustix::fs::statvfs("/")?;
        // sysfs counts in 512 bytes whatever the disk's own sectors are.
        let bytes = sectors.trim().parse::<u64>().unwrap_or_default().saturating_mul(512);
        let blocks = bytes.checked_div(before.f_frsize).unwrap_or_default();
        let root =
            rustix::fs::open("/", rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
        rustix::fs::ext4_ioc_resize_fs(&root, blocks)?;
        Ok(rustix::fs::statvfs("/")?.f_blocks > before.f_blocks)
    };
    match grown() {
        Ok(true) => say("the root file system has grown to the size of its disk"),
        Ok(false) => {}
        Err(error) => say(format_args!("the root file system does not fill its disk: {error}")),
    }
}

/// Mounts what a workload expects. An image that has no place for one of them goes without it.
pub(crate) fn rest() {
    for one in &REST {
        if let Err(error) = mount_one(one) {
            say(format_args!("{} is not mounted: {error}", one.1));
        }
    }
    for (target, link) in LINKS {
        if let Err(error) = symlink(target, link) {
            say(format_args!("{link}: {error}"));
        }
    }
}

/// Makes the root disk clean: from here on nothing can be written.
pub(crate) fn seal() {
    let again = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(None::<&str>, "/", None::<&str>, again, None::<&str>) {
        say(format_args!("the root disk stays writable: {error}"));
    }
}

fn mount_one((kind, target, flags, options): &Mount) -> io::Result<()> {
    directory(Path::new(target), 0o755)?;
    match mount(Some(*kind), *target, Some(*kind), *flags, *options) {
        // devtmpfs may be there already: some kernels mount it before process 1 runs.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a directory unless it is there.
pub(crate) fn directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().recursive(true).mode(mode).create(path) {
        Err(_) if path.is_dir() => Ok(()),
        other => other,
    }
}
