//! An instance's directory: everything of it that survives this process.
//!
//! | file | written by | what |
//! | --- | --- | --- |
//! | `lock` | | held by the daemon that drives the instance |
//! | `alive` | | held by the QEMU of the instance, from before its first instruction to its end |
//! | `wanted.json` | us | the spec, and what is to become of it. With it the instance exists |
//! | `state.json` | us | restarts, and how the last run ended |
//! | `root.qcow2`, `config.raw` | us | the disks |
//! | `qmp.sock`, `qemu.log` | QEMU | control, and last words |
//! | `console.log`, `.1`, `.2` | the guest | its serial console, newest first; see rotate.rs for `console.next` |
//! | `reports.jsonl` | the guest | [`form_guest::Report`]s of the current run |
//!
//! All of it is ours, and for us alone. QEMU, which runs as another user, opens none of it: it is given descriptors. So
//! there is no name here that a guest could have planted, whatever it broke out of.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use form_guest::{GuestConfig, MacAddr};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::error::{Error, Result, file};
use crate::restart::RestartPolicy;

/// What a virtual machine is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Unique for ever on this node: letters, digits and `-`, at most 64. Names the directory.
    pub uid: String,
    /// Counts the changes of the spec. A run of another generation is ended and begun anew.
    #[serde(default)]
    pub generation: u64,
    /// The package that `base` was made from, for people.
    #[serde(default)]
    pub package_digest: String,
    /// What the workload listens on, for names.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Virtual processors, 1 to 255.
    pub vcpus: u32,
    /// Memory in MiB, at least 64.
    pub memory_mib: u64,
    /// The root disk's least size in MiB; it is never smaller than `base`.
    pub disk_mib: u64,
    /// A raw ext4 image, which is only read; the machine writes to an overlay.
    pub base: PathBuf,
    /// Network cards, in order.
    pub nics: Vec<Nic>,
    /// What the guest is told.
    pub guest: GuestConfig,
    /// What follows the workload's end.
    pub restart: RestartPolicy,
}

/// A port that the workload listens on, as formation.v1.Port has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// 1 to 65535.
    pub number: u32,
    /// A `formation.v1.Port.Protocol`.
    pub protocol: i32,
}

/// The most network cards that a machine can have.
pub const MOST_NICS: usize = 8;

/// A network card: a tap of this node. It is formnet's, or whoever else made the network; here it is only opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// As the guest sees it, and as its [`form_guest::Interface`] says.
    pub mac: MacAddr,
    /// The tap's name.
    pub tap: String,
}

impl VmSpec {
    /// Checks what does not depend on this machine.
    ///
    /// # Errors
    /// [`Error::InvalidSpec`] or [`Error::Drive`].
    pub fn validate(&self) -> Result<()> {
        let fail = |field, reason| Err(Error::InvalidSpec { field, reason });
        if !is_uid(&self.uid) {
            return fail("uid", "must be 1 to 64 letters, digits and '-'");
        }
        if !(1..=255).contains(&self.vcpus) {
            return fail("vcpus", "must be 1 to 255");
        }
        if !(64..=1 << 24).contains(&self.memory_mib) {
            return fail("memory_mib", "must be at least 64, and less than 16 TiB");
        }
        if self.disk_mib > 1 << 26 {
            return fail("disk_mib", "must be less than 64 TiB");
        }
        if self.nics.len() > MOST_NICS {
            return fail("nics", "must be at most 8");
        }
        form_guest::encode(&self.guest)?;
        Ok(())
    }
}

/// How a run ended. All empty: the machine ended and the guest said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// What the workload gave to `exit`.
    pub code: Option<i32>,
    /// What killed the workload.
    pub signal: Option<i32>,
    /// Why the workload never ran, or why it is not known how it ended.
    pub reason: Option<String>,
}

impl Exit {
    /// Whether the workload exited with 0.
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }
}

/// What is wanted of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) spec: Arc<VmSpec>,
    pub(crate) goal: Goal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    Run,
    Stop,
    Delete,
}

impl Goal {
    pub(crate) fn power(on: bool) -> Self {
        if on { Self::Run } else { Self::Stop }
    }
}

/// What is remembered of an instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// A run was begun and its end is not yet accounted for.
    pub(crate) running: bool,
    /// The generation of the spec that the last run was begun with.
    #[serde(default)]
    pub(crate) generation: u64,
    /// What the overlay lies over.
    #[serde(default)]
    pub(crate) base: Option<PathBuf>,
    /// When the last run began, in seconds since 1970.
    pub(crate) started_at: Option<u64>,
    /// The policy said not to start again, until someone asks.
    pub(crate) finished: bool,
    /// Runs in a row that ended before they were healthy.
    pub(crate) failures: u32,
    /// Restarts since the spec changed.
    pub(crate) restarts: u32,
    /// How the last run ended.
    pub(crate) last_exit: Option<Exit>,
}

/// An instance's directory, and the right to change it.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    _lock: File,
}

impl Store {
    /// Takes the directory, and makes it if it is not there.
    pub(crate) fn create(instances: &Path, uid: &str) -> Result<Self> {
        let directory = instances.join(uid);
        private_directory(&directory)?;
        Self::take(directory)
    }

    /// Takes the directory of an instance that exists.
    pub(crate) fn open(instances: &Path, uid: &str) -> Result<Self> {
        let directory = instances.join(uid);
        if !is_uid(uid) || !directory.is_dir() {
            return Err(Error::NotFound { uid: uid.to_owned() });
        }
        Self::take(directory)
    }

    fn take(directory: PathBuf) -> Result<Self> {
        let path = directory.join("lock");
        let lock = open_lock(&path)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { directory, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked { path: directory }),
            Err(errno) => Err(file("lock", &path)(errno)),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The lock that tells whether a QEMU of this instance lives: `Some` if none does, and then the caller holds it.
    ///
    /// The lock belongs to the open file, not to a process. QEMU gets that file as its standard input, so the lock ends
    /// exactly when QEMU does, whoever started it and whatever happens to us in between. It can only be read there:
    /// nothing can be kept in it.
    pub(crate) fn claim_alive(&self) -> Result<Option<File>> {
        let path = self.file("alive");
        drop(open_lock(&path)?);
        let lock = File::open(&path).map_err(file("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(file("lock", &path)(errno)),
        }
    }

    pub(crate) fn wanted(&self) -> Result<Option<Wanted>> {
        atomic::read_json(&self.file("wanted.json"))
    }

    pub(crate) fn set_wanted(&self, wanted: &Wanted) -> Result<()> {
        atomic::write_json(&self.file("wanted.json"), wanted)
    }

    pub(crate) fn state(&self) -> Result<State> {
        Ok(atomic::read_json(&self.file("state.json"))?.unwrap_or_default())
    }

    pub(crate) fn set_state(&self, state: &State) -> Result<()> {
        atomic::write_json(&self.file("state.json"), state)
    }

    /// Removes a file of the directory, if it is there.
    pub(crate) fn remove_file(&self, name: &str) -> Result<()> {
        let path = self.file(name);
        fs::remove_file(&path).or_else(absent_is_fine).map_err(file("delete", &path))
    }

    /// Removes what was being written when a process before us was killed.
    pub(crate) fn sweep(&self) -> Result<()> {
        let entries = fs::read_dir(&self.directory).map_err(file("read", &self.directory))?;
        let half_done =
            |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(form_service::file::TEMPORARY);
        for entry in entries.flatten().filter(half_done) {
            fs::remove_file(entry.path()).or_else(absent_is_fine).map_err(file("delete", entry.path()))?;
        }
        Ok(())
    }

    /// Removes the directory. `wanted.json` goes last, so that a removal that was cut short is known as one.
    pub(crate) fn remove(&self) -> Result<()> {
        let entries = fs::read_dir(&self.directory).map_err(file("read", &self.directory))?;
        for entry in entries.flatten().filter(|entry| entry.file_name() != "wanted.json") {
            fs::remove_file(entry.path()).or_else(absent_is_fine).map_err(file("delete", entry.path()))?;
        }
        fs::remove_dir_all(&self.directory).or_else(absent_is_fine).map_err(file("delete", &self.directory))
    }
}

fn open_lock(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(file("open", path))
}

/// A file for us alone, which is made where it is not there, and only grows by what is written.
pub(crate) fn append_to(path: &Path) -> Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(file("open", path))
}

/// A directory for us alone, also where it was there before.
pub(crate) fn private_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(file("make", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(file("close to others", path))
}

pub(crate) fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn is_uid(uid: &str) -> bool {
    (1..=64).contains(&uid.len())
        && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !uid.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_one_driver_at_a_time() {
        let instances = tempfile::tempdir().unwrap();
        let store = Store::create(instances.path(), "a").unwrap();
        assert!(matches!(Store::open(instances.path(), "a"), Err(Error::Locked { .. })));
        drop(store);
        assert!(Store::open(instances.path(), "a").is_ok());
    }

    #[test]
    fn an_identifier_cannot_leave_the_directory() {
        let instances = tempfile::tempdir().unwrap();
        for uid in ["..", "", "a/b", "-x", "."] {
            assert!(matches!(Store::open(instances.path(), uid), Err(Error::NotFound { .. })), "{uid}");
        }
    }

    #[test]
    fn the_alive_lock_follows_the_file_and_not_the_store() {
        let instances = tempfile::tempdir().unwrap();
        let store = Store::create(instances.path(), "a").unwrap();
        let qemu = store.claim_alive().unwrap().unwrap();
        drop(store);
        let store = Store::open(instances.path(), "a").unwrap();
        assert!(store.claim_alive().unwrap().is_none());
        drop(qemu);
        assert!(store.claim_alive().unwrap().is_some());
    }
}
