//! What only one may have: an address, a domain, a prefix. A claim is a key of its own, written in the transaction that
//! takes it, so two can never have the same, whatever crashes when.

use form_types::v1::{InstanceStatus, NodeSpec, Resource, TokenSpec, ZoneSpec};
use ipnet::IpNet;
use prost::Message;

use super::{Plan, Registry};
use crate::store::{Compare, Op, Range};
use crate::{Error, keys};

/// All that `resource` claims: what it is, and which.
pub(super) fn of(resource: &Resource) -> Vec<(&'static str, String)> {
    match resource.kind.as_str() {
        "Instance" => {
            let addresses = part::<InstanceStatus>(&resource.status).addresses.into_iter();
            addresses.map(|address| ("address", address)).collect()
        }
        "Zone" => vec![("domain", part::<ZoneSpec>(&resource.spec).domain)],
        "Node" => {
            let spec = part::<NodeSpec>(&resource.spec);
            let prefixes = [spec.ipv4_prefix, spec.ipv6_prefix].into_iter();
            prefixes.filter(|prefix| !prefix.is_empty()).map(|prefix| ("prefix", prefix)).collect()
        }
        _ => Vec::new(),
    }
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
            if let Some(entry) = self.store.get(&key).await? {
                let owner = String::from_utf8_lossy(&entry.value).into_owned();
                return Err(Error::Taken { what, value, owner });
            }
            let owner = format!("{} {}/{}", new.kind, new.project, new.name);
            plan.compares.push(Compare::Absent(key.clone()));
            plan.ops.push(Op::Put { key, value: owner.into(), lease: None });
        }
        Ok(())
    }

    /// Fills in prefixes that no node has, where `spec` asks for none.
    pub(super) async fn pick_prefixes(&self, spec: &mut NodeSpec) -> Result<(), Error> {
        if !spec.ipv4_prefix.is_empty() && !spec.ipv6_prefix.is_empty() {
            return Ok(());
        }
        let range = Range { prefix: keys::CLAIM_PREFIX.to_owned(), after: None, limit: usize::MAX };
        let taken: std::collections::HashSet<IpNet> = {
            let entries = self.store.list(range).await?.entries;
            entries.iter().filter_map(|entry| entry.key.strip_prefix(keys::CLAIM_PREFIX)?.parse().ok()).collect()
        };
        let free = |mut prefixes: Box<dyn Iterator<Item = IpNet>>| {
            prefixes.find(|prefix| !taken.contains(prefix)).map(|prefix| prefix.to_string()).ok_or(Error::NoPrefixLeft)
        };
        // A range that is too small for its subnets is refused when the configuration is checked.
        if spec.ipv4_prefix.is_empty() {
            let prefixes = self.cluster.ipv4.subnets(24).map_err(|_| Error::NoPrefixLeft)?;
            spec.ipv4_prefix = free(Box::new(prefixes.map(IpNet::from)))?;
        }
        if spec.ipv6_prefix.is_empty() {
            let prefixes = self.cluster.ipv6.subnets(64).map_err(|_| Error::NoPrefixLeft)?;
            spec.ipv6_prefix = free(Box::new(prefixes.map(IpNet::from)))?;
        }
        Ok(())
    }
}
