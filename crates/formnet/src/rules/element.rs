//! What sets hold, in the words of nft.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::links::check_name;

/// What is true of one address or port, on this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// This address is on the network behind this bridge.
    Member {
        /// An instance's, here or elsewhere, or a laptop's.
        address: IpAddr,
        /// The bridge.
        bridge: String,
    },
    /// This tap may send from this card and address. With an IPv6 address goes the link-local one of the card (EUI-64):
    /// a tap has one IPv6 address.
    Owner {
        /// The tap.
        tap: String,
        /// The guest's card.
        mac: [u8; 6],
        /// The guest's address.
        address: IpAddr,
    },
    /// A node's own address in the mesh.
    Node {
        /// The address.
        address: IpAddr,
    },
    /// A port of this node leads to an instance.
    Publish {
        /// TCP or UDP.
        protocol: Protocol,
        /// The node's.
        host_port: u16,
        /// The instance's.
        to: SocketAddr,
    },
}

/// What has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Elements by their sets: family, name.
#[derive(Debug, Default)]
pub(super) struct Script(BTreeMap<(&'static str, &'static str), Vec<Expression>>);

/// A command of nft's JSON.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Command<'a> {
    Add { element: Items<'a> },
    Delete { element: Items<'a> },
}

#[derive(Serialize)]
pub(super) struct Items<'a> {
    family: &'static str,
    table: &'static str,
    name: &'static str,
    elem: &'a [Expression],
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Expression {
    Word(String),
    Number(u16),
    Concat { concat: Vec<Expression> },
    Mapping([Box<Expression>; 2]),
}

impl Script {
    /// # Errors
    /// If the name of an interface is none: it could be something else to nft.
    pub(super) fn push(&mut self, element: &Element) -> Result<()> {
        match element {
            Element::Member { address, bridge } => {
                let set = pick(*address, "members4", "members6");
                self.item("inet", set, concat([word(address), word(check_name(bridge)?)]));
            }
            Element::Node { address } => self.item("inet", pick(*address, "nodes4", "nodes6"), word(address)),
            Element::Owner { tap, mac, address } => {
                let tap = check_name(tap)?;
                let mut item = |set, last| self.item("bridge", set, concat([word(tap), word(Mac(mac)), last]));
                match address {
                    IpAddr::V4(address) => item("owners4", word(address)),
                    IpAddr::V6(address) => {
                        for address in [*address, link_local(*mac)] {
                            item("owners6", word(address));
                            item("targets6", word(format_args!("{:#034x}", address.to_bits())));
                        }
                    }
                }
            }
            Element::Publish { protocol, host_port, to } => {
                let key = concat([Expression::Number(protocol.number()), Expression::Number(*host_port)]);
                let data = concat([word(to.ip()), Expression::Number(to.port())]);
                let set = pick(to.ip(), "publish4", "publish6");
                self.item("inet", set, Expression::Mapping([key, data].map(Box::new)));
            }
        }
        Ok(())
    }

    fn item(&mut self, family: &'static str, set: &'static str, item: Expression) {
        self.0.entry((family, set)).or_default().push(item);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what leads somewhere: refused where it leads elsewhere by now. The kernel deletes by the key alone.
    pub(super) fn claims(&self) -> impl Iterator<Item = Command<'_>> {
        let leads = |items: &Items<'_>| matches!(items.elem, [Expression::Mapping(_), ..]);
        self.items().filter(leads).map(|element| Command::Add { element })
    }

    pub(super) fn adds(&self) -> impl Iterator<Item = Command<'_>> {
        self.items().map(|element| Command::Add { element })
    }

    pub(super) fn deletes(&self) -> impl Iterator<Item = Command<'_>> {
        self.items().map(|element| Command::Delete { element })
    }

    fn items(&self) -> impl Iterator<Item = Items<'_>> {
        self.0.iter().map(|(&(family, name), elem)| Items { family, table: "formation", name, elem })
    }
}

fn word(word: impl std::fmt::Display) -> Expression {
    Expression::Word(word.to_string())
}

fn concat<const N: usize>(parts: [Expression; N]) -> Expression {
    Expression::Concat { concat: parts.into() }
}

impl Protocol {
    fn number(self) -> u16 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// The elements in a listing of `nft -j`, without what only goes with them.
pub(super) fn parse(listing: &Value) -> HashSet<Element> {
    let mut found = HashSet::new();
    for object in listing.get("nftables").and_then(Value::as_array).into_iter().flatten() {
        let Some(set) = object.get("set").or_else(|| object.get("map")) else { continue };
        let Some(name) = set.get("name").and_then(Value::as_str) else { continue };
        for item in set.get("elem").and_then(Value::as_array).into_iter().flatten() {
            found.extend(element(name, item));
        }
    }
    found
}

fn element(set: &str, item: &Value) -> Option<Element> {
    Some(match set {
        "members4" | "members6" => {
            let (address, bridge) = (part(item, 0)?.parse().ok()?, part(item, 1)?);
            Element::Member { address, bridge }
        }
        "nodes4" | "nodes6" => Element::Node { address: item.as_str()?.parse().ok()? },
        "owners4" | "owners6" => {
            let address: IpAddr = part(item, 2)?.parse().ok()?;
            if matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()) {
                return None;
            }
            Element::Owner { tap: part(item, 0)?, mac: parse_mac(&part(item, 1)?)?, address }
        }
        "publish4" | "publish6" => {
            let (key, data) = (item.get(0)?, item.get(1)?);
            let protocol = match part(key, 0)?.as_str() {
                "tcp" | "6" => Protocol::Tcp,
                "udp" | "17" => Protocol::Udp,
                _ => return None,
            };
            let to = SocketAddr::new(part(data, 0)?.parse().ok()?, part(data, 1)?.parse().ok()?);
            Element::Publish { protocol, host_port: part(key, 1)?.parse().ok()?, to }
        }
        _ => return None,
    })
}

/// One part of a concatenation; nft writes some as numbers.
fn part(item: &Value, index: usize) -> Option<String> {
    match item.get("concat")?.get(index)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn pick(address: IpAddr, v4: &'static str, v6: &'static str) -> &'static str {
    if address.is_ipv4() { v4 } else { v6 }
}

/// fe80::/64 with the card's number in it (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let [low, high] = [[a ^ 2, b, c, 0xff], [0xfe, d, e, f]].map(u32::from_be_bytes);
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(low) << 32 | u128::from(high))
}

struct Mac<'a>(&'a [u8; 6]);

impl std::fmt::Display for Mac<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// Of one family each, IPv4 first.
pub(super) fn prefixes(what: &'static str, [v4, v6]: [ipnet::IpNet; 2]) -> Result<[String; 2]> {
    let fits = v4.addr().is_ipv4() && v6.addr().is_ipv6();
    if fits { Ok([v4, v6].map(|prefix| prefix.trunc().to_string())) } else { Err(Error::Ranges { what }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_of_a_card_is_the_one_that_its_guest_gives_itself() {
        assert_eq!(link_local([0x02, 0xf0, 0x64, 0x40, 0x03, 0x07]).to_string(), "fe80::f0:64ff:fe40:307");
    }

    #[test]
    fn a_name_that_nft_could_take_for_more_is_refused() {
        for bad in ["", "a b", "fmb*", "\" } flush", "fmb0123456789abcd", "@members4", "fmb\n"] {
            let member = Element::Member { address: [10, 0, 0, 1].into(), bridge: bad.into() };
            assert!(matches!(Script::default().push(&member), Err(Error::Name { .. })), "{bad:?}");
        }
    }
}
