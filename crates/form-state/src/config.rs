//! What can be set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use form_service::logs::LogConfig;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::cluster;

/// RFC 6598: shared address space, which no other network of a machine is likely to use.
pub const IPV4_RANGE: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(100, 64, 0, 0), 10);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// REST and gRPC.
    pub listen: SocketAddr,
    /// The database, and the first admin's token.
    pub data_dir: PathBuf,
    /// ca.pem, cert.pem, key.pem.
    pub identity_dir: PathBuf,
    /// Has ca.pem and ca.key, the cluster's CA, with which machines are let in that join. Empty: this form-state signs
    /// nothing. A cluster.toml there says what the cluster's ranges are.
    pub authority_dir: PathBuf,
    /// Instances get their IPv4 addresses from here; each node takes a /24 of it. Decided when the cluster starts.
    pub ipv4_range: Ipv4Net,
    /// Revisions of the log that are kept for watches.
    pub history: u64,
    /// The most that the database may take on the disk.
    pub max_mib: u64,
    /// How much more vCPU instances may have together than their node has.
    pub cpu_overcommit: f64,
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3004)),
            data_dir: "/var/lib/formation/state".into(),
            identity_dir: "/etc/formation/form-state/tls".into(),
            authority_dir: PathBuf::new(),
            ipv4_range: IPV4_RANGE,
            history: 100_000,
            max_mib: 8192,
            cpu_overcommit: 4.0,
            log: LogConfig::default(),
        }
    }
}

impl form_service::Config for Config {
    const SERVICE: &'static str = "form-state";

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
        cluster::check_ipv4(self.ipv4_range).map_err(|why| format!("ipv4_range: {why}"))?;
        if !(1.0..=64.0).contains(&self.cpu_overcommit) {
            return Err(format!("cpu_overcommit: {} is not between 1 and 64", self.cpu_overcommit));
        }
        if self.history < 1000 {
            return Err(format!("history: {} is below the least, 1000", self.history));
        }
        if self.max_mib < 16 {
            return Err(format!("max_mib: {} is below the least, 16", self.max_mib));
        }
        Ok(())
    }
}
