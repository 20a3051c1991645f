//! What the cluster is told of this node's end of the mesh: its key, where it is, how large its packets may be.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use form_client::Client;
use form_service::Health;
use form_service::run::chain;
use form_types::v1::{Mesh, event_spec};
use form_types::{Object, kinds, timestamp};
use ipnet::IpNet;

use crate::config::Config;
use crate::error::Result;
use crate::keys::Keys;
use crate::links::Links;
use crate::mtu;
use crate::plane::Plane;

/// What health waits for: a node that nobody can reach is not ready.
pub(super) const MESH: &str = "mesh";
/// Addresses and links change without us.
const LOOK: Duration = Duration::from_secs(5);
/// As many as a Node's status takes.
const MOST_ENDPOINTS: usize = 16;

pub(super) struct Publisher {
    pub(super) client: Client,
    pub(super) config: Arc<Config>,
    pub(super) health: Health,
    pub(super) plane: Plane,
    pub(super) links: Links,
    /// What keeps packets from being passed on.
    pub(super) trouble: Option<String>,
    pub(super) keys: Keys,
}

impl Publisher {
    pub(super) async fn run(mut self) {
        loop {
            if let Err(error) = self.look().await {
                tracing::warn!(error = chain(&*error), "the cluster is not told yet how this node is reached");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&mut self) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let renewed = self.keys.is_old(self.config.key_days, SystemTime::now());
        if renewed {
            // The others' sessions with the old key live on until they have heard of the new one.
            let key = self.keys.renew()?.clone();
            self.plane.key(key).await?;
        }
        let wide = self.mtu().await?;
        if wide != self.plane.view(|view| view.mtu) {
            self.plane.mtu(wide).await?;
        }
        let mesh = self.mesh().await?;
        let mut node = self.client.get::<kinds::Node>("", &self.config.node).await?;
        let before = node.status.mesh.replace(mesh.clone());
        if before.as_ref() != Some(&mesh) {
            node = match self.client.update_status(node).await {
                // vmm-service said something in between.
                Err(form_client::Error::Conflict(_)) => return Box::pin(self.look()).await,
                result => result?,
            };
            self.tell(&node, before.as_ref(), &mesh).await;
        }
        self.health.done(MESH);
        Ok(())
    }

    async fn mesh(&self) -> Result<Mesh> {
        let (trouble, mtu, backend) = self.plane.view(|view| (view.trouble.clone(), view.mtu, view.backend));
        let message = self.trouble.clone().or(trouble);
        let reason = match (&self.trouble, &message) {
            (Some(_), _) => "NoForwarding",
            (None, Some(_)) => "Trouble",
            (None, None) => "",
        };
        let configured = self.config.endpoints.iter().copied();
        let found = endpoints(&self.links.addresses().await?, self.config.port);
        let mut seen = HashSet::new();
        let endpoints = configured.chain(found).filter(|endpoint| seen.insert(*endpoint)).take(MOST_ENDPOINTS);
        Ok(Mesh {
            public_key: self.keys.current().public(),
            key_since: Some(timestamp(self.keys.since())),
            endpoints: endpoints.map(|endpoint| endpoint.to_string()).collect(),
            url: self.config.public_url.clone(),
            interface: self.config.interface.clone(),
            backend: backend.to_owned(),
            mtu,
            ready: message.is_none(),
            reason: reason.to_owned(),
            message: message.unwrap_or_default(),
        })
    }

    /// By the narrowest link on the way to another node.
    async fn mtu(&self) -> Result<u32> {
        if self.config.mtu != 0 {
            return Ok(self.config.mtu);
        }
        let peers = self.plane.peers().await?;
        let ends: HashSet<IpAddr> = peers.iter().filter_map(|peer| Some(peer.endpoint?.ip())).collect();
        let mut least = None;
        for end in ends {
            // One that cannot be reached now says nothing.
            let wide = self.links.mtu_towards(end).await?;
            least = [least, wide].into_iter().flatten().min();
        }
        Ok(mtu::of_mesh(0, least))
    }

    async fn tell(&self, node: &Object<kinds::Node>, before: Option<&Mesh>, mesh: &Mesh) {
        let event = async |kind, reason, message: String| {
            self.client.event::<kinds::Node>(&node.meta, kind, reason, message).await;
        };
        if before.is_none_or(|before| before.public_key != mesh.public_key) {
            let text = format!("its key in the mesh is {}", mesh.public_key);
            event(event_spec::Type::Normal, "MeshKey", text).await;
        }
        if before.is_none_or(|before| before.ready) && !mesh.ready {
            event(event_spec::Type::Warning, "MeshTrouble", mesh.message.clone()).await;
        }
        if before.is_some_and(|before| !before.ready) && mesh.ready {
            event(event_spec::Type::Normal, "MeshReady", "the network is as it should be".to_owned()).await;
        }
    }
}

/// This machine's addresses that another may reach, with WireGuard's port: IPv4 first, for it is what most paths have.
fn endpoints(addresses: &[(String, IpNet)], port: u16) -> Vec<SocketAddr> {
    let reachable = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local() && !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local() && !address.is_unspecified(),
    };
    let mut found: Vec<IpAddr> = addresses.iter().map(|(_, net)| net.addr()).filter(reachable).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_that_others_can_reach() {
        let addresses = ["127.0.0.1/8", "fe80::1/64", "2001:db8::1/64", "192.0.2.7/24", "::1/128", "169.254.1.1/16"];
        let addresses: Vec<_> = addresses.iter().map(|net| ("eth0".to_owned(), net.parse().unwrap())).collect();
        let found: Vec<String> = endpoints(&addresses, 51820).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.7:51820", "[2001:db8::1]:51820"]);
    }
}
