//! Loopback and network cards, by rtnetlink (rtnetlink(7)).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use form_guest::Interface;
use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sys::socket::{self, AddressFamily as SocketFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

use crate::devices::{Uevents, card};

/// How long a network card may take to appear.
const CARD_LIMIT: Duration = Duration::from_secs(5);

/// Brings up loopback and every card of `interfaces`.
pub(crate) fn configure(uevents: &Uevents, interfaces: &[Interface]) -> anyhow::Result<()> {
    let mut route = Route::open().context("cannot talk to the kernel's routing")?;
    route.up(index("lo")?).context("cannot bring up loopback")?;
    for interface in interfaces {
        let mac = interface.mac.to_string();
        let name = uevents
            .wait(CARD_LIMIT, || card(Path::new("/sys"), &mac))
            .context("cannot look for network cards")?
            .ok_or_else(|| anyhow!("there is no network card {mac}; the host has to attach it"))?;
        configure_one(&mut route, &name, interface).with_context(|| format!("network card {name} ({mac})"))?;
    }
    Ok(())
}

fn configure_one(route: &mut Route, name: &str, interface: &Interface) -> anyhow::Result<()> {
    // The addresses are the host's to give: no router's announcement may add to them. A kernel without IPv6 has no
    // such file.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
    let index = index(name)?;
    if let Some(mtu) = interface.mtu {
        route.mtu(index, mtu).with_context(|| format!("cannot set its MTU to {mtu}"))?;
    }
    route.up(index).context("cannot bring it up")?;
    for address in &interface.addresses {
        route.address(index, *address).with_context(|| format!("cannot add the address {address}"))?;
    }
    let gateways = [interface.gateway.v4.map(IpAddr::V4), interface.gateway.v6.map(IpAddr::V6)];
    for gateway in gateways.into_iter().flatten() {
        // A gateway outside of the card's networks is no error: it is on the link all the same.
        let covered = interface.addresses.iter().any(|network| network.contains(&gateway));
        if !covered {
            route.host(index, gateway).with_context(|| format!("cannot reach the gateway {gateway}"))?;
        }
        route.default(index, gateway).with_context(|| format!("cannot route by the gateway {gateway}"))?;
    }
    Ok(())
}

fn index(name: &str) -> anyhow::Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("there is no network card {name}"))
}

/// A socket to the kernel's routing. Requests are answered one by one, so there is never more than one under way.
struct Route {
    socket: OwnedFd,
    sequence: u32,
}

impl Route {
    fn open() -> io::Result<Self> {
        let socket =
            socket::socket(SocketFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn up(&mut self, index: u32) -> anyhow::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn mtu(&mut self, index: u32, mtu: u32) -> anyhow::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::Mtu(mtu)];
        self.request(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn address(&mut self, index: u32, address: IpNet) -> anyhow::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        if address.addr().is_ipv6() {
            // The host hands out each address once, and a workload must be able to bind to it at once.
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// A route to `host` alone, on the link.
    fn host(&mut self, index: u32, host: IpAddr) -> anyhow::Result<()> {
        let mut message = unicast(family(host), RouteScope::Link);
        message.header.destination_prefix_length = if host.is_ipv4() { 32 } else { 128 };
        message.attributes = vec![RouteAttribute::Destination(host.into()), RouteAttribute::Oif(index)];
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn default(&mut self, index: u32, gateway: IpAddr) -> anyhow::Result<()> {
        let mut message = unicast(family(gateway), RouteScope::Universe);
        message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> anyhow::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        socket::send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;

        let mut answer = [0; 8192];
        let length = socket::recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let answer = answer.get(..length).unwrap_or_default();
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer)?.payload {
            // An error of code 0 is how netlink acknowledges.
            NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
            NetlinkPayload::Error(error) => Err(error.to_io().into()),
            _ => bail!("the kernel answered something else than yes or no"),
        }
    }
}

fn unicast(family: AddressFamily, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
