//! Addresses out of a node's prefixes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use form_guest::MacAddr;
use form_types::v1::NodeSpec;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A node's prefixes. Host number 1 is the node itself; instances have the same number in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    ipv4: Ipv4Net,
    ipv6: Ipv6Net,
}

impl Addresses {
    /// `None` where the node has not both.
    pub(crate) fn of(spec: &NodeSpec) -> Option<Self> {
        Some(Self { ipv4: spec.ipv4_prefix.parse().ok()?, ipv6: spec.ipv6_prefix.parse().ok()? })
    }

    /// The node's own addresses, each alone: they are on every bridge, and no bridge has the whole prefix.
    pub(crate) fn gateways(&self) -> [IpNet; 2] {
        let (v4, v6) = self.host(1);
        [IpAddr::V4(v4).into(), IpAddr::V6(v6).into()]
    }

    pub(crate) fn prefixes(&self) -> [IpNet; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// What an instance may have: the number of a host, from 2 to the last.
    pub(crate) fn numbers(&self) -> std::ops::RangeInclusive<u32> {
        let hosts = 1_u32.checked_shl(32 - u32::from(self.ipv4.prefix_len())).unwrap_or(u32::MAX);
        // The last one is for broadcasts.
        2..=hosts.saturating_sub(2)
    }

    pub(crate) fn host(&self, number: u32) -> (Ipv4Addr, Ipv6Addr) {
        let v4 = u32::from(self.ipv4.network()) | number;
        let v6 = u128::from(self.ipv6.network()) | u128::from(number);
        (v4.into(), v6.into())
    }

    /// Whether both addresses are this node's to give.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.contains(&address),
            IpAddr::V6(address) => self.ipv6.contains(&address),
        }
    }

    /// An address as its interface has it: with the length of its prefix.
    pub(crate) fn with_length(&self, address: IpAddr) -> IpNet {
        match address {
            IpAddr::V4(_) => IpNet::new_assert(address, self.ipv4.prefix_len()),
            IpAddr::V6(_) => IpNet::new_assert(address, self.ipv6.prefix_len()),
        }
    }
}

/// The node's own addresses in its prefixes, IPv4 first: where its guests send what is for elsewhere, and ask for names.
pub fn gateways(spec: &NodeSpec) -> Vec<IpAddr> {
    Addresses::of(spec).map(|addresses| addresses.gateways().map(|net| net.addr()).to_vec()).unwrap_or_default()
}

/// The Ethernet address that goes with an IPv4 address: as unique on the bridge as that.
pub(crate) fn mac(address: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = address.octets();
    // 02: locally administered, and not a group.
    MacAddr([0x02, 0xf0, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Addresses {
        let spec = NodeSpec {
            ipv4_prefix: "100.64.3.0/24".into(),
            ipv6_prefix: "fd00:1:2:3::/64".into(),
            ..Default::default()
        };
        Addresses::of(&spec).unwrap()
    }

    #[test]
    fn a_host_has_one_number_in_both_prefixes() {
        let (v4, v6) = node().host(7);
        assert_eq!((v4.to_string(), v6.to_string()), ("100.64.3.7".into(), "fd00:1:2:3::7".into()));
        assert_eq!(mac(v4).to_string(), "02:f0:64:40:03:07");
    }

    #[test]
    fn the_nodes_own_address_and_the_broadcast_are_for_no_instance() {
        assert_eq!(node().numbers(), 2..=254);
        let own: Vec<String> = node().gateways().iter().map(ToString::to_string).collect();
        assert_eq!(own, ["100.64.3.1/32", "fd00:1:2:3::1/128"]);
    }
}
