//! What can be set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use form_client::Endpoint;
use form_service::logs::LogConfig;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where build contexts and blobs are moved.
    pub listen: SocketAddr,
    /// Where others find that: `https://ADDRESS:PORT`.
    pub public_url: String,
    /// form-state.
    pub state: Endpoint,
    /// The blobs.
    pub data_dir: PathBuf,
    /// ca.pem, cert.pem, key.pem.
    pub identity_dir: PathBuf,
    /// The most that a build context may have.
    pub max_context_mib: u64,
    /// Builds that are made at the same time; others wait.
    pub builds: usize,
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3003)),
            public_url: "https://127.0.0.1:3003".to_owned(),
            state: Endpoint::default(),
            data_dir: "/var/lib/formation/packages".into(),
            identity_dir: "/etc/formation/form-pack-manager/tls".into(),
            max_context_mib: 4096,
            builds: 2,
            log: LogConfig::default(),
        }
    }
}

impl form_service::Config for Config {
    const SERVICE: &'static str = "form-pack-manager";

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
        if !self.public_url.starts_with("https://") {
            return Err(format!("public_url: {:?} does not start with https://", self.public_url));
        }
        if self.builds == 0 {
            return Err("builds: 0 would build nothing; 1 is the least".to_owned());
        }
        if self.max_context_mib == 0 {
            return Err("max_context_mib: 0 would take nothing; 1 is the least".to_owned());
        }
        Ok(())
    }
}
