//! Routes: of ours, in the main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
};

use super::{KernelObject, Links, errno, link_mtu, link_name};
use crate::error::{Error, Result, network};

/// The number of our routes' protocol (rtm_protocol). It is of those that the kernel gives no meaning to, and no routing
/// daemon that iproute2 knows of has it; `ip route show proto 240` shows what is ours.
pub const PROTOCOL: u8 = 240;
const OURS: RouteProtocol = RouteProtocol::Other(PROTOCOL);

impl Links {
    /// Leads `to` to `interface`; with `source`, what this node itself sends there is from that address.
    ///
    /// # Errors
    /// If the kernel refuses, or there is no `interface`; [`Error::RouteTaken`] if somebody else has such a route.
    pub async fn ensure_route(&self, to: IpNet, interface: &str, source: Option<IpAddr>) -> Result<()> {
        let to = to.trunc();
        let index = self.expect(interface).await?.header.index;
        let mut route = message(to);
        route.header.protocol = OURS;
        route.header.scope = if to.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
        route.attributes.push(RouteAttribute::Oif(index));
        route.attributes.extend(source.map(|source| RouteAttribute::PrefSource(address(source))));
        let refused = match self.handle.route().add(route.clone()).execute().await {
            Ok(()) => return Ok(()),
            Err(error) if errno(&error) == nix::libc::EEXIST => error,
            Err(error) => return Err(network("add the route to", to)(error)),
        };
        let Some(there) = self.route(to).await? else { return Err(network("add the route to", to)(refused)) };
        if there.header.protocol != OURS {
            return Err(Error::RouteTaken { to: to.to_string(), owner: self.describe(&there).await });
        }
        if oif(&there) == Some(index) && pref_source(&there) == source {
            return Ok(());
        }
        self.handle.route().add(route).replace().execute().await.map_err(network("replace the route to", to))
    }

    /// Deletes our route to `to`. That there is none is no error.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn delete_route(&self, to: IpNet) -> Result<()> {
        let mut route = message(to.trunc());
        // The kernel deletes none of another protocol.
        route.header.protocol = OURS;
        route.header.scope = RouteScope::NoWhere;
        match self.handle.route().del(route).execute().await {
            Err(error) if errno(&error) != nix::libc::ESRCH => Err(network("delete the route to", to)(error)),
            _ => Ok(()),
        }
    }

    /// The largest packet that the way to `address` begins with, bytes; none if there is no way.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub async fn mtu_towards(&self, address: IpAddr) -> Result<Option<u32>> {
        let route = match self.handle.route().get(message(IpNet::from(address))).execute().try_next().await {
            Ok(Some(route)) => route,
            Ok(None) => return Ok(None),
            Err(error)
                if [nix::libc::ENETUNREACH, nix::libc::EHOSTUNREACH, nix::libc::EINVAL, nix::libc::EACCES]
                    .contains(&errno(&error)) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(network("find the way to", address)(error)),
        };
        let lesser = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) => Some(*mtu),
                _ => None,
            }),
            _ => None,
        });
        let Some(index) = oif(&route) else { return Ok(lesser) };
        let link = self.handle.link().get().match_index(index).execute().try_next().await;
        let link = link.map_err(network("find", format_args!("the interface towards {address}")))?;
        Ok(link.as_ref().and_then(link_mtu).into_iter().chain(lesser).min())
    }

    /// All routes of ours.
    pub(super) async fn routes(&self, links: &[LinkMessage]) -> Result<Vec<KernelObject>> {
        let mut found = Vec::new();
        for unspecified in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            for route in self.list(unspecified).await? {
                if route.header.protocol != OURS || route.header.table != RouteHeader::RT_TABLE_MAIN {
                    continue;
                }
                let link = links.iter().find(|link| Some(link.header.index) == oif(&route));
                let owner = link.and_then(link_name).unwrap_or_default().to_owned();
                found.push(KernelObject { kind: "route", name: destination(&route).to_string(), owner });
            }
        }
        Ok(found)
    }

    /// The route of the main table to just `to`, whoever made it.
    async fn route(&self, to: IpNet) -> Result<Option<RouteMessage>> {
        let is_it = |route: &RouteMessage| route.header.table == RouteHeader::RT_TABLE_MAIN && destination(route) == to;
        // Mostly the one that leads to its first address.
        let mut request = message(IpNet::from(to.addr()));
        request.header.flags.insert(RouteFlags::FibMatch);
        if let Ok(Some(route)) = self.handle.route().get(request).execute().try_next().await
            && is_it(&route)
        {
            return Ok(Some(route));
        }
        Ok(self.list(to.addr()).await?.into_iter().find(is_it))
    }

    /// All routes of the family of `any`.
    async fn list(&self, any: IpAddr) -> Result<Vec<RouteMessage>> {
        let request = if any.is_ipv4() {
            RouteMessageBuilder::<Ipv4Addr>::new().build()
        } else {
            RouteMessageBuilder::<Ipv6Addr>::new().build()
        };
        self.handle.route().get(request).execute().try_collect().await.map_err(network("list", "the routes"))
    }

    async fn describe(&self, route: &RouteMessage) -> String {
        let links = self.links().await.unwrap_or_default();
        let link = links.iter().find(|link| Some(link.header.index) == oif(route)).and_then(link_name);
        let protocol = format!("{:?}", route.header.protocol).to_lowercase();
        format!("by {protocol} to {}", link.unwrap_or("nowhere"))
    }
}

fn message(to: IpNet) -> RouteMessage {
    let mut route = match to {
        IpNet::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to.addr(), to.prefix_len()).build(),
        IpNet::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to.addr(), to.prefix_len()).build(),
    };
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route
}

fn address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn destination(route: &RouteMessage) -> IpNet {
    let named = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    // A default route names none.
    let is_v4 = route.header.address_family == rtnetlink::packet_route::AddressFamily::Inet;
    let any = if is_v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let address = named.unwrap_or(any);
    IpNet::new(address, route.header.destination_prefix_length).unwrap_or_else(|_| address.into())
}

fn oif(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn pref_source(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => ip(address),
        _ => None,
    })
}
