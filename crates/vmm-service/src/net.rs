//! Bridges and taps, by netlink.
//!
//! What is ours says so: a tap's alias is `formation:UID`. That is how leftovers are found, and how nothing of anyone
//! else's is ever deleted.

use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, new_connection};

use crate::error::{Error, Result, system};

const TAG: &str = "formation:";
/// The most taps that one instance can have.
pub(crate) const MAX_TAPS: usize = 8;

/// A connection to the kernel's network, in the network namespace of the thread that made it.
#[derive(Clone, Debug)]
pub struct Network {
    handle: Handle,
}

/// A tap of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The interface.
    pub name: String,
    /// The instance that it belongs to.
    pub uid: String,
}

/// The name of an instance's tap: the same for ever, and at most 15 bytes, as the kernel wants it.
pub fn tap_name(uid: &str, index: usize) -> String {
    // FNV-1a, 64 bit, of which 48 are shown. A collision is found by the alias and refused.
    let hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("fm{:012x}{:x}", hash & 0xffff_ffff_ffff, index & 0xf)
}

impl Network {
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// If the kernel gives no netlink socket.
    pub fn connect() -> Result<Self> {
        let (connection, handle, _) = new_connection().map_err(system("talk to the kernel's network"))?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Makes the bridge `name` if it is not there, brings it up, and gives it `addresses` besides those it has.
    ///
    /// # Errors
    /// If the kernel refuses; [`Error::NameTaken`] if `name` is no bridge.
    pub async fn ensure_bridge(&self, name: &str, addresses: &[IpNet]) -> Result<()> {
        let failed = |action| move |source| Error::Network { action, name: name.to_owned(), source };
        if self.link(name).await?.is_none() {
            let bridge = LinkBridge::new(name).build();
            match self.handle.link().add(bridge).execute().await {
                Err(error) if !is(&error, nix::libc::EEXIST) => return Err(failed("make the bridge")(error)),
                _ => {}
            }
        }
        let index = match self.link(name).await? {
            Some(link) if is_bridge(&link) => link.header.index,
            _ => return Err(Error::NameTaken { name: name.to_owned() }),
        };
        let up = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(up).execute().await.map_err(failed("bring up the bridge"))?;
        for address in addresses {
            let add = self.handle.address().add(index, address.addr(), address.prefix_len());
            match add.execute().await {
                Err(error) if !is(&error, nix::libc::EEXIST) => return Err(failed("add an address to")(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the tap `index` of instance `uid` if it is not there, attaches it to `bridge` and brings it up. Returns
    /// its name.
    ///
    /// # Errors
    /// If the kernel refuses, or there is no `bridge`; [`Error::NameTaken`] if the name is someone else's.
    pub async fn ensure_tap(&self, uid: &str, index: usize, bridge: &str) -> Result<String> {
        let name = tap_name(uid, index);
        let failed = |action| {
            let name = name.clone();
            move |source| Error::Network { action, name, source }
        };
        let owner = rustix::process::geteuid().as_raw();
        let Some(controller) = self.link(bridge).await? else {
            return Err(Error::NoBridge { name: bridge.to_owned() });
        };
        let link = match self.link(&name).await? {
            // Without an alias it is one that we were killed while making: nobody else has such names.
            Some(link) if alias(&link).is_none_or(|a| a.strip_prefix(TAG) == Some(uid)) => {
                form_tap::ensure_tap(&name, owner).map_err(system("take the tap"))?;
                link
            }
            Some(_) => return Err(Error::NameTaken { name }),
            None => {
                form_tap::ensure_tap(&name, owner).map_err(system("make a tap"))?;
                let link = self.link(&name).await?;
                link.ok_or_else(|| Error::NameTaken { name: name.clone() })?
            }
        };
        // The alias first: from then on it is known whose it is.
        let change = LinkUnspec::new_with_index(link.header.index).alias(format!("{TAG}{uid}")).build();
        self.handle.link().set(change).execute().await.map_err(failed("name the owner of"))?;
        let change = LinkUnspec::new_with_index(link.header.index).controller(controller.header.index).up().build();
        self.handle.link().set(change).execute().await.map_err(failed("attach"))?;
        Ok(name)
    }

    /// Deletes every tap of instance `uid`. That there is none is no error.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn delete_taps(&self, uid: &str) -> Result<()> {
        // By name too: one that we were killed while making has no alias yet.
        for name in (0..MAX_TAPS).map(|index| tap_name(uid, index)) {
            let Some(link) = self.link(&name).await? else { continue };
            if alias(&link).is_some_and(|alias| alias.strip_prefix(TAG) != Some(uid)) {
                continue;
            }
            match self.handle.link().del(link.header.index).execute().await {
                Err(source) if !is(&source, nix::libc::ENODEV) => {
                    return Err(Error::Network { action: "delete", name, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Every tap that is ours, of instances that exist or not.
    ///
    /// # Errors
    /// If the kernel does not list its interfaces.
    pub async fn taps(&self) -> Result<Vec<Tap>> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(|source| Error::Network {
                action: "list",
                name: "the interfaces".into(),
                source,
            })?;
        let ours = |link: &LinkMessage| {
            Some(Tap { name: link_name(link)?.to_owned(), uid: alias(link)?.strip_prefix(TAG)?.to_owned() })
        };
        Ok(links.iter().filter_map(ours).collect())
    }

    /// The addresses of interface `name`; empty if it is not there.
    ///
    /// # Errors
    /// If the kernel does not list them.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>> {
        let Some(link) = self.link(name).await? else { return Ok(Vec::new()) };
        let request = self.handle.address().get().set_link_index_filter(link.header.index);
        let messages: Vec<_> = request.execute().try_collect().await.map_err(|source| Error::Network {
            action: "list the addresses of",
            name: name.to_owned(),
            source,
        })?;
        let address = |attribute: &_| match attribute {
            rtnetlink::packet_route::address::AddressAttribute::Address(address) => Some(*address),
            _ => None,
        };
        Ok(messages.iter().filter_map(|message| message.attributes.iter().find_map(address)).collect())
    }

    async fn link(&self, name: &str) -> Result<Option<LinkMessage>> {
        match self.handle.link().get().match_name(name.to_owned()).execute().try_next().await {
            Ok(link) => Ok(link),
            Err(error) if is(&error, nix::libc::ENODEV) => Ok(None),
            Err(source) => Err(Error::Network { action: "find", name: name.to_owned(), source }),
        }
    }
}

fn is(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

fn alias(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    })
}

fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn is_bridge(link: &LinkMessage) -> bool {
    use rtnetlink::packet_route::link::{InfoKind, LinkInfo};
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_has_the_same_name_for_ever_and_the_kernel_takes_it() {
        assert_eq!(tap_name("0198-a", 0), tap_name("0198-a", 0));
        assert_ne!(tap_name("0198-a", 0), tap_name("0198-b", 0));
        assert_ne!(tap_name("0198-a", 0), tap_name("0198-a", 1));
        assert_eq!(tap_name(&"x".repeat(64), 7).len(), 15);
    }
}
