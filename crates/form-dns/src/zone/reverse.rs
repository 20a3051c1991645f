use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;
use ipnet::IpNet;

/// The name under which the PTR record of `address` stands.
pub fn reverse_name(address: IpAddr) -> Name {
    let mut name = Name::from(address);
    name.set_fqdn(true);
    name
}

/// The apexes of the zones that together hold the reverse names of `prefix`.
///
/// Zones end between octets (IPv4) or hexadecimal digits (IPv6); a prefix that does not takes up to 128 or 8 of them:
/// 100.64.0.0/10 is 64.100.in-addr.arpa to 127.100.in-addr.arpa.
pub fn reverse_zones(prefix: IpNet) -> Vec<Name> {
    let (label_bits, all_bits) = match prefix {
        IpNet::V4(_) => (8_u8, 32_u8),
        IpNet::V6(_) => (4, 128),
    };
    let aligned = prefix.prefix_len().div_ceil(label_bits).saturating_mul(label_bits);
    let free = aligned.saturating_sub(prefix.prefix_len());
    let labels = usize::from(aligned / label_bits).saturating_add(2);
    let count = 1_u128.checked_shl(u32::from(free)).unwrap_or(0);
    let step = 1_u128.checked_shl(u32::from(all_bits.saturating_sub(aligned))).unwrap_or(0);
    let first = match prefix.network() {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    (0..count)
        .filter_map(|i| {
            let address = first.checked_add(i.checked_mul(step)?)?;
            let address = match prefix {
                IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(address).ok()?)),
                IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(address)),
            };
            Some(reverse_name(address).trim_to(labels))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(prefix: &str) -> Vec<String> {
        reverse_zones(prefix.parse().unwrap()).iter().map(Name::to_ascii).collect()
    }

    #[test]
    fn rfc1035_3_5_and_rfc3596_2_5_prefixes_become_reverse_zones() {
        assert_eq!(zones("10.1.0.0/16"), ["1.10.in-addr.arpa."]);
        assert_eq!(zones("10.1.2.3/32"), ["3.2.1.10.in-addr.arpa."]);
        assert_eq!(zones("fd00:1:2::/48"), ["2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa."]);
        assert_eq!(zones("0.0.0.0/0"), ["in-addr.arpa."]);
        let shared = zones("100.64.0.0/10");
        assert_eq!(
            (shared.len(), shared[0].as_str(), shared[63].as_str()),
            (64, "64.100.in-addr.arpa.", "127.100.in-addr.arpa.")
        );
        assert_eq!(zones("255.254.0.0/15"), ["254.255.in-addr.arpa.", "255.255.in-addr.arpa."]);
    }
}
