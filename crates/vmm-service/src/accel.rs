//! What runs the guests' instructions on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use form_guest::Report;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::atomic;
use crate::driver::{Driver, Machine, Qemu};
use crate::error::{Error, Result, file};
use crate::reports::Reports;
use crate::store::Store;
use crate::users::Users;
use crate::watch::DirectoryWatch;

/// A kernel under KVM is in userspace within a second or two.
const PROBE_LIMIT: Duration = Duration::from_secs(8);

/// The machine that is booted for it.
const PROBE: &str = "kvm-probe";

/// See the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor, by way of /dev/kvm.
    Kvm,
    /// QEMU's translator: works everywhere, ten to fifty times slower.
    Tcg,
}

#[derive(Serialize, Deserialize)]
struct Cached {
    /// /proc/sys/kernel/random/boot_id: another boot may have another kernel, or other hardware.
    boot_id: String,
    kernel: PathBuf,
    accelerator: Accelerator,
}

/// Finds out which accelerator works, by booting the guest's own kernel with it. The answer is kept in `data` until
/// the machine boots again.
///
/// That /dev/kvm is there proves nothing: nested and paravirtual ones take a virtual machine and never finish its boot.
///
/// # Errors
/// If the answer cannot be kept. That KVM does not work is no error.
pub async fn probe(data: &Path, kernel: &Path, initramfs: &Path, users: &Users) -> Result<Accelerator> {
    let id = Path::new("/proc/sys/kernel/random/boot_id");
    let boot_id = fs::read_to_string(id).map_err(file("read", id))?.trim().to_owned();
    fs::create_dir_all(data).map_err(file("make", data))?;
    let cache = data.join("accelerator.json");
    // A damaged cache is asked for again, like none.
    if let Ok(Some(cached)) = atomic::read_json::<Cached>(&cache)
        && cached.boot_id == boot_id
        && cached.kernel == kernel
    {
        return Ok(cached.accelerator);
    }
    let accelerator = match boots_under_kvm(data, kernel, initramfs, users).await {
        Ok(true) => Accelerator::Kvm,
        Ok(false) => {
            warn!("KVM does not boot a guest on this machine; using TCG, which is slow");
            Accelerator::Tcg
        }
        // Somebody else is about to find out; their answer is not ours to write.
        Err(error @ Error::Locked { .. }) => return Err(error),
        Err(error) => {
            info!(error = &error as &dyn std::error::Error, "no KVM on this machine; using TCG, which is slow");
            Accelerator::Tcg
        }
    };
    atomic::write_json(&cache, &Cached { boot_id, kernel: kernel.to_owned(), accelerator })?;
    Ok(accelerator)
}

async fn boots_under_kvm(data: &Path, kernel: &Path, initramfs: &Path, users: &Users) -> Result<bool> {
    let device = Path::new("/dev/kvm");
    fs::OpenOptions::new().read(true).write(true).open(device).map_err(file("open", device))?;
    let store = Store::create(data, PROBE)?;
    let machine = Machine {
        name: PROBE.into(),
        accelerator: Accelerator::Kvm,
        kernel: kernel.to_owned(),
        initramfs: initramfs.to_owned(),
        vcpus: 1,
        memory_mib: 256,
        base: None,
        taps: Vec::new(),
        // A machine's user may not be let to the device where we are.
        user: users.claim(PROBE)?,
    };
    // One that was left by a daemon that was killed.
    if let Some(left) = Qemu.adopt(&store).await? {
        left.kill()?;
        left.wait().await?;
    }
    let booted = boots(&store, &machine).await;
    store.remove()?;
    users.release(PROBE)?;
    booted
}

async fn boots(store: &Store, machine: &Machine) -> Result<bool> {
    let reports = store.file("reports.jsonl");
    Reports::clear(&reports)?;
    let mut reports = Reports::new(reports);
    let mut watch = DirectoryWatch::new(store.path())?;
    let running = Qemu.start(store, machine).await?;
    let reaches_userspace = async {
        loop {
            if reports.read()?.contains(&Report::Booting) {
                return Ok::<bool, Error>(true);
            }
            tokio::select! {
                changed = watch.changed() => changed?,
                ended = running.wait() => return ended.map(|()| false),
            }
        }
    };
    let booted = tokio::time::timeout(PROBE_LIMIT, reaches_userspace).await.unwrap_or(Ok(false));
    running.kill()?;
    running.wait().await?;
    booted
}
