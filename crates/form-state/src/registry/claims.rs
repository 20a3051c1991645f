//! What only one may have: an address, a domain, a key, a port of a node, a prefix. A claim is a key of its own, written in the transaction that
//! takes it, so two can never have the same, whatever crashes when.

use std::net::IpAddr;
use std::str::FromStr;

use form_types::v1::{
    InstanceSpec, InstanceStatus, Key, NodeSpec, NodeStatus, PeerSpec, PeerStatus, Resource, TokenSpec, ZoneSpec,
};
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
            let status = part::<InstanceStatus>(&resource.status);
            let ports = ports(&status.node, &part::<InstanceSpec>(&resource.spec));
            let ports = ports.into_iter().map(|port| ("port", port));
            status.addresses.into_iter().map(address).chain(ports).collect()
        }
        "Peer" => {
            let addresses = part::<PeerStatus>(&resource.status).addresses.into_iter();
            let key = ("key", part::<PeerSpec>(&resource.spec).public_key);
            addresses.map(address).chain([key]).collect()
        }
        "Zone" => vec![("domain", part::<ZoneSpec>(&resource.spec).domain)],
        "Node" => {
            let spec = part::<NodeSpec>(&resource.spec);
            let prefixes = [spec.ipv4_prefix, spec.ipv6_prefix].into_iter();
            let prefixes =
                prefixes.filter(|prefix| !prefix.is_empty()).map(|prefix| ("prefix", canonical::<IpNet>(prefix)));
            // Somebody's laptop with a node's key would be taken for the node.
            let mesh = part::<NodeStatus>(&resource.status).mesh;
            prefixes.chain(mesh.map(|mesh| ("key", mesh.public_key))).collect()
        }
        _ => Vec::new(),
    }
}

/// The ports of `node` that an instance with this spec has, once it is placed there.
pub(crate) fn ports(node: &str, spec: &InstanceSpec) -> Vec<String> {
    let placed = spec.publish.iter().filter(|_| !node.is_empty());
    placed.map(|port| format!("{node}/{}/{}", port.protocol().as_str_name(), port.host_port)).collect()
}

fn address(text: String) -> (&'static str, String) {
    ("address", canonical::<IpAddr>(text))
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
pub(crate) fn part<M: Message + Default>(any: &Option<prost_types::Any>) -> M {
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
            // A prefix was looked for among all of them already, and so was a peer's address. Who took it since then makes
            // this be planned again; here it would look like one that was asked for.
            let was_found = what == "prefix" || (what == "address" && new.kind == kinds::Peer::INFO.name);
            if !was_found && let Some(entry) = self.store.get(&key).await? {
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
}
