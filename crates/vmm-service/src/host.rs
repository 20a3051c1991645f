//! What all virtual machines of a node share, and what is done to all of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::accel::{self, Accelerator};
use crate::driver::{Driver, Qemu};
use crate::error::{Result, file};
use crate::store::private_directory;
use crate::users::{self, Users};
use crate::vm::Vm;

/// What all virtual machines of a node share: where their state is, and what they are made with.
#[derive(Debug)]
pub struct Host {
    /// Has a directory for each instance.
    pub instances: PathBuf,
    /// The guests' kernel.
    pub kernel: PathBuf,
    /// The guests' initramfs.
    pub initramfs: PathBuf,
    /// See [`accel::probe`].
    pub accelerator: Accelerator,
    /// The size in bytes at which a console log is rotated; two rotated ones are kept.
    pub console_limit: u64,
    /// Whom the machines run as.
    pub users: Users,
    /// What runs the machines.
    pub driver: Arc<dyn Driver>,
}

impl Host {
    /// A host that keeps its state in `data` and runs QEMU as users of this range, with the accelerator that works; see
    /// [`console_limit`](Self::console_limit).
    ///
    /// # Errors
    /// If `data` cannot be written, or what guests boot is not there.
    pub async fn new(
        data: &Path,
        kernel: &Path,
        initramfs: &Path,
        users: users::Range,
        console_limit: u64,
    ) -> Result<Arc<Self>> {
        let instances = data.join("instances");
        private_directory(&instances)?;
        let canonical = |path: &Path| path.canonicalize().map_err(file("find", path));
        let (instances, kernel, initramfs) = (canonical(&instances)?, canonical(kernel)?, canonical(initramfs)?);
        let users = Users::open(data, users)?;
        users.retain(|instance| instances.join(instance).exists())?;
        let accelerator = accel::probe(data, &kernel, &initramfs, &users).await?;
        let driver = Arc::new(Qemu);
        Ok(Arc::new(Self { instances, kernel, initramfs, accelerator, console_limit, users, driver }))
    }
}

/// Takes up every virtual machine of the host, by [`Vm::open`] or [`Vm::open_stopped`]; those that cannot be are told with
/// their reason.
///
/// # Errors
/// If the directory of the instances cannot be read.
pub fn open_all(host: &Arc<Host>, open: fn(&Arc<Host>, &str) -> Result<Vm>) -> Result<Vec<(String, Result<Vm>)>> {
    let entries = std::fs::read_dir(&host.instances).map_err(file("read", &host.instances))?;
    let uids = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(uids.map(|uid| (uid.clone(), open(host, &uid))).collect())
}
