//! What builds leave for those after them: expanded layers, what steps came to, directories that steps run on.
//!
//! ```text
//! data_dir/layers/HEX.tar            a layer, expanded; named by its diff-id
//! data_dir/sandbox/snap/NAME         a layer, unpacked, for overlays
//!                 /run/UUID          a step at work
//!                 /caches/NAME       a cache mount
//! documents: cache/PROJECT/step/HEX   what a RUN came to; also keeps its blob alive
//!            cache/PROJECT/layer/HEX  the blob of a diff-id
//!            cache/PROJECT/debian/HEX a Debian to begin with, and when it was made
//!            cache/PROJECT/pulled/HEX a blob out of another registry
//!            cache/PROJECT/disk/HEX   the root disk of a tree
//!            cache/PROJECT/frames/HEX the pieces of the last root disk on a base
//! ```
//!
//! All of it can be made again, and goes when it was not used for longest. Each thing is whole before it has its name, so
//! a kill leaves only what has none: that is swept at the start. A project never meets what another has cached.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use form_rootfs::Digest;
use form_sandbox::Sandbox;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::layer::{self, LayerError};
use crate::store::{BlobInfo, BlobStore as _, DirStore, Documents as _, StoreError};
use crate::tree::Diff;

/// The names of all that is cached.
pub(crate) const ROOT: &str = "cache";

/// The caches of a builder. Cheap to clone.
#[derive(Clone)]
pub struct Workshop(Arc<Inner>);

struct Inner {
    store: DirStore,
    layers: PathBuf,
    scratch: PathBuf,
    sandbox: Result<Sandbox, String>,
    limits: layer::Limits,
    debian_mirror: String,
    debian_fresh: Duration,
    registries: Registries,
    most_bytes: u64,
    /// Directories of the sandbox that builds are about to use, and by how many.
    held: Mutex<HashMap<String, usize>>,
    /// One cache mount for one user at a time.
    locks: Mutex<HashSet<String>>,
    freed: std::sync::Condvar,
}

/// How a workshop is set up.
#[derive(Debug, Clone)]
pub struct Options {
    pub data_dir: PathBuf,
    /// The first id of the host that sandboxes have.
    pub first_id: u32,
    /// Bytes of what is kept, of each kind.
    pub most_bytes: u64,
    /// What one layer may be expanded to.
    pub limits: layer::Limits,
    /// Where Debian comes from.
    pub debian_mirror: String,
    /// How long a Debian that was made is taken again.
    pub debian_fresh: Duration,
    /// Other registries.
    pub registries: Registries,
    /// The program that can be run again as a sandbox.
    pub program: PathBuf,
}

/// What is pulled from other registries.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// `HOST[:PORT]` of those that may be at addresses that are not public.
    pub trusted: Vec<String>,
    /// The same, without TLS.
    pub insecure: Vec<String>,
    /// The most that a blob may have.
    pub blob_bytes: u64,
}

/// Why the caches fail.
#[derive(Debug, thiserror::Error)]
pub enum WorkshopError {
    #[error("the builder's directory {}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("RUN is off here: {0}")]
    NoSandbox(String),
    #[error(transparent)]
    Sandbox(#[from] form_sandbox::Error),
    #[error("the layer {expected} expands to {found}; push the image again")]
    Lies { expected: Box<Digest>, found: Box<Digest> },
    #[error("the layer {0} is not here")]
    Missing(Box<Digest>),
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    /// `None`: it changed nothing.
    pub(crate) layer: Option<MadeLayer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeLayer {
    pub(crate) diff_id: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
}

/// A layer that is unpacked, for as long as this lives.
pub(crate) struct Snapshot {
    workshop: Workshop,
    pub(crate) name: String,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let mut held = self.workshop.held();
        if let Some(count) = held.get_mut(&self.name) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                held.remove(&self.name);
            }
        }
    }
}

/// A cache mount, for as long as this lives.
pub(crate) struct Locked {
    workshop: Workshop,
    name: String,
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.workshop.locks().remove(&self.name);
        self.workshop.0.freed.notify_all();
    }
}

impl Workshop {
    /// Opens what is there, and removes what a kill left half done.
    pub fn open(store: DirStore, options: Options) -> Result<Self, WorkshopError> {
        let (layers, scratch) = (options.data_dir.join("layers"), options.data_dir.join("scratch"));
        for dir in [&layers, &scratch] {
            fs::create_dir_all(dir).map_err(at(dir))?;
        }
        for entry in fs::read_dir(&layers).map_err(at(&layers))? {
            let path = entry.map_err(at(&layers))?.path();
            if path.extension().is_none_or(|extension| extension != "tar") {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        let sandbox = open_sandbox(&options).map_err(|error| form_service::run::chain(&error));
        if let Err(reason) = &sandbox {
            tracing::warn!(reason, "RUN is off: builds that need it will fail");
        }
        Ok(Self(Arc::new(Inner {
            store,
            layers,
            scratch,
            sandbox,
            limits: options.limits,
            debian_mirror: options.debian_mirror,
            debian_fresh: options.debian_fresh,
            registries: options.registries,
            most_bytes: options.most_bytes,
            held: Mutex::default(),
            locks: Mutex::default(),
            freed: std::sync::Condvar::new(),
        })))
    }

    pub fn store(&self) -> &DirStore {
        &self.0.store
    }

    /// For files that never have a name.
    pub fn scratch(&self) -> &Path {
        &self.0.scratch
    }

    pub(crate) fn limits(&self) -> &layer::Limits {
        &self.0.limits
    }

    pub(crate) fn debian_mirror(&self) -> &str {
        &self.0.debian_mirror
    }

    pub(crate) fn debian_fresh(&self) -> Duration {
        self.0.debian_fresh
    }

    pub(crate) fn registries(&self) -> &Registries {
        &self.0.registries
    }

    pub(crate) fn sandbox(&self) -> Result<&Sandbox, WorkshopError> {
        self.0.sandbox.as_ref().map_err(|reason| WorkshopError::NoSandbox(reason.clone()))
    }

    /// What was noted under `name`, if it is there and whole; it is young again then.
    pub(crate) fn recall<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let name = format!("{ROOT}/{name}");
        let Some(document) = self.0.store.read(&name)? else { return Ok(None) };
        let Ok(value) = serde_json::from_slice(&document) else { return Ok(None) };
        self.0.store.renew(&name)?;
        Ok(Some(value))
    }

    pub(crate) fn note(&self, name: &str, value: &impl Serialize) -> Result<(), StoreError> {
        let document = serde_json::to_vec(value).map_err(|error| StoreError::Source(error.into()))?;
        self.0.store.write(&format!("{ROOT}/{name}"), &document)
    }

    /// The blob of `layer`, if the store still has it; no sweep takes it for a while then.
    pub(crate) fn blob(&self, layer: &MadeLayer) -> Result<Option<BlobInfo>, StoreError> {
        let Ok(digest) = layer.digest.parse::<Digest>() else { return Ok(None) };
        Ok(self.0.store.touch(&digest)?.then_some(BlobInfo { digest, size: layer.size }))
    }

    /// The expanded layer `diff_id`; out of its blob, if it is not there yet.
    pub(crate) fn expanded(
        &self,
        diff_id: &Digest,
        blob: &Digest,
        media_type: &str,
    ) -> Result<Arc<File>, WorkshopError> {
        let path = self.path_of(diff_id);
        match File::open(&path) {
            Ok(file) => {
                file.set_times(FileTimes::new().set_modified(SystemTime::now())).map_err(at(&path))?;
                return Ok(Arc::new(file));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(at(&path)(e)),
        }
        let blob = self.0.store.get(blob)?.ok_or_else(|| WorkshopError::Missing(Box::new(*blob)))?;
        self.keep(Some(diff_id), |file| {
            layer::expand(blob.reader, media_type, file, self.0.limits.bytes).map(|(digest, _)| digest)
        })
        .map(|(file, _)| file)
    }

    /// Keeps the expanded layer that `write` makes, and says its digest; with `expected`, only if it is that.
    pub(crate) fn keep(
        &self,
        expected: Option<&Digest>,
        write: impl FnOnce(&File) -> Result<Digest, LayerError>,
    ) -> Result<(Arc<File>, Digest), WorkshopError> {
        let layers = &self.0.layers;
        let file = tempfile::NamedTempFile::new_in(layers).map_err(at(layers))?;
        let found = write(file.as_file())?;
        if let Some(expected) = expected.filter(|expected| **expected != found) {
            return Err(WorkshopError::Lies { expected: Box::new(*expected), found: Box::new(found) });
        }
        let path = self.path_of(&found);
        // What is lost with the machine is expanded again; but a name with half of its bytes would be believed.
        file.as_file().sync_data().map_err(at(&path))?;
        let file = file.persist(&path).map_err(|error| at(&path)(error.error))?;
        Ok((Arc::new(file), found))
    }

    fn path_of(&self, diff_id: &Digest) -> PathBuf {
        self.0.layers.join(diff_id.hex()).with_extension("tar")
    }

    /// The directory of the layer that makes the chain `chain`, which `diff` is unpacked into at need.
    pub(crate) fn snapshot(&self, chain: &Digest, diff: &Diff) -> Result<Snapshot, WorkshopError> {
        let sandbox = self.sandbox()?;
        // Short, for a page of mount options must name them all; 96 bits of a digest.
        let name = format!("snap/{}", chain.hex().chars().take(24).collect::<String>());
        let held = self.hold(&name);
        let path = sandbox.directory().join(&name);
        if File::open(&path).is_ok_and(|dir| dir.set_times(FileTimes::new().set_modified(SystemTime::now())).is_ok()) {
            return Ok(held);
        }
        if path.exists() {
            return Ok(held);
        }
        let making = format!("snap/new-{}", uuid::Uuid::new_v4().simple());
        let unpacked =
            sandbox.unpack(&making, |out| layer::write_tar(diff, io::BufWriter::with_capacity(256 << 10, out)));
        let renamed = unpacked.map_err(WorkshopError::from).and_then(|()| {
            match fs::rename(sandbox.directory().join(&making), &path) {
                // Another build was first.
                Err(_) if path.exists() => sandbox.remove(vec![making.clone()]).map_err(WorkshopError::from),
                other => other.map_err(at(&path)),
            }
        });
        if renamed.is_err() {
            let _ = sandbox.remove(vec![making]);
        }
        renamed.map(|()| held)
    }

    /// Keeps a directory of the sandbox from being tidied away.
    pub(crate) fn hold(&self, name: &str) -> Snapshot {
        let mut held = self.held();
        let count = held.entry(name.to_owned()).or_default();
        *count = count.saturating_add(1);
        Snapshot { workshop: self.clone(), name: name.to_owned() }
    }

    /// The directory of a cache mount, once nobody else has it.
    pub(crate) fn lock(&self, name: &str, is_over: &dyn Fn() -> bool) -> Option<Locked> {
        let mut locks = self.locks();
        while !locks.insert(name.to_owned()) {
            if is_over() {
                return None;
            }
            let (next, _) =
                self.0.freed.wait_timeout(locks, Duration::from_millis(100)).unwrap_or_else(PoisonError::into_inner);
            locks = next;
        }
        Some(Locked { workshop: self.clone(), name: name.to_owned() })
    }

    /// Removes what was not used for longest, until there is no more of each kind than is allowed.
    pub(crate) fn tidy(&self) -> Result<(), WorkshopError> {
        let files = fs::read_dir(&self.0.layers).map_err(at(&self.0.layers))?;
        let mut layers: Vec<(SystemTime, u64, PathBuf)> = files
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let metadata = entry.metadata().ok()?;
                let path = entry.path();
                let is_layer = path.extension().is_some_and(|extension| extension == "tar");
                is_layer.then(|| (metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), path))
            })
            .collect();
        for path in beyond(&mut layers, self.0.most_bytes) {
            // Who has it open reads on.
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&path)(e)),
                _ => {}
            }
        }
        let Ok(sandbox) = self.sandbox() else { return Ok(()) };
        let mut directories = Vec::new();
        for kind in ["snap", "caches"] {
            let dir = sandbox.directory().join(kind);
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let name = format!("{kind}/{}", entry.file_name().to_string_lossy());
                let modified = entry.metadata().and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                directories.push((modified, size_of(&entry.path()), name));
            }
        }
        for name in beyond(&mut directories, self.0.most_bytes) {
            // Held until it is gone: who wants it meanwhile would find half of it.
            let held = self.held();
            let is_locked = self.locks().contains(&name);
            if !held.contains_key(&name) && !is_locked && !name.starts_with("snap/new-") {
                let gone = format!("run/gone-{}", uuid::Uuid::new_v4().simple());
                let from = sandbox.directory().join(&name);
                let renamed = fs::rename(&from, sandbox.directory().join(&gone));
                drop(held);
                renamed.map_err(at(&from))?;
                sandbox.remove(vec![gone])?;
            }
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locks(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blobs that what is noted keeps alive. Notes of projects that are gone, and the oldest beyond `most` bytes, are
/// removed; a blob that nothing else holds goes with the next sweep then.
pub(crate) fn sweep(store: &DirStore, most: u64, projects: &HashSet<String>) -> Result<HashSet<Digest>, StoreError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Note {
        Blob { digest: String, size: u64 },
        Step { layer: Option<MadeLayer> },
    }
    let (mut held, mut all) = (HashSet::new(), 0_u64);
    let mut documents = store.under(ROOT)?;
    documents.sort_by_key(|document| std::cmp::Reverse(document.modified));
    for document in documents {
        let project = document.name.split('/').nth(1).unwrap_or_default();
        let note = store.read(&document.name)?.and_then(|note| serde_json::from_slice::<Note>(&note).ok());
        let (digest, size) = match note {
            Some(Note::Blob { digest, size }) => (Some(digest), size),
            Some(Note::Step { layer }) => layer.map_or((None, 0), |layer| (Some(layer.digest), layer.size)),
            None => (None, 0),
        };
        let digest: Option<Digest> = digest.and_then(|digest| digest.parse().ok());
        // A note has its price, too: a million of empty ones are not free.
        let size = if digest.is_some_and(|digest| held.contains(&digest)) { NOTE } else { size.saturating_add(NOTE) };
        if projects.contains(project) && all.saturating_add(size) <= most {
            held.extend(digest);
            all = all.saturating_add(size);
        } else {
            // Unless a build has just found a use for it.
            store.remove(&document.name, Some(document.modified))?;
        }
    }
    Ok(held)
}

/// What a note costs on a disk, bytes.
const NOTE: u64 = 4096;

fn open_sandbox(options: &Options) -> Result<Sandbox, form_sandbox::Error> {
    let sandbox = Sandbox::with_program(options.data_dir.join("sandbox"), options.first_id, &options.program)?;
    let listed = |kind: &str, is_old: &dyn Fn(&str) -> bool| -> Vec<String> {
        let entries = fs::read_dir(sandbox.directory().join(kind)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| is_old(name)).map(|name| format!("{kind}/{name}")).collect()
    };
    let mut old = listed("run", &|_| true);
    old.extend(listed("snap", &|name| name.starts_with("new-")));
    // Also the first thing that shows whether there can be sandboxes at all.
    sandbox.remove(old)?;
    for kind in ["snap", "run", "caches"] {
        sandbox.make_directory(kind)?;
    }
    Ok(sandbox)
}

/// The oldest of `found`, without which the others are no more than `most` bytes.
fn beyond<T: Ord + Clone>(found: &mut [(SystemTime, u64, T)], most: u64) -> Vec<T> {
    found.sort();
    let mut all = found.iter().fold(0_u64, |sum, (_, bytes, _)| sum.saturating_add(*bytes));
    let mut old = Vec::new();
    for (_, bytes, name) in found.iter() {
        if all <= most {
            break;
        }
        all = all.saturating_sub(*bytes);
        old.push(name.clone());
    }
    old
}

/// Bytes below `path`, as far as it can be looked into.
fn size_of(path: &Path) -> u64 {
    let entries = walkdir::WalkDir::new(path).into_iter().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).fold(0, |sum, found| sum.saturating_add(found.len()))
}

fn at(path: &Path) -> impl Fn(io::Error) -> WorkshopError {
    move |source| WorkshopError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_keep_their_blobs_until_there_are_too_many_or_their_project_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let workshop = crate::testing::workshop(dir.path());
        let store = workshop.store();
        let mut digests = Vec::new();
        for (number, name) in ["mine/step/1", "mine/step/2", "gone/step/3"].into_iter().enumerate() {
            let blob = store.put(&mut &vec![u8::try_from(number).unwrap(); 100_000][..], None).unwrap();
            let digest = blob.digest.to_string();
            let layer = Some(MadeLayer { diff_id: digest.clone(), digest, size: blob.size });
            workshop.note(name, &Made { layer }).unwrap();
            digests.push(blob.digest);
        }
        let projects = HashSet::from(["mine".to_owned()]);
        assert_eq!(sweep(store, 1 << 20, &projects).unwrap(), digests[..2].iter().copied().collect());
        assert!(workshop.recall::<Made>("gone/step/3").unwrap().is_none());
        // What was used last stays.
        assert!(workshop.recall::<Made>("mine/step/1").unwrap().is_some());
        assert_eq!(sweep(store, 150_000, &projects).unwrap(), HashSet::from([digests[0]]));
        assert!(workshop.recall::<Made>("mine/step/2").unwrap().is_none());
    }

    #[test]
    fn a_layer_that_lies_about_its_digest_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let workshop = crate::testing::workshop(dir.path());
        let blob = workshop.store().put(&mut &b"not what was said"[..], None).unwrap();
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        let said = Digest::of(b"what was said");
        let error = workshop.expanded(&said, &blob.digest, media_type).unwrap_err();
        assert!(matches!(error, WorkshopError::Lies { .. }), "{error}");
        assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
        workshop.expanded(&blob.digest, &blob.digest, media_type).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 1);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let mut found = [(at(3), 10, "c"), (at(1), 10, "a"), (at(2), 10, "b")];
        assert_eq!(beyond(&mut found, 25), ["a"]);
        assert_eq!(beyond(&mut found, 30), Vec::<&str>::new());
        assert_eq!(beyond(&mut found, 0), ["a", "b", "c"]);
    }
}
