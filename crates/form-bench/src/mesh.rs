//! The network of a node: its tunnel beside wireguard-go, and what a change costs among few and among many.
//!
//! ```text
//!   a ── 10.9.0.1 ══ veth ══ 10.9.0.2 ── b     in each of them our tunnel, and wireguard-go
//!   guest ── bridge ── node ── mesh ── far     two members of a network, with the rules between them
//! ```
//! All of it is in namespaces of a process that is process 1 of its own: when that ends, nothing is left.

mod elements;
mod peers;
mod stage;
mod wire;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::Row;

/// The argument of the process that is inside.
pub(crate) const INSIDE: &str = "inside-mesh";

/// Measures in namespaces of its own, and prints the rows.
pub(crate) fn compare() -> Result<()> {
    let done = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        // The shell is process 1: it takes the orphans, as the tunnels' helpers are.
        .args(["sh", "-c", "mount -t tmpfs none /run && ip link set lo up && \"$@\"; exit $?", "sh"])
        .arg(std::env::current_exe()?)
        .arg(INSIDE)
        .status()
        .context("unshare")?;
    ensure!(done.success(), "the mesh cannot be measured: {done}");
    Ok(())
}

/// What the process inside does.
pub(crate) fn inside() -> Result<()> {
    stage::wire()?;
    let rows = [wire::start, wire::throughput, peers::compare, elements::compare];
    for part in rows {
        part()?.iter().for_each(Row::print);
    }
    Ok(())
}
