//! The addresses of Peers. Each has the same number in both of the cluster's ranges for peers, as an instance has in its
//! node's: one claim of each is looked for from a random number on, so that it costs the same with many peers as with few.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Registry;
use super::plan::Plan;
use crate::store::{Compare, StoreError};
use crate::{Error, keys};

impl Registry {
    /// Addresses that nobody has, IPv4 first. Who takes them before this plan is committed makes it be planned again.
    pub(super) async fn free_peer_addresses(&self, plan: &Plan) -> Result<Vec<String>, Error> {
        let (ipv4, ipv6) = (self.cluster.peers_ipv4(), self.cluster.peers_ipv6());
        // Neither the network's own address nor that for broadcasts.
        let most = u32::from(ipv4.broadcast()).wrapping_sub(u32::from(ipv4.network())).saturating_sub(1);
        let start = random(most)?;
        for step in 0..most {
            let number = 1 + (start + step) % most;
            let addresses = [
                Ipv4Addr::from(u32::from(ipv4.network()) | number).to_string(),
                Ipv6Addr::from(u128::from(ipv6.network()) | u128::from(number)).to_string(),
            ];
            if self.nobody_has(plan, &addresses).await? {
                return Ok(addresses.into());
            }
        }
        Err(Error::NoAddressLeft)
    }

    async fn nobody_has(&self, plan: &Plan, addresses: &[String]) -> Result<bool, Error> {
        for address in addresses {
            let key = keys::claim("address", address);
            if plan.compares.contains(&Compare::Absent(key.clone())) || self.store.get(&key).await?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// From 0 up to, and without, `end`.
fn random(end: u32) -> Result<u32, Error> {
    let number = getrandom::u32().map_err(|error| Error::Store(StoreError::Engine(error.to_string().into())))?;
    Ok(number.checked_rem(end).unwrap_or(0))
}
