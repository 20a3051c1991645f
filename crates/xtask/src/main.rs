//! `cargo xtask`: everything a developer runs.
#![forbid(unsafe_code)]

mod bench;
mod cpio;
mod demo;
mod deploy;
mod guest;
mod host;
mod modules;
mod nix_check;
mod openapi;
mod table;
mod test;

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
    /// Set everything up, bring a cloud up, run examples/hello in it, get its page by its name, and take it all down.
    Demo,
    /// Set everything up and run every test.
    Test,
    /// Measure the cloud beside its peers, and print the table.
    Bench {
        /// Only one part: machines, watch, names, registry, writes or mesh.
        only: Option<String>,
    },
    /// Build what a guest boots: a kernel, and an initramfs with form-init.
    Guest {
        /// Where vmlinuz, initramfs and the examples' contexts go [default: target/guest-image]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Pack an initramfs out of what was built elsewhere.
    #[command(hide = true)]
    Initramfs {
        /// form-init, linked statically
        #[arg(long)]
        init: PathBuf,
        /// The kernel's /lib/modules/VERSION, with modules that are not compressed
        #[arg(long)]
        modules: PathBuf,
        #[arg(long)]
        out: PathBuf,
    },
    /// Write deploy/ and the table in docs/images.md anew, out of nix/services.nix.
    Deploy {
        /// Only compare, and fail if one is another.
        #[arg(long)]
        check: bool,
    },
    /// Check the flake: all of it with nix and FORMATION_NIXPKGS, and what can be without.
    NixCheck,
    /// Write docs/openapi.yaml anew.
    Openapi,
    /// Install what virtual machines and builds need on this machine.
    Setup,
}

fn main() -> anyhow::Result<()> {
    // Every path here is seen from the workspace's root, wherever cargo was called.
    // Where it runs without cargo, it was called there.
    if let Some(here) = std::env::var_os("CARGO_MANIFEST_DIR") {
        std::env::set_current_dir(PathBuf::from(here).join("../..")).context("cannot enter the workspace")?;
    }
    match Args::parse().task {
        Task::Demo => demo::demo(),
        Task::Test => test::test(),
        Task::Bench { only } => bench::bench(only.as_deref()),
        Task::Guest { out } => {
            let guest = guest::build(&out.unwrap_or_else(guest::default_out))?;
            host::say(format_args!("{}\n{}", guest.kernel.display(), guest.initramfs.display()));
            Ok(())
        }
        Task::Initramfs { init, modules, out } => guest::pack(&init, &modules, &out),
        Task::Deploy { check } => deploy::deploy(check),
        Task::NixCheck => nix_check::nix_check(),
        Task::Openapi => openapi::write(),
        Task::Setup => host::ensure_packages(&[&host::VIRTUAL_MACHINES[..], &host::NETWORKS, &host::BUILDS].concat()),
    }
}
