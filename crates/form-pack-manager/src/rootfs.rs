//! The package as a root disk: an ext4 image of exactly the size that the Formfile asks for.
//!
//! mkext4 lays the file system out from the tree alone, without mounting and without a staging directory, and takes
//! every identifier and time as an input, so that the same tree gives the same image.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mkext4::{FsBuilder, InodeCount, InodeHandle, Layout, Meta, Options, ROOT, RegionSink};

use crate::tree::{Contents, Kind, Node, Tree};

/// Writes `tree` as an ext4 image of `disk_mib` MiB into the empty file `out`, which becomes sparse. `written` hears of
/// each byte of contents that is done.
pub fn write_rootfs(tree: &Tree, disk_mib: u64, out: &File, written: &mut dyn FnMut(u64)) -> Result<(), RootfsError> {
    let plan = match plan(tree, disk_mib) {
        Ok(plan) => plan,
        // mkext4 has no error of its own for an image that is too small. If a larger one works, that was it.
        Err(source) => {
            return Err(match least_size(tree, disk_mib) {
                Some(needed_mib) => RootfsError::TooSmall { disk_mib, needed_mib },
                None => RootfsError::Layout(source),
            });
        }
    };
    out.set_len(plan.layout.image_len()).map_err(RootfsError::Write)?;
    let mut writer = plan.layout.writer(Sink(out)).map_err(RootfsError::from_writing)?;
    for (inode, contents) in plan.files {
        writer
            .fill(inode, &mut BufReader::with_capacity(1 << 20, contents.open()))
            .map_err(RootfsError::from_writing)?;
        written(contents.len);
    }
    writer.finish().map_err(RootfsError::from_writing)?;
    Ok(())
}

/// Why there is no root disk.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The contents do not fit.
    #[error(
        "the package needs a disk of at least {needed_mib} MiB and has {disk_mib}; write `DISK {needed_mib}` or more"
    )]
    TooSmall {
        /// What the Formfile asks for.
        disk_mib: u64,
        /// The least that holds the package, without room for what the guest writes.
        needed_mib: u64,
    },
    /// The tree cannot be an ext4 file system of any size.
    #[error("the package cannot be laid out as an ext4 file system")]
    Layout(#[source] mkext4::Error),
    /// The image cannot be written.
    #[error("cannot write the root disk image")]
    Write(#[source] io::Error),
}

impl RootfsError {
    fn from_writing(error: mkext4::Error) -> Self {
        match error {
            mkext4::Error::Io(e) => Self::Write(e),
            other => Self::Layout(other),
        }
    }
}

/// The identity of every root disk. A UUID tells file systems apart that one machine mounts; a guest has one of these.
const UUID: [u8; 16] = *b"formation-rootfs";
const MIB: u64 = 1 << 20;
/// The largest disk that a Formfile can ask for.
const MOST_MIB: u64 = 1 << 20;
/// ext4's own default of one inode for 16 KiB.
const BYTES_PER_INODE: u64 = 16 << 10;

struct Plan {
    layout: Layout,
    files: Vec<(InodeHandle, Arc<Contents>)>,
}

fn plan(tree: &Tree, disk_mib: u64) -> mkext4::Result<Plan> {
    let size = disk_mib.saturating_mul(MIB);
    let mut options = Options::new(size, UUID, 0);
    // Root disks belong to one service: nothing needs a reserve that only root may use.
    options.reserved_percent = 0;
    // Small files must not run out of inodes while there is space; the guest wants to make some, too.
    let for_tree = (tree.len() as u64).saturating_mul(5).saturating_div(4).saturating_add(64);
    let inodes = u32::try_from(for_tree.max(size / BYTES_PER_INODE)).unwrap_or(u32::MAX);
    options.inodes = InodeCount::Exact(inodes);

    let mut builder = FsBuilder::new(options)?;
    if let Some(root) = tree.root() {
        builder.set_meta(ROOT, meta(root))?;
    }
    let mut directories = HashMap::from([("", ROOT)]);
    let mut others = Vec::new();
    for (path, node) in tree.iter() {
        if node.is_directory() {
            let (parent, name) = split(path);
            let parent = directories.get(parent).copied().ok_or_else(|| orphan(path))?;
            directories.insert(path, builder.mkdir(parent, name, meta(node))?);
        } else {
            others.push((path, node));
        }
    }
    // What the upper layers bring stands last, so that a change of theirs moves nothing that is below them.
    others.sort_by_key(|(_, node)| node.layer);
    let mut files = Vec::new();
    let mut linked: HashMap<*const Contents, InodeHandle> = HashMap::new();
    for (path, node) in others {
        let (parent, name) = split(path);
        let parent = directories.get(parent).copied().ok_or_else(|| orphan(path))?;
        match &node.kind {
            Kind::Directory => {}
            Kind::Symlink(target) => drop(builder.symlink(parent, name, target, meta(node))?),
            Kind::File(contents) => {
                if let Some(first) = linked.get(&Arc::as_ptr(contents)) {
                    builder.hardlink(parent, name, *first)?;
                    continue;
                }
                let file = builder.file(parent, name, meta(node), contents.len)?;
                linked.insert(Arc::as_ptr(contents), file);
                if let Some(value) = &node.capability {
                    builder.set_xattr(file, "security.capability", value)?;
                }
                if contents.len > 0 {
                    files.push((file, Arc::clone(contents)));
                }
            }
        }
    }
    Ok(Plan { layout: builder.seal()?, files })
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn meta(node: &Node) -> Meta {
    // Twelve bits of it are permissions.
    let mode = u16::try_from(node.mode & 0o7777).unwrap_or_default();
    Meta::new(mode, node.uid, node.gid, (node.mtime, 0))
}

/// A tree has the parents of all that is in it, and has them first.
fn orphan(path: &str) -> mkext4::Error {
    mkext4::Error::Invalid(format!("{path:?} has no parent directory"))
}

/// The least size in MiB that holds the tree and is more than `too_small`.
fn least_size(tree: &Tree, too_small: u64) -> Option<u64> {
    let fits = |mib: u64| plan(tree, mib).is_ok();
    let mut low = too_small;
    let mut high = too_small;
    while !fits(high) {
        if high >= MOST_MIB {
            return None;
        }
        low = high;
        high = high.saturating_mul(2).clamp(1, MOST_MIB);
    }
    while high.saturating_sub(low) > 1 {
        let middle = low.midpoint(high);
        if fits(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

/// Positioned writes; zeros stay holes.
struct Sink<'f>(&'f File);

impl RegionSink for Sink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn zeros(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
