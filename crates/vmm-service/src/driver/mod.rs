//! What a virtual machine monitor can do for us. There is one: [`Qemu`].

mod qemu;

use std::fs::File;
use std::path::PathBuf;

use async_trait::async_trait;
use form_guest::MacAddr;

use crate::accel::Accelerator;
use crate::error::Result;
use crate::store::Store;

pub use qemu::Qemu;

/// All that a monitor has to know, besides the files of the instance's directory.
#[derive(Clone, Debug)]
pub struct Machine {
    /// For a person who lists processes.
    pub name: String,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// A Linux kernel.
    pub kernel: PathBuf,
    /// The initramfs with form-init.
    pub initramfs: PathBuf,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// What `root.qcow2` lies over. With it, that and `config.raw` are attached.
    pub base: Option<PathBuf>,
    /// The tap and the guest's address of each network card.
    pub taps: Vec<(String, MacAddr)>,
    /// The user of its process; `None`: ours.
    pub user: Option<u32>,
}

/// Starts machines, and finds those that run already.
#[async_trait]
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// Starts a machine. It must not run yet; [`Driver::adopt`] tells.
    ///
    /// # Errors
    /// If it does not come far enough to be spoken to. Then it does not run.
    async fn start(&self, store: &Store, machine: &Machine) -> Result<Box<dyn Running>>;

    /// Finds the machine of this directory, whoever started it; `None` if it does not run.
    ///
    /// # Errors
    /// If it runs and cannot be spoken to.
    async fn adopt(&self, store: &Store) -> Result<Option<Box<dyn Running>>>;
}

/// A machine that was running when it was last seen. Dropping this does nothing to it.
#[async_trait]
pub trait Running: Send + Sync + std::fmt::Debug {
    /// Its process.
    fn pid(&self) -> u32;

    /// Presses its power button. That the guest obeys is another matter.
    async fn powerdown(&self) -> Result<()>;

    /// Ends it at once, as a loss of power would.
    fn kill(&self) -> Result<()>;

    /// Waits until it has ended. May be given up and called again.
    async fn wait(&self) -> Result<()>;

    /// Whether its processors run, as opposed to being paused or having failed.
    async fn is_running(&self) -> Result<bool>;

    /// Goes on with its console in this file, which is open for appending.
    async fn reopen_console(&self, log: File) -> Result<()>;
}
