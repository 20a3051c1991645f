//! `cargo xtask`: everything a developer runs.
#![forbid(unsafe_code)]

mod cpio;
mod guest;
mod host;
mod modules;
mod openapi;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build what a guest boots: a kernel, and an initramfs with form-init.
    Guest {
        /// Where vmlinuz, initramfs and the examples' contexts go.
        #[arg(long, default_value = "target/guest-image")]
        out: PathBuf,
    },
    /// Write docs/openapi.yaml anew.
    Openapi,
    /// Install what the tests of virtual machines need on this machine.
    Setup,
}

fn main() -> anyhow::Result<()> {
    // Every path here is seen from the workspace's root, wherever cargo was called.
    if let Some(here) = std::env::var_os("CARGO_MANIFEST_DIR") {
        std::env::set_current_dir(PathBuf::from(here).join("../..")).context("cannot enter the workspace")?;
    }
    match Args::parse().task {
        Task::Guest { out } => {
            let guest = guest::build(&out)?;
            host::say(format_args!("{}\n{}", guest.kernel.display(), guest.initramfs.display()));
            Ok(())
        }
        Task::Openapi => openapi::write(),
        Task::Setup => host::ensure_packages(&host::VIRTUAL_MACHINES),
    }
}
