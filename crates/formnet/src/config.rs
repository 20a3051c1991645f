//! What can be set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use form_client::Endpoint;
use form_service::logs::LogConfig;
use serde::{Deserialize, Serialize};

/// IPv6 promises it (RFC 8200, section 5), so no link of the mesh may have less.
const LEAST_MTU: u32 = 1280;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the mesh is looked into.
    pub listen: SocketAddr,
    /// Where others find that: `https://ADDRESS:PORT`.
    pub public_url: String,
    /// form-state.
    pub state: Endpoint,
    /// This node's name.
    pub node: String,
    /// The node's key, and what was last known of the cluster.
    pub data_dir: PathBuf,
    /// The WireGuard interface.
    pub interface: String,
    /// Where WireGuard listens, UDP.
    pub port: u16,
    /// Where other nodes reach that, besides the addresses of this machine's interfaces: what a port forwarding or a
    /// public address in front of it needs. Tried first.
    pub endpoints: Vec<SocketAddr>,
    /// The largest packet of the mesh, bytes; 0: what the links to the other nodes leave.
    pub mtu: u32,
    /// The user who may open the taps: vmm-service's.
    pub tap_owner: u32,
    /// The key is made anew when it is this old, days; 0: never.
    pub key_days: u32,
    /// ca.pem, cert.pem, key.pem.
    pub identity_dir: PathBuf,
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3001)),
            public_url: "https://127.0.0.1:3001".to_owned(),
            state: Endpoint::default(),
            node: "node".to_owned(),
            data_dir: "/var/lib/formation/formnet".into(),
            interface: "formnet0".to_owned(),
            port: 51820,
            endpoints: Vec::new(),
            mtu: 0,
            tap_owner: 0,
            key_days: 90,
            identity_dir: "/etc/formation/formnet/tls".into(),
            log: LogConfig::default(),
        }
    }
}

impl form_service::Config for Config {
    const SERVICE: &'static str = "formnet";

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
        check_interface(&self.interface)?;
        if self.port == 0 {
            return Err("port: 0 would be another at each start; other nodes have to know it".to_owned());
        }
        if self.mtu != 0 && !(LEAST_MTU..=65_535).contains(&self.mtu) {
            return Err(format!("mtu: {} is not {LEAST_MTU} to 65535, nor 0", self.mtu));
        }
        Ok(())
    }
}

/// Whether a WireGuard interface can have this name, and if not, why.
///
/// # Errors
/// A sentence that names the key.
pub fn check_interface(name: &str) -> Result<(), String> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    // Of 15 bytes, and not what bridges and taps are called: the rules know those by how their names begin.
    let is_ours = name.starts_with("fmb") || name.starts_with("fmt");
    // A name of digits alone is taken for a file descriptor by the embedded WireGuard.
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    if is_number || name.len() > 15 || !name.bytes().all(fine) || is_ours {
        return Err(format!(
            "interface: {name:?} is not 1 to 15 letters, digits, '-' and '_', some of them letters, that begin with \
             neither fmb nor fmt"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use form_service::Config as _;

    use super::*;

    #[test]
    fn what_no_kernel_or_node_could_use_is_refused_by_its_key() {
        Config::default().check().unwrap();
        let with = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(with(|config| config.interface = "a/b".into()).starts_with("interface:"));
        assert!(with(|config| config.interface = "7".into()).starts_with("interface:"));
        assert!(with(|config| config.interface = "fmb0".into()).starts_with("interface:"));
        assert!(with(|config| config.mtu = 1279).starts_with("mtu:"));
        assert!(with(|config| config.port = 0).starts_with("port:"));
        assert!(with(|config| config.public_url = "http://x".into()).starts_with("public_url:"));
    }
}
