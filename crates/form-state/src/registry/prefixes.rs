//! The prefixes of nodes, out of the cluster's ranges. What is for [peers] is no node's.
//!
//! [peers]: super::peers

use form_types::Invalid;
use form_types::v1::NodeSpec;
use ipnet::IpNet;

use super::Registry;
use super::plan::Plan;
use crate::store::{Compare, Op};
use crate::{Error, keys};

impl Registry {
    /// Fills in prefixes that no node has, where `spec` asks for none; refuses those that overlap with another node's.
    /// `had` is what the node has already. What the cluster's ranges are is said here, and by nobody else.
    pub(super) async fn plan_prefixes(
        &self,
        plan: &mut Plan,
        had: &NodeSpec,
        spec: &mut NodeSpec,
    ) -> Result<(), Error> {
        spec.cluster_ipv4 = self.cluster.ipv4.trunc().to_string();
        spec.cluster_ipv6 = self.cluster.ipv6.trunc().to_string();
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
        let peers = [IpNet::from(self.cluster.peers_ipv4()), IpNet::from(self.cluster.peers_ipv6())];
        taken.extend(peers.map(|net| (net, "the cluster's Peers".to_owned())));
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
