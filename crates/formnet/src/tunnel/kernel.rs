//! The kernel's own WireGuard, where it has one.

use defguard_wireguard_rs::error::WireguardInterfaceError;
use defguard_wireguard_rs::key::Key;
use defguard_wireguard_rs::net::IpAddrMask;
use defguard_wireguard_rs::peer::Peer;
use defguard_wireguard_rs::{InterfaceConfiguration, Kernel, WGApi, WireguardInterfaceApi as _};
use ipnet::IpNet;

use super::uapi::Said;
use super::{PeerState, PrivateKey, TunnelPeer};

type Result<T> = std::result::Result<T, WireguardInterfaceError>;

pub(super) fn get(interface: &str) -> Result<Said> {
    let host = api(interface)?.read_interface_data()?;
    let peers = host.peers.into_values().map(|peer| {
        let allowed = peer.allowed_ips.iter().filter_map(|mask| IpNet::new(mask.address, mask.cidr).ok()).collect();
        let state = PeerState {
            public_key: peer.public_key.to_string(),
            endpoint: peer.endpoint,
            allowed,
            // The kernel says 1970 of a peer that it never heard of.
            last_handshake: peer.last_handshake.filter(|time| *time > std::time::SystemTime::UNIX_EPOCH),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
        };
        (state, peer.persistent_keepalive_interval.filter(|seconds| *seconds > 0))
    });
    Ok(Said { listen_port: host.listen_port, peers: peers.collect() })
}

/// Whether nobody gave it a key yet.
pub(super) fn is_bare(interface: &str) -> Result<bool> {
    let none = |key: &Key| key.as_slice().iter().all(|byte| *byte == 0);
    Ok(api(interface)?.read_interface_data()?.private_key.as_ref().is_none_or(none))
}

/// Nothing happens if they are so already: the library's one way to set them drops peers and addresses, which are put
/// back here.
pub(super) fn set_device(interface: &str, key: &PrivateKey, port: Option<u16>, addresses: &[IpNet]) -> Result<()> {
    let api = api(interface)?;
    let before = api.read_interface_data()?;
    let port = port.unwrap_or(before.listen_port);
    if port == before.listen_port && before.private_key.as_ref() == Some(&key.key()) {
        return Ok(());
    }
    api.configure_interface(&InterfaceConfiguration {
        name: interface.to_owned(),
        prvkey: key.base64().as_str().to_owned(),
        addresses: addresses.iter().map(mask).collect(),
        port,
        peers: Vec::new(),
        mtu: None,
        fwmark: None,
    })?;
    before.peers.values().try_for_each(|peer| api.configure_peer(peer))
}

pub(super) fn set_peer(interface: &str, peer: &TunnelPeer) -> Result<()> {
    let mut wanted = Peer::new(public(&peer.public_key)?);
    wanted.endpoint = peer.endpoint;
    wanted.persistent_keepalive_interval = Some(peer.keepalive.unwrap_or(0));
    wanted.allowed_ips = peer.allowed.iter().map(mask).collect();
    api(interface)?.configure_peer(&wanted)
}

pub(super) fn remove_peer(interface: &str, public_key: &str) -> Result<()> {
    api(interface)?.remove_peer(&public(public_key)?)
}

fn api(interface: &str) -> Result<WGApi<Kernel>> {
    WGApi::new(interface)
}

fn public(key: &str) -> Result<Key> {
    Key::try_from(key).map_err(|error| WireguardInterfaceError::PeerConfigurationError(error.to_string()))
}

fn mask(net: &IpNet) -> IpAddrMask {
    IpAddrMask::new(net.addr(), net.prefix_len())
}
