use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::MacAddr;

/// The version of [`GuestConfig`] that this crate writes, and the only one that it reads.
///
/// Fields that an older guest may ignore are added without a new version. A new version says that an older guest
/// would do the wrong thing.
pub const VERSION: u32 = 1;

/// How a guest is to be set up, and what it is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// See [`VERSION`].
    pub version: u32,
    /// One RFC 1123 label or several, at most 64 characters (what `sethostname` takes).
    pub hostname: String,
    /// The network cards; one that is not listed stays down.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Name servers, in order of preference.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Domains that are tried for short names, in order.
    #[serde(default)]
    pub search: Vec<String>,
    /// Lines to add to /etc/hosts, each `ADDRESS NAME...`.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// The environment of the entrypoint. PATH, HOME and HOSTNAME are added where absent; nothing else is.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `""` (root), `name`, `uid`, `name:group` or `uid:gid`.
    #[serde(default)]
    pub user: String,
    /// An absolute path; `""` is `/`.
    #[serde(default)]
    pub workdir: String,
    /// The program and its arguments. A program without a slash is looked up in `PATH` of `env`.
    pub entrypoint: Vec<String>,
    /// Seconds between SIGTERM and SIGKILL when the guest is asked to stop.
    #[serde(default = "default_grace")]
    pub grace_seconds: u32,
    /// The number of the signal that asks the entrypoint to stop, 1 to 31.
    #[serde(default = "default_stop_signal")]
    pub stop_signal: i32,
    /// Directories to make where they are absent: absolute paths.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// How it is found out whether the workload serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
}

/// A command that is run as the entrypoint is: as its user, in its directory and environment. Exit code 0: it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Seconds from the end of one check to the start of the next.
    pub interval_seconds: u32,
    /// Seconds after which a check is killed and has failed.
    pub timeout_seconds: u32,
    /// Seconds from the start in which failures do not count.
    pub start_period_seconds: u32,
    /// How many failures in a row make it unhealthy.
    pub retries: u32,
}

/// One network card, found by its Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The card's address, as the host gave it to the virtual machine.
    pub mac: MacAddr,
    /// Addresses with the length of their network.
    pub addresses: Vec<IpNet>,
    /// Where packets for everywhere else go.
    #[serde(default)]
    pub gateway: Gateways,
    /// The largest packet that it may send, bytes; absent: what the card says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// The default gateways of an [`Interface`]. One outside of its addresses' networks is reached on the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateways {
    /// For IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// For IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
}

/// A [`GuestConfig`] that cannot be obeyed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {reason}")]
pub struct InvalidConfig {
    /// The field's name, with an index or key where it has many.
    pub field: String,
    /// What is wrong with it, and what it should be.
    pub reason: &'static str,
}

fn default_grace() -> u32 {
    10
}

/// SIGTERM.
fn default_stop_signal() -> i32 {
    15
}

impl GuestConfig {
    /// Checks all that can be checked without the guest's disk.
    ///
    /// # Errors
    /// The first field that cannot be obeyed.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let fail = |field: String, reason| Err(InvalidConfig { field, reason });
        if !is_hostname(&self.hostname) {
            return fail("hostname".into(), "must be RFC 1123 labels, at most 64 characters");
        }
        if self.entrypoint.first().is_none_or(String::is_empty) {
            return fail("entrypoint".into(), "is empty; give the program to run");
        }
        for (i, argument) in self.entrypoint.iter().enumerate() {
            if argument.contains('\0') {
                return fail(format!("entrypoint[{i}]"), "has a NUL byte, which no program can be given");
            }
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return fail(format!("env[{name:?}]"), "must have a name without '=' and NUL");
            }
            if value.contains('\0') {
                return fail(format!("env[{name:?}]"), "has a NUL byte, which no program can be given");
            }
        }
        if !(self.workdir.is_empty() || self.workdir.starts_with('/')) || self.workdir.contains('\0') {
            return fail("workdir".into(), "must be an absolute path");
        }
        if !(1..=31).contains(&self.stop_signal) {
            return fail("stop_signal".into(), "must be the number of a signal, 1 to 31");
        }
        for (i, path) in self.volumes.iter().enumerate() {
            if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
                return fail(format!("volumes[{i}]"), "must be an absolute path without '..'");
            }
        }
        if let Some(health) = &self.health {
            if health.command.first().is_none_or(String::is_empty) || health.command.iter().any(|a| a.contains('\0')) {
                return fail("health.command".into(), "must name a program, and have no NUL byte");
            }
            if health.interval_seconds == 0 || health.timeout_seconds == 0 || health.retries == 0 {
                return fail("health".into(), "must have an interval, a timeout and retries of at least 1");
            }
        }
        for (i, line) in self.hosts.iter().enumerate() {
            if line.contains(['\n', '\r', '\0']) {
                return fail(format!("hosts[{i}]"), "must be one line");
            }
        }
        for (i, domain) in self.search.iter().enumerate() {
            if domain.is_empty() || domain.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return fail(format!("search[{i}]"), "must be a domain name");
            }
        }
        Ok(())
    }
}

/// RFC 1123, section 2.1, and the 64 bytes of the kernel.
fn is_hostname(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 64 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GuestConfig {
        serde_json::from_str(r#"{"version":1,"hostname":"web","entrypoint":["/hello"]}"#).unwrap()
    }

    fn field_refused(change: impl FnOnce(&mut GuestConfig)) -> String {
        let mut config = config();
        change(&mut config);
        config.validate().unwrap_err().field
    }

    #[test]
    fn three_fields_are_enough() {
        let config = config();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.grace_seconds, 10);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_by_name() {
        assert_eq!(field_refused(|c| c.hostname = "-x".into()), "hostname");
        assert_eq!(field_refused(|c| c.hostname = "a..b".into()), "hostname");
        assert_eq!(field_refused(|c| c.hostname = "a".repeat(65)), "hostname");
        assert_eq!(field_refused(|c| c.entrypoint.clear()), "entrypoint");
        assert_eq!(field_refused(|c| c.entrypoint.push("a\0".into())), "entrypoint[1]");
        assert_eq!(field_refused(|c| drop(c.env.insert("A=B".into(), String::new()))), "env[\"A=B\"]");
        assert_eq!(field_refused(|c| c.workdir = "srv".into()), "workdir");
        assert_eq!(field_refused(|c| c.stop_signal = 65), "stop_signal");
        assert_eq!(field_refused(|c| c.volumes.push("/a/../b".into())), "volumes[0]");
        let health = |command: &[&str], retries| {
            let command = command.iter().map(|&word| word.to_owned()).collect();
            Some(HealthCheck { command, interval_seconds: 1, timeout_seconds: 1, start_period_seconds: 0, retries })
        };
        assert_eq!(field_refused(|c| c.health = health(&[], 1)), "health.command");
        assert_eq!(field_refused(|c| c.health = health(&["x"], 0)), "health");
    }

    #[test]
    fn a_line_cannot_smuggle_another_into_a_file() {
        assert_eq!(field_refused(|c| c.hosts.push("10.0.0.1 a\n10.0.0.2 b".into())), "hosts[0]");
        assert_eq!(field_refused(|c| c.search.push("a\nnameserver 10.0.0.1".into())), "search[0]");
    }
}
