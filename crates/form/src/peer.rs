//! `form net peer`: machines outside of the cluster that are on one of its networks.
//!
//! The private key is made here, and goes to standard output with the rest of the file that WireGuard's own tools read;
//! and nowhere else.

use std::io::IsTerminal as _;
use std::net::IpAddr;

use data_encoding::BASE64;
use form_service::secret::Secret;
use form_types::v1::PeerSpec;
use form_types::{Kind as _, Object, from_now, kinds, validate};
use ipnet::IpNet;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use qrcode::types::QrError;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::api::Api;
use crate::cli;
use crate::error::Error;
use crate::output::{say, show, tell};

type Node = Object<kinds::Node>;
type Peer = Object<kinds::Peer>;

/// The least that IPv6 goes over, and the most that WireGuard leaves of Ethernet's 1500 bytes.
const MTU: std::ops::RangeInclusive<u32> = 1280..=1420;

pub(crate) async fn run(api: Api, args: cli::Peer) -> Result<(), Error> {
    match args {
        cli::Peer::Add(args) => add(api, args).await,
        cli::Peer::List { project, output } => {
            let items = api.list(kinds::Peer::INFO, &project.project, "").await?.items;
            show(kinds::Peer::INFO, &items, false, output.output)
        }
        cli::Peer::Revoke { name, project } => {
            api.delete(kinds::Peer::INFO, &project.project, &name).await?;
            say(format_args!("peer {name} is let in no more"))
        }
    }
}

async fn add(api: Api, args: cli::PeerAdd) -> Result<(), Error> {
    let (private, public_key) = match args.public_key {
        Some(public) => (None, public),
        None => {
            let private = StaticSecret::random();
            let public = BASE64.encode(PublicKey::from(&private).as_bytes());
            (Some(Secret::new(BASE64.encode(private.as_bytes()))), public)
        }
    };
    let spec = PeerSpec {
        public_key,
        network: args.network.unwrap_or_default(),
        expires_at: args.expires.map(from_now),
        description: args.description,
    };
    let peer = Peer::new(&args.project.project, &args.name, spec);
    validate(&peer.clone().into()).map_err(|invalid| Error::Usage(invalid.to_string()))?;
    let nodes = nodes(&api).await?;
    // Created, not applied: a file for a peer that is there already would be of another key.
    let made = api.create(kinds::Peer::INFO, &args.project.project, &form_types::to_json(&peer.into())).await?;
    let peer = crate::api::object::<kinds::Peer>(made)?;
    let text = Secret::new(file(&peer, private.as_ref(), &nodes));
    say(text.reveal().trim_end())?;
    if nodes.iter().all(|node| node.status.mesh.is_none()) {
        tell(
            "no node is in the mesh yet, so the file names none: revoke this peer, and add it again once there is one",
        );
    } else if private.is_some() && std::io::stderr().is_terminal() {
        // A code of a file whose key is missing would be of no use.
        tell(picture(text.reveal()).unwrap_or_else(|error| format!("it is too long for a picture: {error}")));
    }
    Ok(())
}

async fn nodes(api: &Api) -> Result<Vec<Node>, Error> {
    let items = api.list(kinds::Node::INFO, "", "").await?.items;
    items.into_iter().map(crate::api::object::<kinds::Node>).collect()
}

/// The file that wg-quick reads.
fn file(peer: &Peer, private: Option<&Secret>, nodes: &[Node]) -> String {
    let Object { meta, spec, status } = peer;
    let meshed: Vec<_> = nodes.iter().filter_map(|node| Some((node, node.status.mesh.as_ref()?))).collect();
    let mtu = meshed.iter().map(|(_, mesh)| mesh.mtu).filter(|mtu| *mtu > 0).min();
    let mtu = mtu.unwrap_or(*MTU.end()).clamp(*MTU.start(), *MTU.end());
    let dns: Vec<String> = meshed.first().map(|(node, _)| gateways(node)).unwrap_or_default();
    let own = |address: &String| address.parse::<IpAddr>().map_or(address.clone(), |ip| IpNet::from(ip).to_string());
    let addresses: Vec<String> = status.addresses.iter().map(own).collect();

    let mut text = format!(
        "# {} in project {} of Formation. Save it as formation.conf, for its owner alone to read:\n",
        meta.name, meta.project
    );
    text.push_str(
        "#   umask 077; form net peer add ... > formation.conf; wg-quick up ./formation.conf\n\n[Interface]\n",
    );
    match private {
        Some(private) => {
            text.push_str(&format!("# This key is here and nowhere else.\nPrivateKey = {}\n", private.reveal()))
        }
        None => text.push_str(&format!("# Put the private half of {} here:\n# PrivateKey = \n", spec.public_key)),
    }
    text.push_str(&format!("Address = {}\n", addresses.join(", ")));
    if !dns.is_empty() {
        text.push_str(&format!("# Names of instances are asked for here.\nDNS = {}\n", dns.join(", ")));
    }
    text.push_str(&format!("MTU = {mtu}\n"));
    for (node, mesh) in meshed {
        let prefixes = [node.spec.ipv4_prefix.as_str(), &node.spec.ipv6_prefix];
        let prefixes: Vec<&str> = prefixes.into_iter().filter(|prefix| !prefix.is_empty()).collect();
        text.push_str(&format!("\n# Node {}, and the instances on it.\n[Peer]\n", node.meta.name));
        text.push_str(&format!("PublicKey = {}\nAllowedIPs = {}\n", mesh.public_key, prefixes.join(", ")));
        if let Some(endpoint) = mesh.endpoints.first() {
            text.push_str(&format!("Endpoint = {endpoint}\n"));
        }
        text.push_str("# Keeps the way open through what translates addresses in between.\nPersistentKeepalive = 25\n");
    }
    text
}

/// A node's own addresses in its prefixes: the first of each.
fn gateways(node: &Node) -> Vec<String> {
    let first = |prefix: &String| Some(prefix.parse::<IpNet>().ok()?.hosts().next()?.to_string());
    // Of an IPv6 prefix, the first is the network's own.
    let ipv6 = |prefix: &String| match prefix.parse::<IpNet>().ok()? {
        IpNet::V6(net) => Some(std::net::Ipv6Addr::from(u128::from(net.network()) | 1).to_string()),
        IpNet::V4(_) => None,
    };
    [first(&node.spec.ipv4_prefix), ipv6(&node.spec.ipv6_prefix)].into_iter().flatten().collect()
}

/// For the camera of a telephone.
fn picture(text: &str) -> Result<String, QrError> {
    // Light and dark change places: most terminals are dark.
    let code = QrCode::new(text.as_bytes())?;
    Ok(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

#[cfg(test)]
mod tests {
    use form_types::v1::{Mesh, NodeSpec};

    use super::*;

    fn node(name: &str, number: u8, mesh: Option<Mesh>) -> Node {
        let spec = NodeSpec {
            ipv4_prefix: format!("100.64.{number}.0/24"),
            ipv6_prefix: format!("fd00:0:0:{number}::/64"),
            ..Default::default()
        };
        let mut node = Node::new("", name, spec);
        node.status.mesh = mesh;
        node
    }

    fn mesh(key: &str, endpoints: &[&str], mtu: u32) -> Option<Mesh> {
        let endpoints = endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect();
        Some(Mesh { public_key: key.into(), endpoints, mtu, ..Default::default() })
    }

    fn laptop() -> Peer {
        let spec = PeerSpec { public_key: "PUBLIC=".into(), ..Default::default() };
        let mut peer = Peer::new("default", "laptop", spec);
        peer.status.addresses = vec!["100.127.240.9".into(), "fd00:0:0:ffff::9".into()];
        peer
    }

    /// Lines that are no comments.
    fn said(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
    }

    #[test]
    fn the_file_names_each_node_that_is_in_the_mesh() {
        let nodes = [
            node("away", 0, None),
            node("one", 1, mesh("ONE=", &["192.0.2.1:51820", "10.0.0.1:51820"], 1400)),
            node("two", 2, mesh("TWO=", &[], 9000)),
        ];
        let text = file(&laptop(), Some(&Secret::new("PRIVATE=".into())), &nodes);
        let wanted = [
            "[Interface]",
            "PrivateKey = PRIVATE=",
            "Address = 100.127.240.9/32, fd00:0:0:ffff::9/128",
            "DNS = 100.64.1.1, fd00:0:0:1::1",
            "MTU = 1400",
            "[Peer]",
            "PublicKey = ONE=",
            "AllowedIPs = 100.64.1.0/24, fd00:0:0:1::/64",
            "Endpoint = 192.0.2.1:51820",
            "PersistentKeepalive = 25",
            "[Peer]",
            "PublicKey = TWO=",
            "AllowedIPs = 100.64.2.0/24, fd00:0:0:2::/64",
            "PersistentKeepalive = 25",
        ];
        assert_eq!(said(&text), wanted);
    }

    #[test]
    fn without_the_private_half_the_file_says_where_it_goes() {
        let text = file(&laptop(), None, &[node("one", 1, mesh("ONE=", &[], 100))]);
        assert!(text.contains("# Put the private half of PUBLIC= here:\n# PrivateKey = \n"), "{text}");
        assert!(text.contains("MTU = 1280"), "{text}");
        assert!(!said(&text).iter().any(|line| line.starts_with("PrivateKey")));
    }
    #[test]
    fn a_file_of_some_nodes_fits_into_a_picture_and_one_of_very_many_is_told_to_be_too_long() {
        let nodes = |count| (0..count).map(|number| node("one", number, mesh("ONE=", &["192.0.2.1:51820"], 1400)));
        let text = |count| file(&laptop(), Some(&Secret::new("PRIVATE=".into())), &nodes(count).collect::<Vec<_>>());
        assert!(picture(&text(5)).unwrap().lines().count() > 20);
        assert!(picture(&text(100)).is_err());
    }
}
