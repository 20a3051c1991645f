//! The files under /etc that say who and where the guest is.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use form_guest::GuestConfig;

use crate::console::say;
use crate::mounts::directory;

/// Writes them all. An image that forbids one (a read-only root, a directory in its place) keeps its own.
pub(crate) fn write(config: &GuestConfig) {
    let files = [
        ("/etc/hostname", format!("{}\n", config.hostname)),
        ("/etc/hosts", hosts(config)),
        ("/etc/resolv.conf", resolv_conf(config)),
    ];
    if let Err(error) = directory(Path::new("/etc"), 0o755) {
        say(format_args!("/etc: {error}"));
    }
    for (path, text) in files {
        // In images, resolv.conf is often a link to what a service would have made. The link goes, not its target.
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
            let _ = fs::remove_file(path);
        }
        if let Err(error) = fs::write(path, text) {
            say(format_args!("{path} stays as the image has it: {error}"));
        }
    }
}

fn hosts(config: &GuestConfig) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let short = config.hostname.split('.').next().unwrap_or_default();
    let names = if short == config.hostname { short.to_owned() } else { format!("{} {short}", config.hostname) };
    let mut addresses = config.interfaces.iter().flat_map(|i| &i.addresses).peekable();
    if addresses.peek().is_none() {
        let _ = writeln!(text, "127.0.1.1\t{names}");
    }
    for address in addresses {
        let _ = writeln!(text, "{}\t{names}", address.addr());
    }
    for line in &config.hosts {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn resolv_conf(config: &GuestConfig) -> String {
    let mut text = String::new();
    if !config.search.is_empty() {
        let _ = writeln!(text, "search {}", config.search.join(" "));
    }
    for server in &config.dns {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

#[cfg(test)]
mod tests {
    use form_guest::{Gateways, Interface, MacAddr, VERSION};

    use super::*;

    fn config() -> GuestConfig {
        GuestConfig {
            version: VERSION,
            hostname: "web.default".into(),
            interfaces: vec![Interface {
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                addresses: vec!["10.1.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
                gateway: Gateways::default(),
                mtu: None,
            }],
            dns: vec!["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            search: vec!["default.formation.internal".into(), "formation.internal".into()],
            hosts: vec!["10.1.0.3 db".into()],
            env: Default::default(),
            user: String::new(),
            workdir: String::new(),
            entrypoint: vec!["/x".into()],
            grace_seconds: 1,
            stop_signal: 15,
            volumes: Vec::new(),
            health: None,
        }
    }

    #[test]
    fn the_guest_knows_its_own_name_at_each_address() {
        let text = hosts(&config());
        assert!(text.contains("10.1.0.2\tweb.default web\nfd00::2\tweb.default web\n10.1.0.3 db\n"), "{text}");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn a_guest_without_network_still_has_a_name() {
        let mut config = config();
        config.interfaces.clear();
        assert!(hosts(&config).contains("127.0.1.1\tweb.default web\n"));
    }

    #[test]
    fn name_servers_keep_their_order() {
        let expected =
            "search default.formation.internal formation.internal\nnameserver 10.1.0.1\nnameserver fd00::1\n";
        assert_eq!(resolv_conf(&config()), expected);
    }
}
