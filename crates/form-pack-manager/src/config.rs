//! What can be set.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use form_client::Endpoint;
use form_service::logs::LogConfig;
use serde::{Deserialize, Serialize};

use crate::{layer, workshop};

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
    /// What builds leave for those after them, of each kind: MiB.
    pub cache_mib: u64,
    /// The first of the 65536 ids of the host that the root of RUN and its users are; for a builder that is root or has
    /// CAP_SETUID and CAP_SETGID. Nobody else may have them.
    pub first_id: u32,
    /// Where `FROM debian:SUITE` comes from; empty: from Debian's own servers, with the suite's security updates.
    pub debian_mirror: String,
    /// How long a Debian that was made for a project is taken again, seconds.
    pub debian_seconds: u64,
    /// `HOST[:PORT]` of the registries that a FROM may name though they are at addresses that are not public.
    pub registries: Vec<String>,
    /// The same, for those that speak plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Builds that have ended and are kept, in each project.
    pub keep_builds: usize,
    /// The most that a blob of the registry may have.
    pub max_blob_mib: u64,
    /// Whether a manifest may name what was not pushed, as a mirror of some platforms needs.
    pub sparse_manifests: bool,
    /// Uploads to the registry that a project may have under way.
    pub max_uploads: usize,
    /// How long a body may pause, seconds.
    pub idle_seconds: u64,
    /// How long an upload waits for its next request, seconds.
    pub upload_seconds: u64,
    /// How often it is looked for what nothing holds any more, seconds.
    pub sweep_seconds: u64,
    /// How long what nothing holds is kept all the same, seconds: from a blob's push to its manifest's.
    pub grace_seconds: u64,
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
            cache_mib: 20_480,
            first_id: 1_000_000,
            debian_mirror: String::new(),
            debian_seconds: 7 * 86_400,
            registries: Vec::new(),
            insecure_registries: Vec::new(),
            keep_builds: 20,
            max_blob_mib: 65_536,
            sparse_manifests: false,
            max_uploads: 256,
            idle_seconds: 60,
            upload_seconds: 3600,
            sweep_seconds: 3600,
            grace_seconds: 86_400,
            log: LogConfig::default(),
        }
    }
}

impl Config {
    /// How its workshop is set up.
    pub(crate) fn workshop(&self) -> workshop::Options {
        workshop::Options {
            data_dir: self.data_dir.clone(),
            first_id: self.first_id,
            most_bytes: self.cache_mib << 20,
            limits: layer::Limits { bytes: 64 << 30, entries: 1_000_000, name_bytes: 256 << 20 },
            debian_mirror: self.debian_mirror.clone(),
            debian_fresh: Duration::from_secs(self.debian_seconds),
            registries: workshop::Registries {
                trusted: self.registries.clone(),
                insecure: self.insecure_registries.clone(),
                blob_bytes: self.max_blob_mib << 20,
            },
            program: "/proc/self/exe".into(),
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
        let mirror = &self.debian_mirror;
        let is_url = mirror.starts_with("http://") || mirror.starts_with("https://");
        if !(mirror.is_empty() || is_url) || mirror.contains(|c: char| !c.is_ascii_graphic()) {
            return Err(format!("debian_mirror: {mirror:?} is no address that begins with http:// or https://"));
        }
        if self.builds == 0 {
            return Err("builds: 0 would build nothing; 1 is the least".to_owned());
        }
        if self.first_id < 65_536 {
            return Err(format!("first_id: {} is an id of the host's own; take 1000000", self.first_id));
        }
        for (key, value) in [
            ("max_context_mib", self.max_context_mib),
            ("max_blob_mib", self.max_blob_mib),
            ("max_uploads", self.max_uploads as u64),
            ("idle_seconds", self.idle_seconds),
            ("upload_seconds", self.upload_seconds),
        ] {
            if value == 0 {
                return Err(format!("{key}: 0 would take nothing; 1 is the least"));
            }
        }
        for (key, value) in [("sweep_seconds", self.sweep_seconds), ("grace_seconds", self.grace_seconds)] {
            if value == 0 {
                return Err(format!("{key}: 0 would sweep what is being pushed; 1 is the least"));
            }
        }
        Ok(())
    }
}
