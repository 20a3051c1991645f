//! The addresses of links.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::LinkFlags;

use super::{Links, errno, is_ours, link_name};
use crate::error::{Error, Result, network};

impl Links {
    /// The global addresses of interfaces that are not ours, each with its interface: where this node may be reached.
    ///
    /// # Errors
    /// If the kernel does not list them.
    pub async fn addresses(&self) -> Result<Vec<(String, IpNet)>> {
        let links = self.links().await?;
        let mut found = Vec::new();
        for message in self.all_addresses(None).await? {
            let link = links.iter().find(|link| link.header.index == message.header.index);
            let Some(link) = link.filter(|link| !is_ours(link) && link.header.flags.contains(LinkFlags::Up)) else {
                continue;
            };
            // One that is not sure yet to be ours alone, or is about to go, is no address to tell others.
            let fleeting = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
            if message.header.scope == AddressScope::Universe && !flags(&message).intersects(fleeting) {
                found.extend(link_name(link).map(str::to_owned).zip(net(&message)));
            }
        }
        Ok(found)
    }

    /// The addresses of link `name` that somebody gave it.
    pub(crate) async fn addresses_of(&self, name: &str) -> Result<Vec<IpNet>> {
        let index = self.expect(name).await?.header.index;
        let messages = self.all_addresses(Some(index)).await?;
        Ok(messages.iter().filter(|message| message.header.scope == AddressScope::Universe).filter_map(net).collect())
    }

    /// Gives a link of ours the addresses `wanted`, and no others of global scope.
    pub(super) async fn settle_addresses(&self, index: u32, name: &str, wanted: &[IpNet]) -> Result<()> {
        let messages = self.all_addresses(Some(index)).await?;
        let mut have = Vec::new();
        for message in messages.into_iter().filter(|message| message.header.scope == AddressScope::Universe) {
            match net(&message) {
                Some(net) if wanted.contains(&net) => have.push(net),
                _ => self.delete_address(message, name).await?,
            }
        }
        for net in wanted.iter().filter(|net| !have.contains(net)) {
            let mut add = self.handle.address().add(index, net.addr(), net.prefix_len());
            let message = add.message_mut();
            // Nobody else has it: the store gave it to us. And what is behind it, we say by routes.
            let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
            message.attributes.push(AddressAttribute::Flags(flags));
            message.header.flags = AddressHeaderFlags::Nodad;
            match add.execute().await {
                Err(error) if errno(&error) != nix::libc::EEXIST => {
                    return Err(network("add an address to", name)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn delete_address(&self, message: AddressMessage, name: &str) -> Result<()> {
        match self.handle.address().del(message).execute().await {
            // With the first of a prefix may go the others.
            Err(error) if errno(&error) != nix::libc::EADDRNOTAVAIL => {
                Err(network("delete an address of", name)(error))
            }
            _ => Ok(()),
        }
    }

    async fn all_addresses(&self, index: Option<u32>) -> Result<Vec<AddressMessage>, Error> {
        let mut request = self.handle.address().get();
        if let Some(index) = index {
            request = request.set_link_index_filter(index);
        }
        request.execute().try_collect().await.map_err(network("list", "the addresses"))
    }
}

/// An interface's own address; on a point-to-point link the other attribute is its peer's.
fn net(message: &AddressMessage) -> Option<IpNet> {
    let pick = |local| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    let address: IpAddr = pick(true).or_else(|| pick(false))?;
    IpNet::new(address, message.header.prefix_len).ok()
}

fn flags(message: &AddressMessage) -> AddressFlags {
    let all = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    all.unwrap_or(AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())))
}
