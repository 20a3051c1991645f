//! What a command sees: mounts, and then a new root.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pivot_root;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::job::{Mount, Run};
use crate::outer::doing;

/// Devices that hold nothing and are nobody's.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Of /proc, what tells of the host or changes it: hidden, as runc does.
const HIDDEN: [&str; 8] = ["kcore", "keys", "timer_list", "latency_stats", "sched_debug", "scsi", "acpi", "interrupts"];
const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Makes the root of `run` this process's root. The current directory is the sandbox's.
pub(crate) fn enter(run: &Run) -> io::Result<()> {
    let none: Option<&str> = None;
    let private = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
    doing("making the mounts our own", private)?;
    let (upper, work) = (format!("{}/upper", run.work), format!("{}/work", run.work));
    let root = PathBuf::from(&run.work).join("root");
    for dir in [Path::new(&run.work), upper.as_ref(), work.as_ref(), root.as_ref()] {
        doing("making the directories of the run", make_directory(dir, 0o755))?;
    }
    let lowers = run.lowers.join(":");
    let options = format!("userxattr,lowerdir={lowers},upperdir={upper},workdir={work}");
    let overlay = mount(Some("overlay"), &root, Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()));
    doing("mounting the overlay (does the kernel have overlayfs for user namespaces, 5.11 or later?)", overlay)?;

    // Beside the root, and gone with this namespace: what the files are bound from.
    let staging = PathBuf::from(&run.work).join("files");
    make_directory(&staging, 0o700)?;
    doing("mounting a place for files", tmpfs(&staging, "mode=0700,size=64m"))?;

    devices(&root)?;
    proc(&root, &staging)?;
    for (number, item) in run.mounts.iter().enumerate() {
        doing(&format!("mounting {}", item.target()), mounted(&root, item, &staging.join(number.to_string())))?;
    }

    doing("entering the root", std::env::set_current_dir(&root))?;
    doing("changing the root", pivot_root(".", "."))?;
    doing("leaving the host's files", umount2(".", MntFlags::MNT_DETACH))?;
    doing("entering the root", std::env::set_current_dir("/"))
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn tmpfs(at: &Path, options: &str) -> io::Result<()> {
    Ok(mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))?)
}

fn bind(source: &Path, target: &Path, flags: MsFlags) -> io::Result<()> {
    let none: Option<&str> = None;
    Ok(mount(Some(source), target, none, MsFlags::MS_BIND | flags, none)?)
}

fn remount(target: &Path, flags: MsFlags) -> io::Result<()> {
    let none: Option<&str> = None;
    Ok(mount(none, target, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, none)?)
}

fn devices(root: &Path) -> io::Result<()> {
    let dev = target(root, "/dev", true)?;
    doing("mounting /dev", tmpfs(&dev, "mode=0755,size=64k"))?;
    for name in DEVICES {
        let (host, ours) = (Path::new("/dev").join(name), dev.join(name));
        File::create(&ours)?;
        doing("giving a device", bind(&host, &ours, MsFlags::empty()))?;
    }
    for (name, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(to, dev.join(name))?;
    }
    let shm = dev.join("shm");
    make_directory(&shm, 0o1777)?;
    doing("mounting /dev/shm", tmpfs(&shm, "mode=1777,size=64m"))?;
    remount(&dev, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
}

fn proc(root: &Path, staging: &Path) -> io::Result<()> {
    let at = target(root, "/proc", true)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(Some("proc"), &at, Some("proc"), flags, None::<&str>);
    doing("mounting /proc (is a part of the builder's own /proc masked, as in a container?)", mounted)?;
    let empty = staging.join("empty");
    fs::DirBuilder::new().mode(0o555).create(&empty)?;
    for name in HIDDEN {
        let path = at.join(name);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {
                bind(&empty, &path, MsFlags::empty())?;
                remount(&path, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
            }
            Ok(_) => bind(Path::new("/dev/null"), &path, MsFlags::empty())?,
            Err(_) => {}
        }
    }
    for path in READ_ONLY.map(|name| at.join(name)).iter().filter(|path| path.exists()) {
        bind(path, path, MsFlags::empty())?;
        remount(path, flags | MsFlags::MS_RDONLY)?;
    }
    Ok(())
}

fn mounted(root: &Path, item: &Mount, staging: &Path) -> io::Result<()> {
    match item {
        Mount::Directory { source, target, mode, uid, gid } => {
            let source = Path::new(source);
            if fs::symlink_metadata(source).is_err() {
                make_directory(source, 0o700)?;
                chown(source, Some(*uid), Some(*gid))?;
                fs::set_permissions(source, fs::Permissions::from_mode(*mode))?;
            }
            bind(source, &self::target(root, target, true)?, MsFlags::empty())
        }
        Mount::File { target, contents, mode, uid, gid } => {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(staging)?;
            file.write_all(contents)?;
            chown(staging, Some(*uid), Some(*gid))?;
            fs::set_permissions(staging, fs::Permissions::from_mode(*mode))?;
            let target = self::target(root, target, false)?;
            bind(staging, &target, MsFlags::empty())?;
            remount(&target, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
        }
        Mount::Tmpfs { target, bytes } => {
            let options = if *bytes == 0 { "mode=1777".to_owned() } else { format!("mode=1777,size={bytes}") };
            tmpfs(&self::target(root, target, true)?, &options)
        }
        Mount::Host { source, target } => {
            let target = self::target(root, target, fs::metadata(source)?.is_dir())?;
            bind(Path::new(source), &target, MsFlags::MS_REC)?;
            // Of a mount that forbids more, this would allow it again, and is refused; then the ids alone keep it whole.
            match remount(&target, MsFlags::MS_RDONLY) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                other => other,
            }
        }
    }
}

/// The place in `root` for a mount at `path`, made at need. Links on the way are taken as in the root, whatever they say:
/// what is in it was written by strangers.
fn target(root: &Path, path: &str, is_directory: bool) -> io::Result<PathBuf> {
    let root =
        openat2(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())?;
    let open = |path: &str| openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT);
    let mut done = String::new();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    for (number, part) in parts.iter().enumerate() {
        let parent = open(if done.is_empty() { "." } else { &done })?;
        let is_last = number.saturating_add(1) == parts.len();
        done = format!("{done}/{part}");
        match open(&done) {
            Ok(_) => continue,
            Err(rustix::io::Errno::NOENT) if is_last && !is_directory => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&parent, *part, flags, Mode::from_raw_mode(0o644))?;
            }
            Err(rustix::io::Errno::NOENT) => rustix::fs::mkdirat(&parent, *part, Mode::from_raw_mode(0o755))?,
            Err(error) => return Err(error.into()),
        }
    }
    // A name for what was found: mount(2) takes no descriptor.
    let found = open(&done)?;
    fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found)))
}
