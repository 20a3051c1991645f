//! Measures the cloud beside its peers, on the same machine, disk and work, one after the other and more than once.
//!
//! Prints a Markdown table. Nothing here passes or fails: machines are noisy, and a person reads the ratios.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the table is what this program is for")]

mod cloud;
mod connection;
mod machines;
mod mesh;
mod names;
mod registry;
mod watch;
mod writes;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::cloud::Cloud;

#[derive(Parser)]
struct Args {
    /// The command `form`, built for release.
    #[arg(long)]
    form: PathBuf,
    /// What `cargo xtask guest` made.
    #[arg(long)]
    guest: PathBuf,
    /// Where the databases go: both on one disk.
    #[arg(long)]
    scratch: PathBuf,
    /// Only this part, for a profiler's sake.
    #[arg(long)]
    only: Option<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Machines,
    Mesh,
    Watch,
    Names,
    Registry,
    Writes,
}

/// A row of the table.
struct Row {
    what: &'static str,
    ours: String,
    peer: String,
    ratio: String,
}

fn main() -> Result<()> {
    // Where the kernel has no WireGuard, a tunnel is this program, run again.
    formnet::entry();
    if std::env::args().nth(1).as_deref() == Some(mesh::INSIDE) {
        return mesh::inside();
    }
    let args = Args::parse();
    println!("| what | Formation | peer | ratio |");
    println!("| --- | --- | --- | --- |");
    if args.only != Some(Part::Mesh) {
        cloud(&args)?;
    }
    if args.only.is_none_or(|only| only == Part::Mesh) {
        mesh::compare()?;
    }
    Ok(())
}

// One thread: the load is to leave the processors to what it measures.
#[tokio::main(flavor = "current_thread")]
async fn cloud(args: &Args) -> Result<()> {
    form_service::run::init_process();
    let dir = tempfile::tempdir_in(&args.scratch)?;
    let mut cloud = Cloud::up(&args.form, &args.guest, &dir.path().join("cloud")).await?;
    Row::alone("form up to ready, first start", format!("{:.2} s", cloud.took.as_secs_f64())).print();
    cloud.down().await?;
    let mut cloud = Cloud::up(&args.form, &args.guest, &dir.path().join("cloud")).await?;
    Row::alone("form up to ready, second start", format!("{:.2} s", cloud.took.as_secs_f64())).print();
    Row::alone("whole control plane, resident when idle", format!("{:.1} MiB", cloud.resident_mib()?)).print();

    let wanted = |part| args.only.is_none_or(|only| only == part);
    if wanted(Part::Machines) {
        for row in machines::compare(&cloud, &args.guest).await? {
            row.print();
        }
    }
    if wanted(Part::Watch) {
        watch::delivery(&cloud).await?.print();
    }
    if wanted(Part::Names) {
        names::change(&cloud).await?.print();
    }
    if wanted(Part::Registry) {
        for row in registry::compare(&cloud, dir.path()).await? {
            row.print();
        }
    }
    if wanted(Part::Writes) {
        writes::compare(&cloud, dir.path()).await?.print();
    }
    Row::alone("whole control plane, resident after all this", format!("{:.1} MiB", cloud.resident_mib()?)).print();
    cloud.down().await
}

impl Row {
    fn alone(what: &'static str, ours: String) -> Self {
        Self { what, ours, peer: String::new(), ratio: String::new() }
    }

    fn print(&self) {
        println!("| {} | {} | {} | {} |", self.what, self.ours, self.peer, self.ratio);
    }
}

/// The value below which `part` of all are; of none, zero.
fn quantile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64) * part) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
