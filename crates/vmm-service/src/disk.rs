//! The disks of a virtual machine.

use std::path::Path;
use std::process::Stdio;

use form_guest::GuestConfig;
use form_service::file::{TEMPORARY, sync_directory};
use tokio::process::Command;

use crate::atomic;
use crate::error::{Error, Result, file};

/// Makes a copy-on-write disk over `base`, unless `overlay` is there: then it holds what the guest wrote, and stays.
///
/// It does not name `base`: QEMU is given that with it, and never follows a name that it read in a file which a guest's
/// QEMU can write.
///
/// `size_mib` is the least size; the disk is never smaller than `base`.
///
/// # Errors
/// If `base` cannot be read, or qemu-img fails.
pub async fn ensure_overlay(base: &Path, overlay: &Path, size_mib: u64) -> Result<()> {
    if overlay.exists() {
        return Ok(());
    }
    let length = base.metadata().map_err(file("read", base))?.len();
    let size = length.max(size_mib.saturating_mul(1 << 20));
    // Only a disk that is complete gets the name: whoever finds the name may boot from it. Until then its name is random:
    // the qemu-img of one who was killed may still write.
    let directory = overlay.parent().unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory);
    let temporary = temporary.map_err(file("make a file in", directory))?.into_temp_path();
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&temporary)
        .arg(size.to_string())
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(file("run", "qemu-img"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Tool { program: "qemu-img", message });
    }
    let finish = || {
        std::fs::File::open(&temporary)?.sync_all()?;
        temporary.persist(overlay)?;
        sync_directory(directory)
    };
    finish().map_err(file("make", overlay))
}

/// Writes the config drive.
///
/// # Errors
/// If `config` is invalid or too large, or the file cannot be written.
pub fn write_config(path: &Path, config: &GuestConfig) -> Result<()> {
    atomic::write(path, &form_guest::encode(config)?)
}
