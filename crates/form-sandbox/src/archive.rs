//! Between a tar and a directory, with owners as the user namespace has them.
//!
//! What is unpacked was put in order before: parents come first, and nothing is below a link. Even so, every name is
//! looked up beneath the new directory and through no link, so that nothing else can be reached.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, linkat,
    mkdirat, mknodat, openat, openat2, symlinkat, utimensat,
};
use tar::{EntryType, Header};
use walkdir::WalkDir;

use crate::outer::doing;

/// The name of a file that says another is not there (OCI image-spec, layer.md).
const WHITEOUT: &str = ".wh.";
/// The name of a file that says its directory hides the one below.
const OPAQUE: &str = ".wh..wh..opq";
/// File capabilities: the only attribute that a distribution's files have and need.
const CAPABILITY: &str = "security.capability";
const BUFFER: usize = 256 << 10;

pub(crate) fn unpack(archive: OwnedFd, into: &str) -> io::Result<()> {
    doing("making the directory to unpack to", mkdirat(CWD, into, Mode::from_raw_mode(0o755)))?;
    let root = openat(CWD, into, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(BUFFER, File::from(archive)));
    let mut parent = (PathBuf::new(), beneath(&root, Path::new("."))?);
    // Their times change with what is put into them.
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let what = path.display().to_string();
        let at = path.parent().filter(|at| !at.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if parent.0 != at {
            parent = (at.to_owned(), doing(&what, beneath(&root, at))?);
        }
        if let Some(times) = doing(&what, put(&root, &parent.1, &path, &mut entry))? {
            directories.push((path, times));
        }
    }
    for (path, times) in directories.iter().rev() {
        utimensat(beneath(&root, path)?, "", times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

fn beneath(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// The times that are to be set at the end, of a directory.
fn put(
    root: &OwnedFd,
    parent: &OwnedFd,
    path: &Path,
    entry: &mut tar::Entry<'_, impl Read>,
) -> io::Result<Option<Timestamps>> {
    let name = path.file_name().unwrap_or(std::ffi::OsStr::new("."));
    let header = entry.header();
    let mode = Mode::from_raw_mode(header.mode()?);
    let owner = (u32::try_from(header.uid()?), u32::try_from(header.gid()?));
    let (Ok(uid), Ok(gid)) = owner else { return Err(io::ErrorKind::InvalidData.into()) };
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    let time = Timespec { tv_sec: i64::try_from(header.mtime()?).unwrap_or(0), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    match header.entry_type() {
        EntryType::Directory => {
            if path != Path::new(".") {
                mkdirat(parent, name, mode)?;
            }
            chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
            return Ok(Some(times));
        }
        EntryType::Regular if name == OPAQUE => {
            // fsetxattr(2) takes no O_PATH.
            let dir = openat(parent, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::fs::fsetxattr(&dir, "user.overlay.opaque", b"y", XattrFlags::empty())?;
            return Ok(None);
        }
        EntryType::Regular if name.as_bytes().starts_with(WHITEOUT.as_bytes()) => {
            let name = std::ffi::OsStr::from_bytes(name.as_bytes().get(WHITEOUT.len()..).unwrap_or_default());
            mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)?;
            return Ok(None);
        }
        EntryType::Regular => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(parent, name, flags, Mode::from_raw_mode(0o600))?);
            io::copy(entry, &mut file)?;
            rustix::fs::fchown(&file, owner.0, owner.1)?;
            rustix::fs::fchmod(&file, mode)?;
            if let Some(value) = capability(entry)? {
                rustix::fs::fsetxattr(&file, CAPABILITY, &value, XattrFlags::empty())?;
            }
            rustix::fs::futimens(&file, &times)?;
        }
        EntryType::Symlink => {
            let target = entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?;
            symlinkat(std::ffi::OsStr::from_bytes(&target), parent, name)?;
            chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
            utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        EntryType::Link => {
            let of = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
            let at = of.parent().filter(|at| !at.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let target = of.file_name().ok_or(io::ErrorKind::InvalidData)?;
            linkat(beneath(root, at)?, target, parent, name, AtFlags::empty())?;
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    Ok(None)
}

fn capability(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Option<Vec<u8>>> {
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        if record.key_bytes() == format!("SCHILY.xattr.{CAPABILITY}").as_bytes() {
            return Ok(Some(record.value_bytes().to_vec()));
        }
    }
    Ok(None)
}

/// Packs an overlay's upper directory. Nothing runs in it any more. Sockets and pipes are left out, as in any image.
pub(crate) fn pack(out: OwnedFd, from: &str) -> io::Result<()> {
    let mut tar = tar::Builder::new(BufWriter::with_capacity(BUFFER, File::from(out)));
    let mut linked: HashMap<u64, PathBuf> = HashMap::new();
    for entry in WalkDir::new(from).min_depth(0).sort_by_file_name() {
        let entry = entry?;
        let name = entry.path().strip_prefix(from).unwrap_or(entry.path());
        let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
        let found = fs::symlink_metadata(entry.path())?;
        let mut header = Header::new_gnu();
        header.set_mode(found.mode() & 0o7777);
        header.set_uid(found.uid().into());
        header.set_gid(found.gid().into());
        header.set_mtime(0);
        header.set_size(0);
        let kind = found.file_type();
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, name, io::empty())?;
            if attribute(entry.path(), "user.overlay.opaque")?.is_some_and(|value| value == b"y") {
                marker(&mut tar, &name.join(OPAQUE))?;
            }
        } else if kind.is_char_device() && found.rdev() == 0 {
            let mut whiteout = std::ffi::OsString::from(WHITEOUT);
            whiteout.push(entry.file_name());
            marker(&mut tar, &name.with_file_name(whiteout))?;
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            tar.append_link(&mut header, name, fs::read_link(entry.path())?)?;
        } else if kind.is_file() {
            if let Some(first) = linked.get(&found.ino()) {
                header.set_entry_type(EntryType::Link);
                tar.append_link(&mut header, name, first)?;
                continue;
            }
            if found.nlink() > 1 {
                linked.insert(found.ino(), name.to_owned());
            }
            let value = attribute(entry.path(), CAPABILITY)?;
            let key = format!("SCHILY.xattr.{CAPABILITY}");
            tar.append_pax_extensions(value.iter().map(|value| (key.as_str(), value.as_slice())))?;
            header.set_entry_type(EntryType::Regular);
            header.set_size(found.len());
            let file = fs::OpenOptions::new()
                .read(true)
                .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default())
                .open(entry.path())?;
            tar.append_data(&mut header, name, file.take(found.len()))?;
        }
    }
    tar.into_inner()?.flush()
}

fn marker(tar: &mut tar::Builder<impl io::Write>, name: &Path) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    tar.append_data(&mut header, name, io::empty())
}

fn attribute(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = [0; 256];
    match rustix::fs::lgetxattr(path, name, &mut value) {
        Ok(length) => Ok(value.get(..length).map(<[u8]>::to_vec)),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn remove(path: &str) -> io::Result<()> {
    // overlayfs keeps its working directory closed; root may go in all the same.
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => doing(path, Err(e)),
        _ => Ok(()),
    }
}
