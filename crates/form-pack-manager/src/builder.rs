//! From a Formfile and a build context to a package in a store.

use std::io::{self, Read};
use std::path::Path;

use form_rootfs::{RawImage, compress_rootfs};

use crate::context::{Context, Node};
use crate::formfile::{Formfile, Machine, Port};
use crate::layer::{config_json, manifest_json, write_layer};
use crate::rootfs::{RootfsError, SparseReader, write_rootfs};
use crate::store::{BlobInfo, BlobStore, StoreError};
use crate::tree::{CopyError, Tree};

/// What was built: what runs, and which blobs hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// The OCI manifest. Its digest names the package.
    pub manifest: BlobInfo,
    /// The OCI configuration.
    pub config: BlobInfo,
    /// The one layer, compressed.
    pub layer: BlobInfo,
    /// The root disk, compressed; its media type is [`form_rootfs::MEDIA_TYPE`].
    pub rootfs: BlobInfo,
    /// The root disk, expanded.
    pub rootfs_raw: RawImage,
    /// Size of the machine.
    pub machine: Machine,
    /// Environment of the entrypoint, in order.
    pub env: Vec<(String, String)>,
    /// Program and arguments; never empty.
    pub entrypoint: Vec<String>,
    /// `user[:group]`; `None` is root.
    pub user: Option<String>,
    /// Where the entrypoint starts: an absolute path.
    pub workdir: String,
    /// Ports that the entrypoint listens on.
    pub ports: Vec<Port>,
}

/// How far a build has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being made.
    pub phase: Phase,
    /// Bytes done of it, and in all.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What a build makes, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The ext4 image; bytes are contents of files.
    Rootfs,
    /// The blob of the ext4 image; bytes are of the image.
    Compress,
    /// The OCI layer; bytes are contents of files.
    Layer,
}

/// Builds `formfile` over `context` into `store`; the unfinished root disk is an unnamed file in `scratch`.
///
/// Blocks for as long as it takes to read the contents three times and the whole disk once. When it returns, all blobs
/// are on disk; when it fails, some may be, which are those of a build that got further. Nothing else stays behind.
pub fn build(
    formfile: &Formfile,
    context: &Context,
    store: &dyn BlobStore,
    scratch: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Package, BuildError> {
    let tree = Tree::assemble(&formfile.steps, context)?;
    check_entrypoint(formfile, &tree)?;

    let (rootfs, rootfs_raw) = build_rootfs(formfile, context, &tree, store, scratch, progress)?;
    let mut writer = store.writer()?;
    let mut meter = Meter::new(Phase::Layer, contents_of(&tree), progress);
    let diff_id = write_layer(&tree, context, &mut writer, &mut |bytes| meter.add(bytes)).map_err(BuildError::Layer)?;
    let layer = writer.commit(None)?;

    let config = store.put(&mut config_json(formfile, diff_id)?.as_slice(), None)?;
    let manifest = store.put(&mut manifest_json(formfile, &config, &layer)?.as_slice(), None)?;
    Ok(Package {
        manifest,
        config,
        layer,
        rootfs,
        rootfs_raw,
        machine: formfile.machine,
        env: formfile.env.clone(),
        entrypoint: formfile.entrypoint.clone(),
        user: formfile.user.clone(),
        workdir: formfile.workdir.clone(),
        ports: formfile.ports.clone(),
    })
}

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A COPY or WORKDIR cannot be done.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The entrypoint cannot be started.
    #[error("ENTRYPOINT `{program}` {what}")]
    Entrypoint {
        /// The program, as the Formfile has it.
        program: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The layer cannot be written.
    #[error("cannot write the layer")]
    Layer(#[source] io::Error),
    /// The root disk cannot be made.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The scratch file for the root disk fails.
    #[error("cannot use the scratch directory")]
    Scratch(#[source] io::Error),
    /// The root disk cannot be compressed into the store.
    #[error("cannot compress the root disk into the store")]
    Compress(#[source] io::Error),
    /// The OCI documents cannot be made.
    #[error("cannot describe the package as an OCI image")]
    Oci(#[from] oci_spec::OciSpecError),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn build_rootfs(
    formfile: &Formfile,
    context: &Context,
    tree: &Tree,
    store: &dyn BlobStore,
    scratch: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(BlobInfo, RawImage), BuildError> {
    let image = tempfile::tempfile_in(scratch).map_err(BuildError::Scratch)?;
    let mut meter = Meter::new(Phase::Rootfs, contents_of(tree), progress);
    write_rootfs(tree, context, formfile.machine.disk_mib, &image, &mut |bytes| meter.add(bytes))?;

    let image = SparseReader::new(image).map_err(BuildError::Scratch)?;
    let size = image.size();
    let mut writer = store.writer()?;
    let metered = Metered { inner: image, meter: Meter::new(Phase::Compress, size, progress) };
    let raw = compress_rootfs(metered, &mut writer).map_err(BuildError::Compress)?;
    Ok((writer.commit(None)?, raw))
}

/// Finds out now what would else be a machine that dies at once. Only a path that leads through no link is judged.
fn check_entrypoint(formfile: &Formfile, tree: &Tree) -> Result<(), BuildError> {
    let Some(program) = formfile.entrypoint.first() else { return Ok(()) };
    let path = match program.strip_prefix("./") {
        Some(relative) => format!("{}/{relative}", formfile.workdir.trim_end_matches('/')),
        None => program.clone(),
    };
    if !path.starts_with('/') || path.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")) {
        return Ok(());
    }
    let mut parents = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
    if parents.any(|parent| matches!(tree.get(parent), Some(Node::Symlink { .. }))) {
        return Ok(());
    }
    let what = match tree.get(&path) {
        Some(Node::File { executable: true, .. } | Node::Symlink { .. }) => return Ok(()),
        Some(Node::File { .. }) => "is not executable; run `chmod +x` on it in the build context",
        Some(Node::Directory) => "is a directory; name a file in it",
        None => "is not in the package; COPY it, or correct its path",
    };
    Err(BuildError::Entrypoint { program: program.clone(), what })
}

fn contents_of(tree: &Tree) -> u64 {
    let len = |node: &Node| if let Node::File { contents, .. } = node { contents.len } else { 0 };
    tree.iter().fold(0, |sum: u64, (_, node)| sum.saturating_add(len(node)))
}

/// Reports progress: at the start, at the end, and some hundred times between.
struct Meter<'p> {
    progress: &'p mut dyn FnMut(Progress),
    state: Progress,
    reported: u64,
}

impl<'p> Meter<'p> {
    fn new(phase: Phase, total: u64, progress: &'p mut dyn FnMut(Progress)) -> Self {
        let state = Progress { phase, done: 0, total };
        progress(state);
        Self { progress, state, reported: 0 }
    }

    fn add(&mut self, bytes: u64) {
        self.state.done = self.state.done.saturating_add(bytes);
        let news = self.state.done.saturating_sub(self.reported);
        if news > 0 && (news >= self.state.total / 100 || self.state.done >= self.state.total) {
            self.reported = self.state.done;
            (self.progress)(self.state);
        }
    }
}

struct Metered<'p, R> {
    inner: R,
    meter: Meter<'p>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.meter.add(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
