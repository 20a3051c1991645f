//! `cargo xtask test`: all set-up, and then every test there is.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::host::{self, say};
use crate::{guest, nix_check};

pub(crate) fn test() -> Result<()> {
    let wanted: [&[(&str, &str)]; 5] =
        [&host::VIRTUAL_MACHINES, &host::NETWORKS, &host::TOOLS, &host::BUILDS, &host::JUDGES];
    host::ensure_packages(&wanted.concat())?;
    let guest = guest::default_out();
    guest::build(&guest)?;

    step(host::cargo().args(["fmt", "--check"]))?;
    step(host::cargo().args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    // As the flake's check does: a link that leads nowhere is found before a page has it.
    step(host::cargo().args(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "--deny warnings"))?;
    if host::output("cargo", &["deny", "--version"]).is_ok() {
        step(host::cargo().args(["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]))?;
    } else {
        say(
            "skipped: cargo-deny is not installed, so licences and duplicate versions were not checked; run: cargo install --locked cargo-deny",
        );
    }
    nix_check::nix_check()?;
    // The guest's directory is seen from wherever a test runs.
    let guest = guest.canonicalize().with_context(|| format!("cannot find {}", guest.display()))?;
    step(host::cargo().args(["test", "--workspace", "--no-fail-fast"]).env("FORMATION_GUEST", guest))
}

fn step(command: &mut Command) -> Result<()> {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    say(format_args!("== cargo {}", words.join(" ")));
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} failed ({status})", words.join(" "));
    }
    Ok(())
}
