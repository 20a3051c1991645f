//! From what a stage came to, to what runs.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use form_rootfs::{Digest, Frame, RawImage, compress_rootfs};
use serde::{Deserialize, Serialize};

use super::stage::Chain;
use super::{BuildError, Engine, Event};
use crate::image::{Config, Layer, Machine, config_json, manifest_json};
use crate::rootfs::write_rootfs;
use crate::store::{BlobInfo, BlobStore as _, DirStore};
use crate::tree::{Kind, Tree};

/// What was built: what runs, and which blobs hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// The OCI manifest. Its digest names the package.
    pub manifest: BlobInfo,
    /// The OCI configuration.
    pub config: BlobInfo,
    pub layers: Vec<Layer>,
    pub disk: Disk,
    /// Size of the machine, and what else the Formfile says of it.
    pub machine: Machine,
    /// How it starts; ENTRYPOINT and CMD are in [`Package::command`].
    pub start: Config,
}

/// A root disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Compressed; its media type is [`form_rootfs::MEDIA_TYPE`].
    pub blob: BlobInfo,
    /// Expanded.
    pub raw: RawImage,
}

impl Package {
    /// Program and arguments; never empty.
    pub fn command(&self) -> Vec<String> {
        self.start.entrypoint.iter().chain(&self.start.cmd).cloned().collect()
    }
}

#[derive(Serialize, Deserialize)]
struct KnownDisk {
    digest: String,
    size: u64,
    raw: String,
    raw_size: u64,
}

/// The frames of the last disk that began as another one does: most of them are the other's, too.
#[derive(Default, Serialize, Deserialize)]
struct KnownFrames {
    blob: String,
    /// The chunk's digest; start and length of its frame.
    frames: Vec<(String, u64, u64)>,
}

/// Another layout of the same tree would be another disk.
const FORMAT: u32 = 2;
/// Frames that are written down: a disk with more data is compressed anew.
const MOST_FRAMES: usize = 16_384;

impl Engine<'_, '_> {
    pub(super) fn package(&mut self, chain: &Chain) -> Result<Package, BuildError> {
        let store = self.workshop.store();
        let machine = Machine::of(&self.request.formfile.settings, &chain.config.labels);
        let mut start = chain.config.clone();
        start.labels.extend(machine.labels());
        if start.entrypoint.is_empty() && start.cmd.is_empty() {
            return Err(BuildError::NothingToStart);
        }
        check_entrypoint(&start, &chain.tree)?;
        self.check_time()?;
        let config = store.put(&mut config_json(&start, &chain.layers, &chain.history)?.as_slice(), None)?;
        let manifest = store.put(&mut manifest_json(&machine, &config, &chain.layers)?.as_slice(), None)?;
        let disk = self.disk(chain, machine.disk_mib)?;
        Ok(Package { manifest, config, layers: chain.layers.clone(), disk, machine, start })
    }

    /// The disk of the chain's tree: made once for each tree and size.
    fn disk(&mut self, chain: &Chain, disk_mib: u32) -> Result<Disk, BuildError> {
        let key = Digest::of(format!("{FORMAT} {} {disk_mib}", chain.digest).as_bytes());
        let name = format!("{}/disk/{}", self.request.project, key.hex());
        let store = self.workshop.store();
        if let Some(known) = self.workshop.recall::<KnownDisk>(&name)?
            && let (Ok(digest), Ok(raw)) = (known.digest.parse::<Digest>(), known.raw.parse::<Digest>())
            && store.touch(&digest)?
        {
            let raw = RawImage { digest: raw, size: known.raw_size };
            return Ok(Disk { blob: BlobInfo { digest, size: known.size }, raw });
        }
        (self.log)(Event::Phase("making the root disk"));
        let first = chain.layers.first().map(|layer| layer.diff_id.to_string()).unwrap_or_default();
        let alike = Digest::of(format!("{FORMAT} {first} {disk_mib}").as_bytes());
        let alike = format!("{}/frames/{}", self.request.project, alike.hex());
        let before = if self.request.no_cache { None } else { self.workshop.recall::<KnownFrames>(&alike)? };
        let before = before.unwrap_or_default();
        let (disk, frames) = write_disk(&chain.tree, disk_mib.into(), store, self.workshop.scratch(), &before)?;
        if frames.len() <= MOST_FRAMES {
            let frames = frames.iter().map(|frame| (frame.chunk.hex(), frame.start, frame.len)).collect();
            self.workshop.note(&alike, &KnownFrames { blob: disk.blob.digest.to_string(), frames })?;
        }
        let known = KnownDisk {
            digest: disk.blob.digest.to_string(),
            size: disk.blob.size,
            raw: disk.raw.digest.to_string(),
            raw_size: disk.raw.size,
        };
        self.workshop.note(&name, &known)?;
        Ok(disk)
    }
}

/// Lays `tree` out as a disk of `disk_mib` MiB; unfinished it is an unnamed file in `scratch`.
fn write_disk(
    tree: &Tree,
    disk_mib: u64,
    store: &DirStore,
    scratch: &Path,
    before: &KnownFrames,
) -> Result<(Disk, Vec<Frame>), BuildError> {
    let image = tempfile::tempfile_in(scratch).map_err(BuildError::Scratch)?;
    write_rootfs(tree, disk_mib, &image, &mut |_| {})?;
    let blob = before.blob.parse::<Digest>().ok();
    let places: HashMap<&str, (u64, u64)> =
        before.frames.iter().map(|(chunk, start, len)| (chunk.as_str(), (*start, *len))).collect();
    // One that cannot be had any more is compressed anew.
    let known = |chunk: &Digest| {
        let (start, len) = *places.get(chunk.hex().as_str())?;
        let mut frame = Vec::new();
        store.get_from(blob.as_ref()?, start).ok()??.reader.take(len).read_to_end(&mut frame).ok()?;
        (frame.len() as u64 == len).then_some(frame)
    };
    let mut writer = store.writer()?;
    let (raw, frames) = compress_rootfs(&image, &mut writer, known).map_err(BuildError::Compress)?;
    Ok((Disk { blob: writer.commit(None)?, raw }, frames))
}

/// Finds out now what would else be a machine that dies at once.
fn check_entrypoint(config: &Config, tree: &Tree) -> Result<(), BuildError> {
    let Some(program) = config.entrypoint.first().or(config.cmd.first()) else { return Ok(()) };
    let workdir = if config.working_dir.is_empty() { "/" } else { &config.working_dir };
    let path = match program.strip_prefix("./") {
        Some(relative) => format!("{}/{relative}", workdir.trim_end_matches('/')),
        None => program.clone(),
    };
    // A bare name is the guest's to find in its PATH.
    if !path.starts_with('/') {
        return Ok(());
    }
    let found = tree.resolve(path.trim_start_matches('/'), true).ok();
    let what = match found.as_ref().map(|path| tree.get(path).map(|node| (&node.kind, node.mode))) {
        Some(Some((Kind::File(_), mode))) if mode & 0o111 != 0 => return Ok(()),
        Some(Some((Kind::File(_), _))) => "is not executable; run `chmod +x` on it in the build context",
        Some(Some((Kind::Directory, _))) => "is a directory; name a file in it",
        _ => "is not in the package; COPY it, or correct its path",
    };
    Err(BuildError::Entrypoint { program: program.clone(), what })
}
