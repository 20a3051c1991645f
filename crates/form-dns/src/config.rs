//! What can be set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use form_client::Endpoint;
use form_service::logs::LogConfig;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where names are asked for, over UDP and TCP. An address may come to the machine later, with its interface.
    pub listen: Vec<SocketAddr>,
    /// Health and metrics.
    pub admin: SocketAddr,
    /// The zone of the cluster's own names: INSTANCE.PROJECT.ZONE.
    pub zone: String,
    /// Seconds that an answer about an instance may be kept.
    pub instance_ttl: u32,
    /// form-state.
    pub state: Endpoint,
    /// ca.pem, cert.pem, key.pem.
    pub identity_dir: PathBuf,
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 53))],
            admin: SocketAddr::from(([127, 0, 0, 1], 3005)),
            zone: "formation.internal".to_owned(),
            instance_ttl: 5,
            state: Endpoint::default(),
            identity_dir: "/etc/formation/form-dns/tls".into(),
            log: LogConfig::default(),
        }
    }
}

impl form_service::Config for Config {
    const SERVICE: &'static str = "form-dns";

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn identity_dir(&self) -> &Path {
        &self.identity_dir
    }

    fn probes(&self) -> SocketAddr {
        self.admin
    }

    fn check(&self) -> Result<(), String> {
        if self.listen.is_empty() {
            return Err("listen: names no address; without one nobody can ask".to_owned());
        }
        let name = hickory_proto::rr::Name::from_ascii(&self.zone);
        name.map(drop).map_err(|error| format!("zone: {:?} is no domain name: {error}", self.zone))
    }
}
