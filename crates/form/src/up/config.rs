//! What can be set of `form up`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use form_service::logs::LogConfig;
use serde::{Deserialize, Serialize};

use crate::cli;
use crate::error::Error;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    /// Has vmlinuz and initramfs.
    pub(crate) guest_dir: PathBuf,
    /// This node's name; empty: the host's.
    pub(crate) node: String,
    /// Where the services listen, and find each other.
    pub(crate) address: IpAddr,
    pub(crate) state_port: u16,
    pub(crate) vmm_port: u16,
    pub(crate) pack_port: u16,
    pub(crate) dns_admin_port: u16,
    pub(crate) dns_port: u16,
    /// formnet: how the mesh is, and WireGuard's port, UDP.
    pub(crate) net_port: u16,
    pub(crate) mesh_port: u16,
    /// Where others reach the latter from outside, where that is no address of this machine's own.
    pub(crate) mesh_endpoints: Vec<SocketAddr>,
    /// The largest packet of the mesh, bytes; 0: what the links leave.
    pub(crate) mesh_mtu: u32,
    pub(crate) zone: String,
    /// The size at which a console's log is rotated, KiB; two rotated ones are kept.
    pub(crate) console_kib: u32,
    /// The users that machines run as: the first and the last; nobody else's, and of this cloud alone.
    pub(crate) machine_uids: [u32; 2],
    /// Where `FROM debian:SUITE` comes from; empty: from Debian's own servers, with the suite's security updates.
    pub(crate) debian_mirror: String,
    /// `HOST[:PORT]` of the registries that a FROM may name though they are at addresses that are not public.
    pub(crate) registries: Vec<String>,
    /// `HOST[:PORT]` of those that are asked without TLS.
    pub(crate) insecure_registries: Vec<String>,
    pub(crate) log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/formation".into(),
            guest_dir: "/var/lib/formation/kernel".into(),
            node: String::new(),
            address: Ipv4Addr::LOCALHOST.into(),
            state_port: 3004,
            vmm_port: 3002,
            pack_port: 3003,
            dns_admin_port: 3005,
            dns_port: 53,
            net_port: 3001,
            mesh_port: 51820,
            mesh_endpoints: Vec::new(),
            mesh_mtu: 0,
            zone: "formation.internal".to_owned(),
            console_kib: 4096,
            machine_uids: vmm_service::MACHINE_UIDS,
            debian_mirror: String::new(),
            registries: Vec::new(),
            insecure_registries: Vec::new(),
            log: LogConfig::default(),
        }
    }
}

impl form_service::Config for Config {
    const SERVICE: &'static str = "form-up";

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn identity_dir(&self) -> &Path {
        &self.data_dir
    }

    /// form-state's: without it there is no cloud.
    fn probes(&self) -> SocketAddr {
        self.at(self.state_port)
    }

    fn check(&self) -> Result<(), String> {
        if self.address.is_unspecified() {
            return Err(format!("address: {} is no address that services could find each other by", self.address));
        }
        if self.console_kib == 0 {
            return Err("console_kib: 0 would keep nothing; give at least 1".to_owned());
        }
        vmm_service::check_machine_uids(self.machine_uids)?;
        form_pack_manager::Config { debian_mirror: self.debian_mirror.clone(), ..Default::default() }.check()?;
        let mesh = formnet::Config { port: self.mesh_port, mtu: self.mesh_mtu, ..Default::default() };
        // The keys have another name here, and the sentence after it is the same.
        mesh.check().map_err(|sentence| format!("mesh_{sentence}"))
    }
}

impl Config {
    pub(crate) fn of(flags: &cli::Up) -> Result<Self, Error> {
        super::sources(flags).load().map_err(|error| Error::Usage(form_service::run::chain(&error)))
    }

    pub(crate) fn node(&self) -> String {
        if !self.node.is_empty() {
            return self.node.clone();
        }
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().to_lowercase();
        let label: String = host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
        let label = label.trim_matches('-');
        if label.is_empty() { "node".to_owned() } else { label.to_owned() }
    }

    pub(super) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    pub(super) fn url(&self, port: u16) -> String {
        format!("https://{}", self.at(port))
    }

    pub(super) fn dir(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }
}
