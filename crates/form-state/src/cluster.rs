//! The cluster's ranges of addresses: decided when it is made, and never changed.
//!
//! ```text
//!   IPv4  100.64.0.0/10   a /24 for each node … │ the last /20: Peers
//!   IPv6  fdxx:xxxx:xxxx::/48   a /64 for each node … │ the last /64: Peers
//! ```

use std::io;
use std::net::Ipv6Addr;
use std::path::Path;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Whoever makes the CA may decide on the ranges too, and write them down beside it.
const FILE: &str = "cluster.toml";
/// The prefix that peers' IPv4 addresses are out of, where the range is large enough for such a one.
const PEERS_IPV4: u8 = 20;

/// The ranges that all addresses of the cluster are out of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub ipv4: Ipv4Net,
    /// A ULA /48 (RFC 4193).
    pub ipv6: Ipv6Net,
}

impl Cluster {
    /// A new cluster's, with a /48 picked at random (RFC 4193, section 3.2).
    pub fn new(ipv4: Ipv4Net) -> Self {
        let random = uuid::Uuid::new_v4().as_u128();
        let address = Ipv6Addr::from((0xfd << 120) | (random & (((1 << 40) - 1) << 80)));
        Self { ipv4, ipv6: Ipv6Net::new_assert(address, 48).trunc() }
    }

    /// What stands in `dir`; `None`: nobody decided yet.
    ///
    /// # Errors
    /// Where it is there and cannot be used.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read_to_string(dir.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let cluster: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        check_ipv4(cluster.ipv4).map_err(|why| wrong(format!("ipv4: {why}")))?;
        if cluster.ipv6.prefix_len() != 48 || cluster.ipv6.trunc() != cluster.ipv6 {
            return Err(wrong(format!("ipv6: {} is not a /48", cluster.ipv6)));
        }
        Ok(Some(cluster))
    }

    /// Writes down what was decided.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        form_service::file::replace(&dir.join(FILE), text.as_bytes(), 0o644)
    }

    /// Peers have their IPv4 addresses from here.
    pub fn peers_ipv4(&self) -> Ipv4Net {
        // A quarter of a range that is smaller than four such prefixes.
        let length = PEERS_IPV4.max(self.ipv4.prefix_len().saturating_add(2)).min(32);
        let size = 1_u32.checked_shl(32 - u32::from(length)).unwrap_or(0);
        let first = u32::from(self.ipv4.broadcast()).wrapping_sub(size.wrapping_sub(1));
        Ipv4Net::new(first.into(), length).unwrap_or(self.ipv4)
    }

    /// Peers have their IPv6 addresses from here.
    pub fn peers_ipv6(&self) -> Ipv6Net {
        let first = u128::from(self.ipv6.broadcast()) & !u128::from(u64::MAX);
        Ipv6Net::new(first.into(), 64).unwrap_or(self.ipv6)
    }
}

/// Whether a cluster can live in `range`.
///
/// # Errors
/// With what is wrong with it.
pub fn check_ipv4(range: Ipv4Net) -> Result<(), String> {
    // Of a /24, a quarter is for peers.
    if range.prefix_len() > 23 { Err(format!("{range} has no room for a node's /24 beside the peers")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_have_the_end_of_both_ranges() {
        for (ipv4, peers) in [
            ("100.64.0.0/10", "100.127.240.0/20"),
            ("10.0.0.0/18", "10.0.48.0/20"),
            ("10.0.0.0/20", "10.0.12.0/22"),
            ("10.0.0.0/23", "10.0.1.128/25"),
        ] {
            let cluster = Cluster { ipv4: ipv4.parse().unwrap(), ipv6: "fd00:1:2::/48".parse().unwrap() };
            assert_eq!(cluster.peers_ipv4().to_string(), peers);
            assert_eq!(cluster.peers_ipv6().to_string(), "fd00:1:2:ffff::/64");
        }
    }

    #[test]
    fn what_was_decided_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Cluster::read(dir.path()).unwrap(), None);
        let cluster = Cluster::new("10.0.0.0/16".parse().unwrap());
        cluster.write(dir.path()).unwrap();
        assert_eq!(Cluster::read(dir.path()).unwrap(), Some(cluster));
        for wrong in
            ["ipv4 = \"10.0.0.0/24\"\nipv6 = \"fd00::/48\"", "ipv4 = \"10.0.0.0/16\"\nipv6 = \"fd00::/40\"", "x"]
        {
            std::fs::write(dir.path().join(FILE), wrong).unwrap();
            Cluster::read(dir.path()).unwrap_err();
        }
    }
}
