//! One virtual machine, from its creation to its deletion.
//!
//! ```text
//!                 ┌──────────────────────────── start ────────────────────────────┐
//!                 ▼                                                               │
//!   Pending ──▶ Starting ──entrypoint runs──▶ Running ──stop──▶ Stopping ──▶ Stopped / Failed
//!                 ▲   │                         │                                 ▲
//!                 │   ├───────── ended ─────────┤                                 │
//!            delay over                         ├── the policy says no ───────────┘
//!                 │   └─ cannot be made ─┐      │
//!              BackOff ◀─────────────────┴──────┴── the policy says yes    any ──delete──▶ Deleted
//! ```
//!
//! One task owns all of this. It takes `Command`s, and publishes a [`VmStatus`]; nobody else changes anything. What is
//! wanted is on disk before a command is acknowledged, so the task may be killed at any await: `Actor::resume` is
//! where every life of it begins, and it looks at the world before it believes what is written.
//!
//! Dropping the last [`Vm`] ends the task and leaves the machine alone.

mod actor;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{Instrument, info_span};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::logs::LogReader;
use crate::store::{Exit, Goal, Store, VmSpec, Wanted};

use actor::Actor;

/// Where a virtual machine is in its life; see the picture at the head of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Known, and nothing was done yet.
    Pending,
    /// Its disks and network are made, or it boots.
    Starting,
    /// Its entrypoint runs.
    Running,
    /// It was told to stop; or its entrypoint has ended, and the guest goes after it.
    Stopping,
    /// It ended, as was wanted or with success.
    Stopped,
    /// It ended without success and is not started again.
    Failed,
    /// It ended, and is started again after a while.
    BackOff,
    /// Nothing of it is left. No other phase follows.
    Deleted,
}

/// What is known of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmStatus {
    /// See [`Phase`].
    pub phase: Phase,
    /// The monitor's process, while there is one.
    pub pid: Option<u32>,
    /// How often the policy started it again.
    pub restarts: u32,
    /// When the last run began, in seconds since 1970.
    pub started_at: Option<u64>,
    /// How the last run ended.
    pub last_exit: Option<Exit>,
    /// What stands in the way, for a person; it is being tried again.
    pub problem: Option<String>,
    /// What the health check of this run last said; `None`: nothing yet.
    pub health: Option<Health>,
    /// The generation of the spec that all of the above is about.
    pub generation: u64,
    /// What is wanted, which may be of a later generation.
    pub spec: Arc<VmSpec>,
}

/// What a guest says of its workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it serves.
    pub healthy: bool,
    /// What the check wrote, for a person; one line.
    pub output: String,
}

/// A handle to a virtual machine.
#[derive(Clone, Debug)]
pub struct Vm {
    uid: String,
    directory: PathBuf,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<VmStatus>,
}

#[derive(Debug)]
struct Command {
    change: Change,
    done: oneshot::Sender<Result<()>>,
}

#[derive(Debug)]
enum Change {
    /// This goal, and all that the policy has decided is forgotten.
    Goal(Goal),
    /// This goal, unless it is the goal already.
    Power(Goal),
    /// This spec; a run of another generation is ended and begun anew.
    Spec(Arc<VmSpec>, Goal),
}

impl Vm {
    /// Creates a virtual machine; when this returns, what is wanted will be, whatever happens to this process.
    ///
    /// Where it exists, it gets the new spec.
    ///
    /// # Errors
    /// If the spec is invalid, the instance is driven by someone else, or the disk refuses.
    pub fn ensure(host: &Arc<Host>, spec: VmSpec, on: bool) -> Result<Self> {
        spec.validate()?;
        let store = Store::create(&host.instances, &spec.uid)?;
        if let Some(Wanted { goal: Goal::Delete, .. }) = store.wanted()? {
            return Err(Error::NotFound { uid: spec.uid });
        }
        let wanted = Wanted { spec: Arc::new(spec), goal: Goal::power(on) };
        store.set_wanted(&wanted)?;
        Self::spawn(host, store, wanted)
    }

    /// Takes up a virtual machine where it was left, running or not.
    ///
    /// # Errors
    /// If there is none, or it is driven by someone else.
    pub fn open(host: &Arc<Host>, uid: &str) -> Result<Self> {
        let (store, wanted) = Self::found(host, uid)?;
        Self::spawn(host, store, wanted)
    }

    /// The same, and from the first it is wanted to be stopped: one that waits to be started again does not begin. One
    /// that has ended by itself is left as it is, so that it does not begin anew either when it is next wanted on.
    ///
    /// # Errors
    /// As [`Vm::open`]; or if that cannot be written down.
    pub fn open_stopped(host: &Arc<Host>, uid: &str) -> Result<Self> {
        let (store, mut wanted) = Self::found(host, uid)?;
        if wanted.goal == Goal::Run && !store.state()?.finished {
            wanted.goal = Goal::Stop;
            store.set_wanted(&wanted)?;
        }
        Self::spawn(host, store, wanted)
    }

    fn found(host: &Host, uid: &str) -> Result<(Store, Wanted)> {
        let store = Store::open(&host.instances, uid)?;
        match store.wanted()? {
            Some(wanted) => Ok((store, wanted)),
            // Killed between the directory and the file in it: nothing was acknowledged, nothing was made.
            None => {
                store.remove()?;
                Err(Error::NotFound { uid: uid.to_owned() })
            }
        }
    }

    fn spawn(host: &Arc<Host>, store: Store, wanted: Wanted) -> Result<Self> {
        let state = store.state()?;
        let (commands, receiver) = mpsc::channel(16);
        let (sender, status) = watch::channel(VmStatus {
            phase: Phase::Pending,
            pid: None,
            restarts: state.restarts,
            started_at: state.started_at,
            last_exit: state.last_exit.clone(),
            problem: None,
            health: None,
            generation: state.generation,
            spec: Arc::clone(&wanted.spec),
        });
        let uid = wanted.spec.uid.clone();
        let directory = store.path().to_owned();
        let span = info_span!("vm", uid);
        let host = Arc::clone(host);
        let actor = Actor { host, store: Arc::new(store), wanted, state, commands: receiver, status: sender };
        tokio::spawn(actor.run().instrument(span));
        Ok(Self { uid, directory, commands, status })
    }

    /// The spec's `uid`.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Wants it to run: also after its policy gave up, or in the middle of a delay.
    ///
    /// # Errors
    /// If that cannot be written down, or the instance is deleted.
    pub async fn start(&self) -> Result<()> {
        self.ask(Change::Goal(Goal::Run)).await
    }

    /// Wants it to be stopped, in good order: by its power button, and by force after its grace.
    ///
    /// # Errors
    /// If that cannot be written down, or the instance is deleted.
    pub async fn stop(&self) -> Result<()> {
        self.ask(Change::Goal(Goal::Stop)).await
    }

    /// Wants it to be gone, with its disk and its logs, after it is stopped in good order. Cannot be taken back.
    ///
    /// # Errors
    /// If that cannot be written down, or the instance is deleted already.
    pub async fn delete(&self) -> Result<()> {
        self.ask(Change::Goal(Goal::Delete)).await
    }

    /// Wants it on or off. To say what was said before changes nothing: a policy that gave up has still given up.
    ///
    /// # Errors
    /// If that cannot be written down, or the instance is deleted.
    pub async fn set_power(&self, on: bool) -> Result<()> {
        self.ask(Change::Power(Goal::power(on))).await
    }

    /// Wants it to be as `spec` says, on or off. A run of another generation is ended in good order and begun anew.
    ///
    /// # Errors
    /// If the spec is invalid or another instance's, if it cannot be written down, or the instance is deleted.
    pub async fn update(&self, spec: VmSpec, on: bool) -> Result<()> {
        spec.validate()?;
        if spec.uid != self.uid {
            return Err(Error::InvalidSpec { field: "uid", reason: "never changes; create another instance" });
        }
        self.ask(Change::Spec(Arc::new(spec), Goal::power(on))).await
    }

    async fn ask(&self, change: Change) -> Result<()> {
        let gone = || Error::NotFound { uid: self.uid.clone() };
        let (done, answer) = oneshot::channel();
        self.commands.send(Command { change, done }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// What is known of it now.
    pub fn status(&self) -> VmStatus {
        self.status.borrow().clone()
    }

    /// What is known of it, as it changes. Closes after [`Phase::Deleted`].
    pub fn watch(&self) -> watch::Receiver<VmStatus> {
        self.status.clone()
    }

    /// Its console: the last `tail` lines, or all that is kept; with `follow`, also what comes.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub async fn logs(&self, tail: Option<usize>, follow: bool) -> Result<LogReader> {
        LogReader::open(&self.directory, tail, follow).await
    }
}
