//! Measures the cloud beside its peers, on the same machine, disk and work, one after the other and more than once.
//!
//! Prints a Markdown table. Nothing here passes or fails: machines are noisy, and a person reads the ratios.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the table is what this program is for")]

mod cloud;
mod machines;
mod names;
mod watch;
mod writes;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

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
}

/// A row of the table.
struct Row {
    what: &'static str,
    ours: String,
    peer: String,
    ratio: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    form_service::run::init_process();
    let dir = tempfile::tempdir_in(&args.scratch)?;
    let mut rows = Vec::new();

    let mut cloud = Cloud::up(&args.form, &args.guest, &dir.path().join("cloud")).await?;
    rows.push(Row::alone("form up to ready, first start", format!("{:.2} s", cloud.took.as_secs_f64())));
    cloud.down().await?;
    let mut cloud = Cloud::up(&args.form, &args.guest, &dir.path().join("cloud")).await?;
    rows.push(Row::alone("form up to ready, second start", format!("{:.2} s", cloud.took.as_secs_f64())));
    rows.push(Row::alone("whole control plane, resident when idle", format!("{:.1} MiB", cloud.resident_mib()?)));

    rows.push(writes::compare(&cloud, dir.path()).await?);
    rows.push(watch::delivery(&cloud).await?);
    rows.push(names::change(&cloud).await?);
    rows.extend(machines::compare(&cloud, &args.guest).await?);
    rows.push(Row::alone("whole control plane, resident after all this", format!("{:.1} MiB", cloud.resident_mib()?)));
    cloud.down().await?;

    println!("| what | Formation | peer | ratio |");
    println!("| --- | --- | --- | --- |");
    for row in rows {
        println!("| {} | {} | {} | {} |", row.what, row.ours, row.peer, row.ratio);
    }
    Ok(())
}

impl Row {
    fn alone(what: &'static str, ours: String) -> Self {
        Self { what, ours, peer: String::new(), ratio: String::new() }
    }
}

/// The value below which `part` of all are; of none, zero.
fn quantile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64) * part) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
