//! What only one may have: an address, a domain, a prefix. A claim is a key of its own, written in the transaction that
//! takes it, so two can never have the same, whatever crashes when.

use std::net::IpAddr;
use std::str::FromStr;

use form_types::v1::{InstanceStatus, Key, NodeSpec, Resource, TokenSpec, ZoneSpec};
use form_types::{Invalid, Kind as _, kinds};
use ipnet::IpNet;
use prost::Message;

use super::{Plan, Registry};
use crate::store::{Compare, Op};
use crate::{Error, keys};

/// All that `resource` claims: what it is, and which.
pub(super) fn of(resource: &Resource) -> Vec<(&'static str, String)> {
    match resource.kind.as_str() {
        "Instance" => {
            let addresses = part::<InstanceStatus>(&resource.status).addresses.into_iter();
            addresses.map(|address| ("address", canonical::<IpAddr>(address))).collect()
        }
        "Zone" => vec![("domain", part::<ZoneSpec>(&resource.spec).domain)],
        "Node" => {
            let spec = part::<NodeSpec>(&resource.spec);
            let prefixes = [spec.ipv4_prefix, spec.ipv6_prefix].into_iter();
            prefixes.filter(|prefix| !prefix.is_empty()).map(|prefix| ("prefix", canonical::<IpNet>(prefix))).collect()
        }
        _ => Vec::new(),
    }
}

/// The one way to write an address or a prefix: `fd00:0::1` and `fd00::1` are one.
fn canonical<T: FromStr + ToString>(text: String) -> String {
    text.parse::<T>().map_or(text, |value| value.to_string())
}

/// The project or the node that a resource is about, where the right to touch it depends on that.
pub(super) fn about(resource: &Resource) -> String {
    match resource.kind.as_str() {
        "Instance" => part::<InstanceStatus>(&resource.status).node,
        "Node" => resource.name.clone(),
        "Token" => part::<TokenSpec>(&resource.spec).project,
        _ => resource.project.clone(),
    }
}

/// The typed spec or status. What cannot be decoded is refused by validation before it comes here.
pub(super) fn part<M: Message + Default>(any: &Option<prost_types::Any>) -> M {
    any.as_ref().and_then(|any| M::decode(any.value.as_slice()).ok()).unwrap_or_default()
}

impl Registry {
    /// Plans what has to change so that `new` has its claims and gives up those that only `old` had.
    pub(super) async fn plan_claims(
        &self,
        plan: &mut Plan,
        old: Option<&Resource>,
        new: &Resource,
    ) -> Result<(), Error> {
        let (had, wants) = (old.map(of).unwrap_or_default(), of(new));
        for (what, value) in had.iter().filter(|claim| !wants.contains(claim)) {
            plan.ops.push(Op::Delete { key: keys::claim(what, value) });
        }
        for (what, value) in wants.into_iter().filter(|claim| !had.contains(claim)) {
            let key = keys::claim(what, &value);
            if plan.compares.contains(&Compare::Absent(key.clone())) {
                return Err(Error::Taken { what, value, owner: "another part of this transaction".to_owned() });
            }
            // A prefix was looked for among all of them already. Who took it since then makes this be planned again; here it
            // would look like a prefix that was asked for.
            if what != "prefix"
                && let Some(entry) = self.store.get(&key).await?
            {
                let owner = String::from_utf8_lossy(&entry.value).into_owned();
                return Err(Error::Taken { what, value, owner });
            }
            let owner = format!("{} {}/{}", new.kind, new.project, new.name);
            plan.compares.push(Compare::Absent(key.clone()));
            plan.ops.push(Op::Put { key, value: owner.into(), lease: None });
        }
        Ok(())
    }

    /// That what `new` claims besides `old` it may claim: an address has to be out of its node's prefixes.
    pub(super) async fn check_addresses(&self, old: &Resource, new: &Resource) -> Result<(), Error> {
        if new.kind != kinds::Instance::INFO.name {
            return Ok(());
        }
        let had = part::<InstanceStatus>(&old.status).addresses;
        let status = part::<InstanceStatus>(&new.status);
        let fresh: Vec<&String> = status.addresses.iter().filter(|address| !had.contains(address)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let key = Key { kind: kinds::Node::INFO.name.to_owned(), project: String::new(), name: status.node };
        let (node, _) = self.find(&key).await?.ok_or_else(|| Error::NotFound(key.clone()))?;
        let NodeSpec { ipv4_prefix, ipv6_prefix, .. } = part(&node.spec);
        let prefixes = [&ipv4_prefix, &ipv6_prefix].map(|prefix| prefix.parse::<IpNet>().ok());
        for address in fresh {
            let inside = |net: &IpNet| address.parse::<IpAddr>().is_ok_and(|address| net.contains(&address));
            if !prefixes.iter().flatten().any(inside) {
                let text = format!(
                    "{address} is not out of the prefixes of node {}, {ipv4_prefix} and {ipv6_prefix}",
                    key.name
                );
                return Err(Invalid::at("status.addresses", text).into());
            }
        }
        Ok(())
    }

    /// Fills in prefixes that no node has, where `spec` asks for none; refuses those that overlap with another node's.
    /// `had` is what the node has already.
    pub(super) async fn plan_prefixes(
        &self,
        plan: &mut Plan,
        had: &NodeSpec,
        spec: &mut NodeSpec,
    ) -> Result<(), Error> {
        for (path, text, own, is_v4) in [
            ("spec.ipv4_prefix", &mut spec.ipv4_prefix, &had.ipv4_prefix, true),
            ("spec.ipv6_prefix", &mut spec.ipv6_prefix, &had.ipv6_prefix, false),
        ] {
            if text.is_empty() {
                text.clone_from(own);
            }
            let net = text.parse::<IpNet>().ok();
            if net.is_some_and(|net| net.addr().is_ipv4() != is_v4 || net.trunc() != net) {
                let family = if is_v4 { "IPv4" } else { "IPv6" };
                let wanted = format!("{text:?} is not an {family} prefix with nothing after its length");
                return Err(Invalid::at(path, wanted).into());
            }
        }
        if spec.ipv4_prefix == had.ipv4_prefix && spec.ipv6_prefix == had.ipv6_prefix && !had.ipv4_prefix.is_empty() {
            return Ok(());
        }

        let claimed = self.store.get(keys::PREFIXES).await?;
        let key = keys::PREFIXES.to_owned();
        plan.compares
            .push(claimed.map_or(Compare::Absent(key.clone()), |it| Compare::Revision(key.clone(), it.revision)));
        plan.ops.push(Op::Put { key, value: "".into(), lease: None });

        let prefix = |key: &str| key.strip_prefix(keys::CLAIM_PREFIX)?.parse::<IpNet>().ok();
        let (entries, _) = self.store.all(keys::CLAIM_PREFIX).await?;
        let own = [&had.ipv4_prefix, &had.ipv6_prefix].map(|text| text.parse::<IpNet>().ok());
        let mut taken: Vec<(IpNet, String)> = Vec::new();
        taken.extend(entries.iter().filter_map(|entry| {
            let net = prefix(&entry.key).filter(|net| !own.contains(&Some(*net)))?;
            Some((net, String::from_utf8_lossy(&entry.value).into_owned()))
        }));
        taken.extend(plan.compares.iter().filter_map(|compare| match compare {
            Compare::Absent(key) => Some((prefix(key)?, "another part of this transaction".to_owned())),
            _ => None,
        }));
        let overlapping = |net: &IpNet| taken.iter().find(|(other, _)| other.contains(net) || net.contains(other));

        // A range that is too small for its subnets is refused when the configuration is checked.
        let ipv4 = self.cluster.ipv4.subnets(24).map_err(|_| Error::NoPrefixLeft)?.map(IpNet::from);
        let ipv6 = self.cluster.ipv6.subnets(64).map_err(|_| Error::NoPrefixLeft)?.map(IpNet::from);
        let free = |text: &mut String, mut prefixes: &mut dyn Iterator<Item = IpNet>| {
            if let Ok(net) = text.parse::<IpNet>() {
                return overlapping(&net).map_or(Ok(()), |(_, owner)| {
                    Err(Error::Taken { what: "prefix", value: text.clone(), owner: owner.clone() })
                });
            }
            let found = Iterator::find(&mut prefixes, |net| overlapping(net).is_none()).ok_or(Error::NoPrefixLeft)?;
            *text = found.to_string();
            Ok(())
        };
        free(&mut spec.ipv4_prefix, &mut { ipv4 })?;
        free(&mut spec.ipv6_prefix, &mut { ipv6 })
    }
}
