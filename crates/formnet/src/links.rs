//! Bridges, taps, addresses and routes, by netlink.
//!
//! What is ours says so: a link by its alias, `formation:` and whose it is; a route by the number of its protocol. That
//! is how leftovers are found, and how nothing of anyone else's is ever changed.

mod addresses;
mod routes;

use futures::{Stream, TryStreamExt as _};
use ipnet::IpNet;
use rtnetlink::packet_core::Nla as _;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkWireguard, new_connection};

use crate::changes;
use crate::error::{Error, Result, network, system};

pub use self::routes::PROTOCOL;

const TAG: &str = "formation:";
/// Whose the WireGuard interface is.
const MESH: &str = "mesh";
/// Whose taps are: an instance's, by its uid.
const INSTANCE: &str = "instance:";

/// A connection to the kernel's network, in the network namespace of the thread that made it.
#[derive(Clone, Debug)]
pub struct Links {
    handle: Handle,
}

/// Something in the kernel that is ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelObject {
    /// bridge, tap, wireguard or route.
    pub kind: &'static str,
    /// The interface, or the destination.
    pub name: String,
    /// Whose it is: `network:PROJECT/NAME`, `instance:UID`, `mesh`; of a route, the interface that it leads to.
    pub owner: String,
}

/// The name of an instance's tap: the same for ever. No bridge's name begins like it.
pub fn tap_name(uid: &str) -> String {
    format!("fmt{:012x}", fnv(uid.bytes()))
}

/// The name of a network's bridge on every node.
pub fn bridge_name(project: &str, network: &str) -> String {
    // The names of projects and networks have no slash.
    format!("fmb{:012x}", fnv(project.bytes().chain(*b"/").chain(network.bytes())))
}

impl Links {
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If the kernel gives no netlink socket.
    pub fn connect() -> Result<Self> {
        let (connection, handle, _) = new_connection().map_err(system("talk to the kernel's network"))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Makes the bridge `name` if it is not there, brings it up, and gives it `addresses` and no others. `owner` is whose
    /// it is, as `network:PROJECT/NAME`.
    ///
    /// # Errors
    /// If the kernel refuses; [`Error::NameTaken`] if `name` is something else's.
    pub async fn ensure_bridge(&self, name: &str, owner: &str, addresses: &[IpNet], mtu: u32) -> Result<()> {
        check_name(name)?;
        let owner = format!("{TAG}{owner}");
        let link = match self.link(name).await? {
            // Without an alias it is one that we were killed while making: nobody else has such names.
            Some(link) if is(&link, &InfoKind::Bridge) && alias(&link).is_none_or(|alias| alias == owner) => link,
            Some(_) => return Err(Error::NameTaken { name: name.to_owned() }),
            None => {
                // Without an address of its own it would have the lowest of its taps', and guests would lose it whenever
                // that changes. It learns of no groups: a guest could fill its memory with them.
                let bridge = <LinkMessageBuilder<LinkBridge>>::new(name).address(card(name)).mcast_snooping(false);
                let add = self.handle.link().add(bridge.build()).execute().await;
                add.map_err(network("make the bridge", name))?;
                self.expect(name).await?
            }
        };
        self.settle(&link, name, &owner, addresses, mtu).await
    }

    /// Deletes the bridge `name` if it is ours. That there is none is no error.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn delete_bridge(&self, name: &str) -> Result<()> {
        self.delete(name, |link| is(link, &InfoKind::Bridge) && alias(link).is_none_or(|alias| alias.starts_with(TAG)))
            .await
    }

    /// Makes the tap of instance `uid` if it is not there, gives it to the user `owner_uid`, and puts it on `bridge`; it
    /// is up last. Rules for it have to be there before. A tap that is open stays open.
    ///
    /// # Errors
    /// If the kernel refuses, or there is no `bridge`; [`Error::NameTaken`] if the name is someone else's.
    pub async fn ensure_tap(&self, uid: &str, bridge: &str, owner_uid: u32, mtu: u32) -> Result<String> {
        let name = tap_name(uid);
        let owner = format!("{TAG}{INSTANCE}{uid}");
        let controller = self.expect(bridge).await?.header.index;
        let made = match self.link(&name).await? {
            Some(link) if is(&link, &InfoKind::Tun) && alias(&link).is_none_or(|alias| alias == owner) => Some(link),
            Some(_) => return Err(Error::NameTaken { name }),
            None => None,
        };
        // Who has it open keeps it open: it can be given to somebody else only when nobody has.
        if made.as_ref().and_then(tap_owner) != Some(owner_uid) {
            form_tap::ensure_tap(&name, owner_uid).map_err(system("make the tap of an instance"))?;
        }
        let index = self.expect(&name).await?.header.index;
        // The alias first: from then on it is known whose it is. The host has nothing to say to the guest on this wire
        // but by the bridge, so no address either.
        let quiet = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let named = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::IfAlias(owner))
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![quiet]))
            .mtu(mtu);
        self.set(named, &name).await?;
        self.set(LinkUnspec::new_with_index(index).controller(controller), &name).await?;
        self.set(LinkUnspec::new_with_index(index).up(), &name).await?;
        Ok(name)
    }

    /// Deletes the tap of instance `uid`. That there is none is no error.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn delete_tap(&self, uid: &str) -> Result<()> {
        let owner = format!("{TAG}{INSTANCE}{uid}");
        self.delete(&tap_name(uid), |link| is(link, &InfoKind::Tun) && alias(link).is_none_or(|alias| alias == owner))
            .await
    }

    /// Names, addresses and brings up the WireGuard interface, which [`Tunnel`](crate::tunnel::Tunnel) makes.
    ///
    /// # Errors
    /// If the kernel refuses, or there is no such interface; [`Error::NameTaken`] if it is someone else's.
    pub async fn ensure_link(&self, interface: &str, addresses: &[IpNet], mtu: u32) -> Result<()> {
        let link = self.expect(interface).await?;
        let owner = format!("{TAG}{MESH}");
        if alias(&link).is_some_and(|alias| alias != owner) {
            return Err(Error::NameTaken { name: interface.to_owned() });
        }
        self.settle(&link, interface, &owner, addresses, mtu).await
    }

    /// Every link and route that is ours.
    ///
    /// # Errors
    /// If the kernel does not list them.
    pub async fn objects(&self) -> Result<Vec<KernelObject>> {
        let links = self.links().await?;
        let mut objects: Vec<KernelObject> = links.iter().filter_map(object).collect();
        objects.extend(self.routes(&links).await?);
        Ok(objects)
    }

    /// Deletes what [`Links::objects`] listed; a tunnel is [`Tunnel::down`](crate::tunnel::Tunnel::down)'s to delete.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn delete_object(&self, object: &KernelObject) -> Result<()> {
        match (object.kind, object.owner.strip_prefix(INSTANCE), object.name.parse()) {
            ("bridge", ..) => self.delete_bridge(&object.name).await,
            ("tap", Some(uid), _) => self.delete_tap(uid).await,
            ("route", _, Ok(to)) => self.delete_route(to).await,
            _ => Ok(()),
        }
    }

    /// An item whenever links, addresses or routes changed, whoever changed them.
    ///
    /// # Errors
    /// If the kernel gives no netlink socket.
    pub fn changes() -> Result<impl Stream<Item = ()> + Send> {
        // RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE (linux/rtnetlink.h).
        changes::subscribe(rtnetlink::sys::protocols::NETLINK_ROUTE, &[1, 5, 7, 9, 11], |_| true)
            .map_err(system("listen for changes of the network"))
    }

    /// Whether there is a link `name`.
    pub(crate) async fn exists(&self, name: &str) -> Result<bool> {
        Ok(self.link(name).await?.is_some())
    }

    /// Makes `name` a WireGuard interface of the kernel's, or says that the kernel has none. `is_bare` is asked of one
    /// that nobody's name is on: without a key it is one that we were killed while making.
    pub(crate) async fn ensure_wireguard(&self, name: &str, is_bare: impl AsyncFnOnce() -> bool) -> Result<bool> {
        match self.link(name).await? {
            Some(link) if is(&link, &InfoKind::Wireguard) && is_mesh(&link) => return Ok(true),
            Some(link) if is(&link, &InfoKind::Wireguard) && alias(&link).is_none() && is_bare().await => {}
            Some(_) => return Err(Error::NameTaken { name: name.to_owned() }),
            None => match self.handle.link().add(LinkWireguard::new(name).build()).execute().await {
                Ok(()) => {}
                Err(error) if errno(&error) == nix::libc::EOPNOTSUPP => return Ok(false),
                Err(error) => return Err(network("make the WireGuard interface", name)(error)),
            },
        }
        let named = LinkUnspec::new_with_index(self.expect(name).await?.header.index);
        self.set(named.append_extra_attribute(LinkAttribute::IfAlias(format!("{TAG}{MESH}"))), name).await?;
        Ok(true)
    }

    /// Deletes the interface of a userspace tunnel whose process does not answer. What is left of the process ends with it.
    pub(crate) async fn delete_dead_tunnel(&self, name: &str) -> Result<()> {
        match self.link(name).await? {
            Some(link) if is(&link, &InfoKind::Tun) && is_mesh(&link) => self.delete_wireguard(name).await,
            _ => Ok(()),
        }
    }

    pub(crate) async fn delete_wireguard(&self, name: &str) -> Result<()> {
        self.delete(name, |link| (is(link, &InfoKind::Wireguard) || is(link, &InfoKind::Tun)) && is_mesh(link)).await
    }

    /// Alias, MTU and addresses of a link of ours, and up.
    async fn settle(&self, link: &LinkMessage, name: &str, owner: &str, wanted: &[IpNet], mtu: u32) -> Result<()> {
        let index = link.header.index;
        if alias(link) != Some(owner) || link_mtu(link) != Some(mtu) {
            let named =
                LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::IfAlias(owner.to_owned()));
            self.set(named.mtu(mtu), name).await?;
        }
        self.settle_addresses(index, name, wanted).await?;
        if !link.header.flags.contains(LinkFlags::Up) {
            self.set(LinkUnspec::new_with_index(index).up(), name).await?;
        }
        Ok(())
    }

    async fn set(&self, change: LinkMessageBuilder<LinkUnspec>, name: &str) -> Result<()> {
        self.handle.link().set(change.build()).execute().await.map_err(network("set up", name))
    }

    async fn delete(&self, name: &str, is_ours: impl Fn(&LinkMessage) -> bool) -> Result<()> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        if !is_ours(&link) {
            return Err(Error::NameTaken { name: name.to_owned() });
        }
        match self.handle.link().del(link.header.index).execute().await {
            Err(error) if errno(&error) != nix::libc::ENODEV => Err(network("delete", name)(error)),
            _ => Ok(()),
        }
    }

    async fn expect(&self, name: &str) -> Result<LinkMessage> {
        self.link(name).await?.ok_or_else(|| Error::NoInterface { name: name.to_owned() })
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>> {
        match self.handle.link().get().match_name(name.to_owned()).execute().try_next().await {
            Ok(link) => Ok(link),
            Err(error) if errno(&error) == nix::libc::ENODEV => Ok(None),
            Err(error) => Err(network("find", name)(error)),
        }
    }

    async fn links(&self) -> Result<Vec<LinkMessage>> {
        self.handle.link().get().execute().try_collect().await.map_err(network("list", "the interfaces"))
    }
}

/// # Errors
/// [`Error::Name`] if the kernel, or nft, would take `name` for something else than an interface.
pub(crate) fn check_name(name: &str) -> Result<&str> {
    let fits = (1..=15).contains(&name.len()) && !name.starts_with('.');
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if fits && plain { Ok(name) } else { Err(Error::Name { name: name.to_owned() }) }
}

/// The number of the kernel's error; 0 for an error that is not the kernel's.
fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.raw_code().saturating_neg(),
        _ => 0,
    }
}

/// FNV-1a, 64 bit, of which 48 are kept. A collision is found by the alias and refused.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash & 0xffff_ffff_ffff
}

/// A bridge's card: locally administered, the same for ever.
fn card(bridge: &str) -> Vec<u8> {
    let [.., b, c, d, e, f] = fnv(bridge.bytes()).to_be_bytes();
    vec![0x02, b, c, d, e, f]
}

fn object(link: &LinkMessage) -> Option<KernelObject> {
    let owner = alias(link)?.strip_prefix(TAG)?.to_owned();
    let kind = match () {
        () if owner == MESH => "wireguard",
        () if is(link, &InfoKind::Bridge) => "bridge",
        () => "tap",
    };
    Some(KernelObject { kind, name: link_name(link)?.to_owned(), owner })
}

fn is_ours(link: &LinkMessage) -> bool {
    alias(link).is_some_and(|alias| alias.starts_with(TAG))
}

fn is_mesh(link: &LinkMessage) -> bool {
    alias(link).and_then(|alias| alias.strip_prefix(TAG)) == Some(MESH)
}

fn is(link: &LinkMessage, kind: &InfoKind) -> bool {
    infos(link).iter().any(|info| matches!(info, LinkInfo::Kind(found) if found == kind))
}

/// The user that a tap belongs to (IFLA_TUN_OWNER).
fn tap_owner(link: &LinkMessage) -> Option<u32> {
    let data = infos(link).iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Tun(data)) => Some(data),
        _ => None,
    })?;
    let owner = data.iter().find(|attribute| attribute.kind() == 1 && attribute.value_len() == 4)?;
    let mut value = [0; 4];
    owner.emit_value(&mut value);
    Some(u32::from_ne_bytes(value))
}

fn infos(link: &LinkMessage) -> &[LinkInfo] {
    attribute(link, |it| if let LinkAttribute::LinkInfo(infos) = it { Some(infos.as_slice()) } else { None })
        .unwrap_or_default()
}

fn alias(link: &LinkMessage) -> Option<&str> {
    attribute(link, |it| if let LinkAttribute::IfAlias(alias) = it { Some(alias.as_str()) } else { None })
}

fn link_name(link: &LinkMessage) -> Option<&str> {
    attribute(link, |it| if let LinkAttribute::IfName(name) = it { Some(name.as_str()) } else { None })
}

fn link_mtu(link: &LinkMessage) -> Option<u32> {
    attribute(link, |it| if let LinkAttribute::Mtu(mtu) = it { Some(*mtu) } else { None })
}

fn attribute<'a, T>(link: &'a LinkMessage, pick: impl Fn(&'a LinkAttribute) -> Option<T>) -> Option<T> {
    link.attributes.iter().find_map(pick)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_for_ever_and_the_kernel_takes_them() {
        assert_eq!(tap_name("0198-a"), tap_name("0198-a"));
        assert_ne!(tap_name("0198-a"), tap_name("0198-b"));
        assert_ne!(bridge_name("a", "b"), bridge_name("b", "a"));
        assert_eq!(tap_name(&"x".repeat(64)).len(), 15);
        assert!(bridge_name("p", "default").starts_with("fmb"));
        assert!(check_name(&bridge_name("p", "default")).is_ok());
    }
}
