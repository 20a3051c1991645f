//! `cargo xtask bench`: us and the peers, side by side.

use std::ffi::OsStr;

use anyhow::{Result, bail};

use crate::{demo, guest, host};

/// The peers that our store, our registry and our tunnel are measured beside, and who measures the tunnel.
const PEERS: [(&str, &str); 6] = [
    ("etcd", "etcd-server"),
    ("docker-registry", "docker-registry"),
    ("wireguard-go", "wireguard-go"),
    ("wg", "wireguard-tools"),
    ("iperf3", "iperf3"),
    ("ping", "iputils-ping"),
];

pub(crate) fn bench(only: Option<&str>) -> Result<()> {
    let ours = host::VIRTUAL_MACHINES.iter().chain(&host::TOOLS).chain(&host::NETWORKS);
    let wanted: Vec<(&str, &str)> = ours.chain(&PEERS).copied().collect();
    host::ensure_packages(&wanted)?;
    let image = guest::default_out();
    guest::build(&image)?;
    if !host::cargo().args(["build", "--quiet", "--release", "--workspace"]).status()?.success() {
        bail!("cargo build failed");
    }
    let (image, target) = (image.canonicalize()?, host::target_directory().canonicalize()?);
    let scratch = tempfile::tempdir_in(&target)?;
    demo::enter_namespace(scratch.path())?;
    let (form, program) = (target.join("release/form"), target.join("release/form-bench"));
    let paths = [("--form", form.as_path()), ("--guest", image.as_path()), ("--scratch", scratch.path())];
    let mut arguments: Vec<&OsStr> =
        paths.iter().flat_map(|(flag, path)| [OsStr::new(flag), path.as_os_str()]).collect();
    arguments.extend(only.iter().flat_map(|part| [OsStr::new("--only"), OsStr::new(part)]));
    host::run(&program.display().to_string(), &arguments)
}
