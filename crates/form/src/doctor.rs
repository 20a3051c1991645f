//! `form doctor`: what this machine lacks, and the one command that mends it.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::cli;
use crate::error::Error;
use crate::output::say;
use crate::up::Config;

/// One thing that is needed: what it is, and, where it is missing, why it matters and how to get it.
struct Check {
    what: String,
    mend: Option<String>,
}

pub(crate) fn doctor(flags: &cli::Up) -> Result<(), Error> {
    let config = Config::of(flags)?;
    let checks = checks(&config);
    for check in &checks {
        match &check.mend {
            None => say(format_args!("ok       {}", check.what))?,
            Some(mend) => say(format_args!("missing  {}\n         {mend}", check.what))?,
        }
    }
    let missing = checks.iter().filter(|check| check.mend.is_some()).count();
    if missing == 0 {
        say("\nthis machine can run the cloud")
    } else {
        Err(Error::Failed(format!("{missing} things are missing")))
    }
}

fn checks(config: &Config) -> Vec<Check> {
    let check = |what: String, fine: bool, mend: String| Check { what, mend: (!fine).then_some(mend) };
    let mut checks = Vec::new();
    for (program, package, why) in [
        ("qemu-system-x86_64", "qemu-system-x86", "runs the machines"),
        ("qemu-img", "qemu-utils", "makes their disks"),
        ("nft", "nftables", "says who may reach whom"),
    ] {
        let mend = format!("apt-get install --no-install-recommends {package}");
        checks.push(check(format!("{program}, which {why}"), find(program).is_some(), mend));
    }
    for file in ["vmlinuz", "initramfs"] {
        let path = config.guest_dir.join(file);
        let mend = format!("cargo xtask guest --out {}", config.guest_dir.display());
        checks.push(check(format!("the guests' {file}, {}", path.display()), path.is_file(), mend));
    }
    let root = nix::unistd::geteuid().is_root();
    checks.push(check("the right to make network interfaces".to_owned(), root, "run form as root".to_owned()));
    let tun = Path::new("/dev/net/tun").exists();
    checks.push(check("/dev/net/tun, for the machines' network".to_owned(), tun, "modprobe tun".to_owned()));
    for (port, service) in [
        (config.state_port, "form-state"),
        (config.net_port, "formnet"),
        (config.vmm_port, "vmm-service"),
        (config.pack_port, "form-pack-manager"),
        (config.dns_admin_port, "form-dns, for health and metrics"),
        (config.dns_port, "form-dns"),
    ] {
        let address = SocketAddr::new(config.address, port);
        let free = TcpListener::bind(address);
        let mend = match &free {
            Ok(_) => String::new(),
            Err(error) => format!("{error}; `ss -ltnp 'sport = {port}'` says who has it (this cloud, if it is up)"),
        };
        checks.push(check(format!("{address}, for {service}"), free.is_ok(), mend));
    }
    checks
}

fn find(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).map(|dir| dir.join(program)).find(|path| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}
