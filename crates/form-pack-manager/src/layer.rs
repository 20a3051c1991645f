//! Layers: a tar of what changed, as OCI images have them (image-spec, layer.md).
//!
//! What is written is the same bytes for the same change: sorted, parents first and always there, with whiteouts. What is
//! read was written by strangers:
//!
//! | what it holds | what becomes of it |
//! | --- | --- |
//! | file, directory, symbolic link, hard link | kept, with mode (set-id bits too: distributions have them), owner, time |
//! | `security.capability` | kept; all other attributes are dropped |
//! | device, pipe, socket | left out: a machine makes its own, and a package has none |
//! | absolute name | taken relative to the root |
//! | `..`, a name that is too long, or not UTF-8, which the root disk cannot hold | refused |
//! | a name below a link | put where the link leads in the tree |
//! | a link out of the root | only text to us; leads nowhere else in the guest than from its root |
//! | more bytes, entries or names than [`Limits`] has | refused |

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use form_rootfs::{Digest, Hasher};
use tar::{EntryType, Header};

pub use crate::context::Limits;
use crate::tree::{Change, Contents, Diff, Kind, Node, PathError, Tree, join};

const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";
const CAPABILITY: &str = "SCHILY.xattr.security.capability";
/// Room for two paths and some attributes.
const MOST_EXTENSION: u64 = 1 << 20;

/// Writes what `diff` changes. It has the parents of all that is in it ([`Diff::with_parents`]).
pub fn write_tar(diff: &Diff, out: impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    let mut written: HashMap<*const Contents, &str> = HashMap::new();
    if let Some(root) = &diff.root {
        directory(&mut tar, "./", root)?;
    }
    if diff.opaque.contains("") {
        marker(&mut tar, OPAQUE)?;
    }
    for (path, change) in &diff.changes {
        let node = match change {
            Change::Remove => {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                marker(&mut tar, &join(parent, &format!("{WHITEOUT}{name}")))?;
                continue;
            }
            Change::Put(node) => node,
        };
        match &node.kind {
            Kind::Directory => {
                directory(&mut tar, &format!("{path}/"), node)?;
                if diff.opaque.contains(path) {
                    marker(&mut tar, &join(path, OPAQUE))?;
                }
            }
            Kind::Symlink(target) => {
                let mut header = header_of(node, EntryType::Symlink);
                tar.append_link(&mut header, path, target)?;
            }
            Kind::File(contents) => {
                if let Some(first) = written.get(&Arc::as_ptr(contents)) {
                    let mut header = header_of(node, EntryType::Link);
                    tar.append_link(&mut header, path, first)?;
                    continue;
                }
                written.insert(Arc::as_ptr(contents), path);
                if let Some(value) = &node.capability {
                    tar.append_pax_extensions([(CAPABILITY, &**value)])?;
                }
                let mut header = header_of(node, EntryType::Regular);
                header.set_size(contents.len);
                tar.append_data(&mut header, path, BufReader::with_capacity(256 << 10, contents.open()))?;
            }
        }
    }
    tar.into_inner()?.flush()
}

fn header_of(node: &Node, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(node.mode);
    header.set_uid(node.uid.into());
    header.set_gid(node.gid.into());
    header.set_mtime(u64::try_from(node.mtime).unwrap_or(0));
    header.set_size(0);
    header
}

fn directory(tar: &mut tar::Builder<impl Write>, name: &str, node: &Node) -> io::Result<()> {
    tar.append_data(&mut header_of(node, EntryType::Directory), name, io::empty())
}

fn marker(tar: &mut tar::Builder<impl Write>, name: &str) -> io::Result<()> {
    let node = Node { mode: 0o644, ..Node::directory(0) };
    tar.append_data(&mut header_of(&node, EntryType::Regular), name, io::empty())
}

/// Expands a layer blob of `media_type` into the empty `out`; returns the digest of what it is expanded, and its length.
pub fn expand(blob: impl Read, media_type: &str, out: &File, most: u64) -> Result<(Digest, u64), LayerError> {
    let mut hashed = Hasher::new(io::BufWriter::with_capacity(256 << 10, out));
    let mut blob = BufReader::with_capacity(256 << 10, blob);
    let mut reader: Box<dyn Read> = match media_type.rsplit_once(['+', '.']) {
        Some((_, "zstd")) => Box::new(zstd::Decoder::new(blob).map_err(LayerError::Read)?),
        Some((_, "gzip")) => Box::new(flate2::bufread::MultiGzDecoder::new(&mut blob)),
        Some((_, "tar")) => Box::new(blob),
        _ => return Err(LayerError::MediaType(media_type.to_owned())),
    };
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(LayerError::Read(e)),
        };
        if hashed.size().saturating_add(read as u64) > most {
            return Err(LayerError::TooLarge { most });
        }
        hashed.write_all(buffer.get(..read).unwrap_or_default()).map_err(LayerError::Write)?;
    }
    drop(reader);
    hashed.flush().map_err(LayerError::Write)?;
    let (_, digest, size) = hashed.finish();
    Ok((digest, size))
}

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("a layer cannot be read")]
    Read(#[source] io::Error),
    #[error("a layer cannot be kept in the scratch directory")]
    Write(#[source] io::Error),
    #[error("a layer has the media type {0:?}, which is not known here")]
    MediaType(String),
    #[error("a layer expands to more than the {most} bytes that are allowed")]
    TooLarge { most: u64 },
    #[error("a layer has more than the {most} entries that are allowed")]
    TooMany { most: usize },
    #[error("the names in a layer have more than the {most} bytes that are allowed")]
    NamesTooLong { most: usize },
    #[error("`{name}` in a layer {what}")]
    Entry { name: String, what: &'static str },
    #[error("`{name}` in a layer cannot be had")]
    Path { name: String, source: PathError },
}

/// Puts the expanded layer `file` over `tree`, as the layer with this number; returns what it changed.
pub fn apply(tree: &mut Tree, file: &Arc<File>, layer: u32, limits: &Limits) -> Result<Diff, LayerError> {
    let mut reader = BufReader::with_capacity(64 << 10, &**file);
    reader.seek(SeekFrom::Start(0)).map_err(LayerError::Read)?;
    let mut archive = tar::Archive::new(reader);
    let entries = archive.entries_with_seek().map_err(LayerError::Read)?;
    walk(tree, entries, file, layer, limits, &mut |entry| Ok(entry.raw_file_position()))
}

/// As [`apply`], of a stream: what files hold goes into `spool`, from its end on.
pub fn receive(
    tree: &mut Tree,
    tar: impl Read,
    spool: &Arc<File>,
    layer: u32,
    limits: &Limits,
) -> Result<Diff, LayerError> {
    let mut writer = spool.try_clone().map_err(LayerError::Write)?;
    let mut end = writer.seek(SeekFrom::End(0)).map_err(LayerError::Write)?;
    let mut writer = io::BufWriter::with_capacity(256 << 10, writer);
    let mut left = limits.bytes;
    let mut keep = |entry: &mut dyn Read, len: u64| -> Result<u64, LayerError> {
        left = left.checked_sub(len).ok_or(LayerError::TooLarge { most: limits.bytes })?;
        let copied = io::copy(&mut entry.take(len), &mut writer).map_err(LayerError::Write)?;
        if copied != len {
            return Err(LayerError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        let start = end;
        end = end.saturating_add(len);
        Ok(start)
    };
    let mut archive = tar::Archive::new(tar);
    let diff = walk(tree, archive.entries().map_err(LayerError::Read)?, spool, layer, limits, &mut |entry| {
        let len = entry.size();
        keep(entry, len)
    })?;
    writer.flush().map_err(LayerError::Write)?;
    Ok(diff)
}

/// What extension headers say of the entry after them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    capability: Option<Arc<[u8]>>,
}

fn walk<R: Read>(
    tree: &mut Tree,
    entries: tar::Entries<'_, R>,
    file: &Arc<File>,
    layer: u32,
    limits: &Limits,
    keep: &mut dyn FnMut(&mut tar::Entry<'_, R>) -> Result<u64, LayerError>,
) -> Result<Diff, LayerError> {
    let mut diff = Diff::default();
    let mut extensions = Extensions::default();
    let (mut count, mut names) = (0_usize, 0_usize);
    for entry in entries.raw(true) {
        let mut entry = entry.map_err(LayerError::Read)?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::XGlobalHeader => continue,
            EntryType::GNULongName => extensions.path = Some(until_nul(extension(&mut entry)?)),
            EntryType::GNULongLink => extensions.link = Some(until_nul(extension(&mut entry)?)),
            EntryType::XHeader => pax(&extension(&mut entry)?, &mut extensions)?,
            _ => {
                let Extensions { path, link, capability } = std::mem::take(&mut extensions);
                let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
                let link = link.or_else(|| entry.link_name_bytes().map(Into::into)).unwrap_or_default();
                count = count.saturating_add(1);
                names = names.saturating_add(path.len()).saturating_add(link.len());
                if count > limits.entries || tree.len() > limits.entries {
                    return Err(LayerError::TooMany { most: limits.entries });
                }
                if names > limits.name_bytes {
                    return Err(LayerError::NamesTooLong { most: limits.name_bytes });
                }
                put(tree, &mut diff, &path, &link, capability, &mut entry, file, layer, keep)?;
            }
        }
    }
    Ok(diff)
}

#[expect(clippy::too_many_arguments, reason = "one entry, and what it is put into")]
fn put<R: Read>(
    tree: &mut Tree,
    diff: &mut Diff,
    path: &[u8],
    link: &[u8],
    capability: Option<Arc<[u8]>>,
    entry: &mut tar::Entry<'_, R>,
    file: &Arc<File>,
    layer: u32,
    keep: &mut dyn FnMut(&mut tar::Entry<'_, R>) -> Result<u64, LayerError>,
) -> Result<(), LayerError> {
    let name: String = String::from_utf8_lossy(path).chars().take(256).collect();
    let refuse = |what| LayerError::Entry { name: name.clone(), what };
    let lost = |source| LayerError::Path { name: name.clone(), source };
    let path = normalised(path).map_err(refuse)?;
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let last = path.rsplit('/').next().unwrap_or_default();
    let header = entry.header();
    let number = |value: io::Result<u64>| {
        value.ok().and_then(|value| u32::try_from(value).ok()).ok_or_else(|| refuse("has an owner that is no number"))
    };
    let (uid, gid) = (number(header.uid())?, number(header.gid())?);
    let mode = header.mode().map_err(LayerError::Read)? & 0o7777;
    // Before 1901 and after 2446 there is none in ext4.
    let mtime = header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0).min(15_032_385_535);
    let node = |kind| Node { kind, mode, uid, gid, mtime, capability: capability.clone(), layer };

    let made = Node::directory(layer);
    if last == OPAQUE {
        let at = tree.resolve(parent, true).map_err(lost)?;
        tree.remove_below(&at, layer);
        diff.opaque.insert(at);
        return Ok(());
    }
    if let Some(hidden) = last.strip_prefix(WHITEOUT) {
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(refuse("hides nothing that has a name"));
        }
        let at = join(&tree.resolve(parent, true).map_err(lost)?, hidden);
        // A whiteout is of the layers below. What this one has is its own.
        if tree.get(&at).is_some_and(|node| node.layer < layer) {
            tree.remove(&at);
            diff.changes.insert(at, Change::Remove);
        }
        return Ok(());
    }
    let new = match entry.header().entry_type() {
        EntryType::Directory => node(Kind::Directory),
        EntryType::Regular | EntryType::Continuous => {
            let len = entry.size();
            let offset = if len == 0 { 0 } else { keep(entry)? };
            node(Kind::File(Arc::new(Contents { file: Arc::clone(file), offset, len })))
        }
        EntryType::Symlink => {
            let target = str::from_utf8(link).map_err(|_| refuse("points to a name that is not UTF-8"))?;
            if target.is_empty() || target.len() > MOST_PATH || target.contains('\0') {
                return Err(refuse("is a symbolic link to nothing, or to a name that is too long"));
            }
            Node { mode: 0o777, ..node(Kind::Symlink(target.to_owned())) }
        }
        EntryType::Link => {
            let of = normalised(link).map_err(refuse)?;
            let of = tree.resolve(&of, false).map_err(lost)?;
            match tree.get(&of) {
                Some(found) if !found.is_directory() => Node { layer, ..found.clone() },
                _ => return Err(refuse("is a hard link to no file that came before it")),
            }
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => return Ok(()),
        EntryType::GNUSparse => return Err(refuse("is packed as a sparse file")),
        _ => return Err(refuse("is of a kind that is not known")),
    };
    if path.is_empty() {
        if new.is_directory() {
            diff.root = Some(new.clone());
            tree.insert(String::new(), new);
        }
        return Ok(());
    }
    if path == "lost+found" || path.starts_with("lost+found/") {
        return Ok(());
    }
    let parent = match tree.make_directory(parent, &made, diff) {
        Ok(parent) => parent,
        // A layer may put a directory where one below has a file, and does not say so before what is in it.
        Err(PathError::Blocked(at)) if tree.get(&at).is_some_and(|node| node.layer < layer) => {
            tree.remove(&at);
            tree.make_directory(parent, &made, diff).map_err(lost)?
        }
        Err(error) => return Err(lost(error)),
    };
    let at = join(&parent, last);
    if new.is_directory() && tree.get(&at).is_some_and(|node| !node.is_directory()) {
        tree.remove(&at);
    }
    if !new.is_directory() && tree.is_directory(&at) {
        let below: Vec<String> =
            diff.changes.range(format!("{at}/")..format!("{at}0")).map(|(path, _)| path.clone()).collect();
        for path in below {
            diff.changes.remove(&path);
        }
    }
    diff.changes.insert(at.clone(), Change::Put(new.clone()));
    tree.insert(at, new);
    Ok(())
}

const MOST_PATH: usize = 4095;
const MOST_NAME: usize = 255;

fn normalised(path: &[u8]) -> Result<String, &'static str> {
    let path = str::from_utf8(path).map_err(|_| "has a name that is not UTF-8, which a root disk cannot hold")?;
    if path.contains('\0') {
        return Err("has a NUL in its name");
    }
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err("has `..` in its name");
    }
    if path.len() > MOST_PATH || parts.iter().any(|part| part.len() > MOST_NAME) {
        return Err("has a name that is too long: at most 255 bytes for each part, 4095 in all");
    }
    Ok(parts.join("/"))
}

fn extension(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, LayerError> {
    if entry.size() > MOST_EXTENSION {
        let name = String::from_utf8_lossy(&entry.path_bytes()).chars().take(256).collect();
        return Err(LayerError::Entry { name, what: "is an extension header of more than 1 MiB" });
    }
    let mut data = Vec::new();
    entry.read_to_end(&mut data).map_err(LayerError::Read)?;
    Ok(data)
}

/// A name as old tars end it.
pub(crate) fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn pax(data: &[u8], extensions: &mut Extensions) -> Result<(), LayerError> {
    for record in tar::PaxExtensions::new(data) {
        let record = record.map_err(LayerError::Read)?;
        match record.key_bytes() {
            b"path" => extensions.path = Some(record.value_bytes().to_vec()),
            b"linkpath" => extensions.link = Some(record.value_bytes().to_vec()),
            key if key == CAPABILITY.as_bytes() => extensions.capability = Some(record.value_bytes().into()),
            key if key == b"size" || key.starts_with(b"GNU.sparse.") => {
                let name = String::from_utf8_lossy(extensions.path.as_deref().unwrap_or(b"an entry")).into_owned();
                return Err(LayerError::Entry { name, what: "has a PAX size, or is sparse" });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
