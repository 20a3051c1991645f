//! `form init`: the identities of services that run as processes of their own, in containers for example.
//!
//! ```text
//!   DIR/pki/         the cluster's CA and its ranges of addresses; it stays with whoever makes identities
//!   DIR/SERVICE/     ca.pem, cert.pem, key.pem: what goes to /etc/formation/SERVICE/tls
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use form_service::{Authority, Config as _};
use form_state::Cluster;

use crate::cli;
use crate::error::Error;
use crate::output::say;

const SERVICES: [&str; 5] = [
    form_state::Config::SERVICE,
    form_dns::Config::SERVICE,
    form_pack_manager::Config::SERVICE,
    vmm_service::Config::SERVICE,
    formnet::Config::SERVICE,
];

/// Makes the CA where there is none, and an identity for each service that has none: so that it can be called again.
pub(crate) fn init(flags: &cli::Init) -> Result<(), Error> {
    let fail = |error: &(dyn std::error::Error + 'static)| Error::Failed(form_service::run::chain(error));
    decide(flags)?;
    let authority = Authority::open_or_create(&flags.dir.join("pki")).map_err(|error| fail(&error))?;
    let mut names = vec!["localhost".to_owned()];
    names.extend(flags.name.iter().cloned());
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    addresses.extend(&flags.address);
    for service in SERVICES {
        let dir = flags.dir.join(service);
        // The certificate is written after the key: with it there, the identity is whole but for the CA's.
        if dir.join("ca.pem").exists() {
            say(format_args!("{} is there", dir.display()))?;
            continue;
        }
        let identity = authority.issue(service, &flags.node, &names, &addresses).map_err(|error| fail(&error))?;
        identity.save(&dir).map_err(|error| fail(&error))?;
        say(format_args!("{}", dir.display()))?;
    }
    Ok(())
}

/// Decides on the cluster's ranges and writes them down, before there is a CA: a form-state that is given the CA makes its
/// cluster with them. Of a cluster that was made without, form-state knows them, and here nothing is decided.
fn decide(flags: &cli::Init) -> Result<(), Error> {
    let pki = flags.dir.join("pki");
    let written = Cluster::read(&pki).map_err(Error::file(&pki))?;
    let cluster = match (written, flags.ipv4_range) {
        (Some(cluster), Some(wanted)) if cluster.ipv4 != wanted => {
            return Err(Error::Usage(format!(
                "--ipv4-range {wanted}: this cluster was made with {}; its addresses are in use",
                cluster.ipv4
            )));
        }
        (Some(cluster), _) => cluster,
        (None, None) if pki.join("ca.pem").exists() => return Ok(()),
        (None, Some(wanted)) if pki.join("ca.pem").exists() => {
            return Err(Error::Usage(format!(
                "--ipv4-range {wanted}: this cluster was made before; form-state has decided on its ranges"
            )));
        }
        (None, wanted) => {
            let wanted = wanted.unwrap_or(form_state::IPV4_RANGE);
            form_state::cluster::check_ipv4(wanted).map_err(|why| Error::Usage(format!("--ipv4-range: {why}")))?;
            let cluster = Cluster::new(wanted);
            std::fs::create_dir_all(&pki).map_err(Error::file(&pki))?;
            cluster.write(&pki).map_err(Error::file(&pki))?;
            cluster
        }
    };
    say(format_args!("addresses are out of {} and {}", cluster.ipv4, cluster.ipv6))
}

#[cfg(test)]
mod tests {
    use form_service::Identity;

    use super::*;

    fn flags(dir: &std::path::Path, range: Option<&str>) -> cli::Init {
        let ipv4_range = range.map(|range| range.parse().unwrap());
        cli::Init { dir: dir.to_owned(), node: "one".into(), name: vec![], address: vec![], ipv4_range }
    }

    #[test]
    fn the_ranges_are_decided_once_and_written_down_beside_the_ca() {
        let dir = tempfile::tempdir().unwrap();
        init(&flags(dir.path(), Some("10.9.0.0/16"))).unwrap();
        let decided = Cluster::read(&dir.path().join("pki")).unwrap().unwrap();
        assert_eq!(decided.ipv4.to_string(), "10.9.0.0/16");
        init(&flags(dir.path(), None)).unwrap();
        init(&flags(dir.path(), Some("10.9.0.0/16"))).unwrap();
        assert_eq!(Cluster::read(&dir.path().join("pki")).unwrap(), Some(decided));
        let said = init(&flags(dir.path(), Some("10.8.0.0/16"))).unwrap_err().to_string();
        assert!(said.contains("10.9.0.0/16"), "{said}");
        assert!(init(&flags(&dir.path().join("other"), Some("10.9.0.0/24"))).is_err());
    }

    #[test]
    fn of_a_cluster_that_was_made_before_nothing_is_decided() {
        let dir = tempfile::tempdir().unwrap();
        Authority::open_or_create(&dir.path().join("pki")).unwrap();
        init(&flags(dir.path(), None)).unwrap();
        assert_eq!(Cluster::read(&dir.path().join("pki")).unwrap(), None);
    }

    #[test]
    fn every_service_gets_an_identity_of_one_cluster_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let flags = flags(dir.path(), None);
        init(&flags).unwrap();
        let load = |service: &str| Identity::load(&dir.path().join(service)).unwrap();
        let before: Vec<_> = SERVICES.map(load).into_iter().collect();
        assert!(before.iter().all(|identity| identity.ca_pem == before[0].ca_pem));
        init(&flags).unwrap();
        let after = SERVICES.map(load);
        assert!(before.iter().zip(&after).all(|(before, after)| before.cert_pem == after.cert_pem));
    }

    /// Whoever adds a row adds it to `SERVICES`, or its image has no identity to start with.
    #[test]
    fn the_images_and_the_identities_are_of_the_same_services() {
        let table = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/services.json");
        let table: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(table).unwrap()).unwrap();
        let mut services = SERVICES.to_vec();
        services.sort_unstable();
        assert_eq!(table.as_object().unwrap().keys().collect::<Vec<_>>(), services);
    }

    /// What an image sets is a key of its service, and its port is the one that the service has by default: so a port in
    /// the table, and in all that is made from it, is the service's own.
    #[test]
    fn the_table_of_images_says_of_ports_and_keys_what_the_services_say() {
        fn check<C: form_service::Config>(row: &serde_json::Value) {
            let set: C = serde_json::from_value(row["configuration"].clone()).unwrap();
            set.check().unwrap();
            let ports = row["ports"].as_array().unwrap();
            let named = |name: &serde_json::Value| ports.iter().find(|port| port["name"] == *name).unwrap();
            let probe = &named(&row["probe"])["port"];
            assert_eq!(*probe, C::default().probes().port(), "{}", C::SERVICE);
            assert_eq!(*probe, set.probes().port(), "{}", C::SERVICE);
            let defaults = serde_json::to_value(C::default()).unwrap();
            for port in ports {
                let key = port["key"].as_str().unwrap();
                let value = if defaults[key].is_array() { &defaults[key][0] } else { &defaults[key] };
                // An address and a port, or a port alone.
                let is_so = value == &port["port"]
                    || value.as_str().is_some_and(|value| value.ends_with(&format!(":{}", port["port"])));
                assert!(is_so, "{} {key}", C::SERVICE);
            }
            for key in row["environment"].as_object().unwrap().keys() {
                assert!(defaults.get(key).is_some(), "{} has no key {key}", C::SERVICE);
            }
        }
        let table = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/services.json");
        let table: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(table).unwrap()).unwrap();
        check::<form_state::Config>(&table["form-state"]);
        check::<form_dns::Config>(&table["form-dns"]);
        check::<form_pack_manager::Config>(&table["form-pack-manager"]);
        check::<vmm_service::Config>(&table["vmm-service"]);
        check::<formnet::Config>(&table["formnet"]);
    }
}
