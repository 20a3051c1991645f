//! What this machine has to have installed.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The programs that booting a virtual machine needs, each with its Debian package.
pub(crate) const VIRTUAL_MACHINES: [(&str, &str); 3] =
    [("qemu-system-x86_64", "qemu-system-x86"), ("qemu-img", "qemu-utils"), ("mke2fs", "e2fsprogs")];

/// What the demo shows the cloud with: a stranger's tools.
pub(crate) const TOOLS: [(&str, &str); 3] = [("dig", "bind9-dnsutils"), ("curl", "curl"), ("ip", "iproute2")];

/// What builds are made with: the base of what their stories run, ids for who is not root, Debian's releases.
pub(crate) const BUILDS: [(&str, &str); 3] =
    [("busybox", "busybox-static"), ("newuidmap", "uidmap"), ("mmdebstrap", "mmdebstrap")];

/// What a node's network is made with.
pub(crate) const NETWORKS: [(&str, &str); 1] = [("nft", "nftables")];

/// The judges that tests ask, where they are there.
pub(crate) const JUDGES: [(&str, &str); 12] = [
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
    ("iperf3", "iperf3"),
    ("tcpdump", "tcpdump"),
    ("ping", "iputils-ping"),
    ("kdig", "knot-dnsutils"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("podman", "podman"),
    ("runc", "runc"),
    ("buildah", "buildah"),
    ("docker-registry", "docker-registry"),
];

/// Sees to it that every program of `(program, Debian package)` is there.
///
/// # Errors
/// Where apt-get cannot be run as root, with the line to run; or if apt-get fails.
pub(crate) fn ensure_packages(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().filter(|(program, _)| !is_installed(program)).map(|&(_, p)| p).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let is_root = output("id", &["-u"]).is_ok_and(|uid| uid.trim() == "0");
    if !is_root || !is_installed("apt-get") {
        bail!(
            "missing: {}; run: sudo apt-get install --no-install-recommends {}",
            missing.join(", "),
            missing.join(" ")
        );
    }
    let mut packages = with_versions(wanted, &missing)?;
    if packages.is_none() {
        run("apt-get", &["update", "-qq"])?;
        packages = with_versions(wanted, &missing)?;
    }
    let Some(packages) = packages else {
        bail!("apt-get knows no source for one of: {}", missing.join(", "));
    };
    say(format_args!("installing {}", packages.join(" ")));
    let mut arguments = vec!["install", "-qq", "--yes", "--no-install-recommends", "--allow-downgrades"];
    arguments.extend(packages.iter().map(String::as_str));
    run("apt-get", &arguments)
}

/// `package=version` for what is missing, and for what else of `wanted` is built from the same sources.
///
/// A sister package may be installed from a source that is listed no more (backports, often), and then apt gives up,
/// or removes the sister: it does not go back to an older version unless it is told to. `None` if the lists are not
/// there yet.
fn with_versions(wanted: &[(&str, &str)], missing: &[&str]) -> Result<Option<Vec<String>>> {
    let sources = missing.iter().map(|package| source(package)).collect::<Result<Vec<_>>>()?;
    let mut packages = Vec::new();
    for &(_, package) in wanted {
        if !sources.contains(&source(package)?) {
            continue;
        }
        // madison tells only what a source can deliver; `policy` would count what is installed as well.
        let available = output("apt-cache", &["madison", package])?;
        let Some(version) = available.lines().next().and_then(|line| line.split('|').nth(1)) else { return Ok(None) };
        packages.push(format!("{package}={}", version.trim()));
    }
    Ok(Some(packages))
}

/// The source package that `package` is built from.
fn source(package: &str) -> Result<String> {
    let shown = output("apt-cache", &["show", "--no-all-versions", package]).unwrap_or_default();
    let line = shown.lines().find_map(|line| line.strip_prefix("Source: "));
    Ok(line.and_then(|line| line.split(' ').next()).unwrap_or(package).to_owned())
}

pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Users' PATH on Debian lacks the directories of mke2fs and its like.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}

/// Runs a program; what it says is for the person who waits.
pub(crate) fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    let status = command.status().with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}

/// Runs a program and returns what it printed.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let done = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    if !done.status.success() {
        bail!("{program} failed ({}): {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    String::from_utf8(done.stdout).with_context(|| format!("{program} printed something else than text"))
}

/// cargo's own idea of the target directory.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

/// cargo, as it called us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Writes `bytes` to `path` whole or not at all, and not if they are there already: build tools look at times.
pub(crate) fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Prints a line for the person who runs xtask.
pub(crate) fn say(message: impl Display) {
    let _ = writeln!(std::io::stdout(), "{message}");
}
