//! Drives the virtual machine of one spec until it is killed: `solo DATA GUEST SPEC.json`.
//!
//! Prints a line for each phase. The tests kill it at the worst moments; it is also the shortest way to see a machine
//! boot by hand.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use vmm_service::driver::Qemu;
use vmm_service::net::Network;
use vmm_service::{Accelerator, Host, Vm};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, guest, spec] = arguments.as_slice() else { bail!("usage: solo DATA GUEST SPEC.json") };
    let spec = serde_json::from_slice(&std::fs::read(spec)?).context("the spec")?;
    let guest = Path::new(guest);
    let host = Arc::new(Host {
        instances: Path::new(data).to_owned(),
        kernel: guest.join("vmlinuz"),
        initramfs: guest.join("initramfs"),
        accelerator: Accelerator::Tcg,
        network: Network::connect()?,
        driver: Arc::new(Qemu),
    });
    let vm = Vm::ensure(&host, spec)?;
    let mut status = vm.watch();
    loop {
        let line = format!("{:?}\n", status.borrow_and_update().phase);
        std::io::stdout().write_all(line.as_bytes())?;
        if status.changed().await.is_err() {
            return Ok(());
        }
    }
}
