//! What can be set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use form_client::Endpoint;
use form_service::logs::LogConfig;
use serde::{Deserialize, Serialize};

/// Between what systemd gives to containers (to 1_879_048_191) and to foreign images (from 2_147_352_576), and far from
/// what people and subuid have.
pub const MACHINE_UIDS: [u32; 2] = [2_000_000_000, 2_000_065_535];

/// Whether a range can be given to machines, and if not, why.
///
/// # Errors
/// A sentence that names the key.
pub fn check_machine_uids([first, last]: [u32; 2]) -> Result<(), String> {
    // The kernel's own meanings: root, nobody, and "no change".
    let special = first == 0 || (first..=last).contains(&65_534) || last == u32::MAX;
    if first > last || special {
        return Err(format!(
            "machine_uids: {first} to {last} is no range of free users; give the first and the last, as in \
             [{}, {}]",
            MACHINE_UIDS[0], MACHINE_UIDS[1]
        ));
    }
    Ok(())
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where consoles are read.
    pub listen: SocketAddr,
    /// Where others find that: `https://ADDRESS:PORT`.
    pub public_url: String,
    /// Where this node's package store answers.
    pub pack_url: String,
    /// form-state.
    pub state: Endpoint,
    /// This node's name.
    pub node: String,
    /// The machines' disks, logs and state, and the root disks that they are made from.
    pub data_dir: PathBuf,
    /// Has the guests' vmlinuz and initramfs.
    pub guest_dir: PathBuf,
    /// The zone of the cluster's own names, which guests search.
    pub zone: String,
    /// The size at which a console's log is rotated, KiB; two rotated ones are kept.
    pub console_kib: u32,
    /// The users that machines run as, each as one of its own: the first and the last. Nobody else's, and of this
    /// vmm-service alone. Where it may not change users, machines have its own.
    pub machine_uids: [u32; 2],
    /// What instances may have together; 0: what the machine has.
    pub memory_mib: u32,
    pub vcpu: u32,
    /// ca.pem, cert.pem, key.pem.
    pub identity_dir: PathBuf,
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3002)),
            public_url: "https://127.0.0.1:3002".to_owned(),
            pack_url: "https://127.0.0.1:3003".to_owned(),
            state: Endpoint::default(),
            node: "node".to_owned(),
            data_dir: "/var/lib/formation/machines".into(),
            guest_dir: "/var/lib/formation/kernel".into(),
            zone: "formation.internal".to_owned(),
            console_kib: 4096,
            machine_uids: MACHINE_UIDS,
            memory_mib: 0,
            vcpu: 0,
            identity_dir: "/etc/formation/vmm-service/tls".into(),
            log: LogConfig::default(),
        }
    }
}

impl Config {
    /// Bytes.
    pub(crate) fn console_limit(&self) -> u64 {
        u64::from(self.console_kib) << 10
    }
}

impl form_service::Config for Config {
    const SERVICE: &'static str = "vmm-service";

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn identity_dir(&self) -> &Path {
        &self.identity_dir
    }

    fn probes(&self) -> SocketAddr {
        self.listen
    }

    fn check(&self) -> Result<(), String> {
        for (key, url) in [("public_url", &self.public_url), ("pack_url", &self.pack_url)] {
            if !url.starts_with("https://") {
                return Err(format!("{key}: {url:?} does not start with https://"));
            }
        }
        if self.console_kib == 0 {
            return Err("console_kib: 0 would keep nothing; give at least 1".to_owned());
        }
        check_machine_uids(self.machine_uids)
    }
}
