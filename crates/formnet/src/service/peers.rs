//! Peers: laptops, let in by their key for as long as their resource says.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use form_client::{Action, Controller, Name};
use form_service::Health;
use form_types::{Kind as _, Object, kinds};
use ipnet::IpNet;

use super::ControlError;
use crate::known::Known;
use crate::links::bridge_name;
use crate::plane::{Owner, Plane, Share};
use crate::rules::Element;
use crate::tunnel::TunnelPeer;

type Peer = Object<kinds::Peer>;

pub(super) struct Peers {
    pub(super) plane: Plane,
    pub(super) known: Known,
    pub(super) health: Health,
}

impl Controller for Peers {
    type Kind = kinds::Peer;
    type Error = ControlError;

    async fn reconcile(&self, name: &Name, wanted: Option<Peer>) -> Result<Action, ControlError> {
        let owner = owner(&name.project, &name.name);
        let Some(peer) = wanted else {
            // Cut first: nothing else counts now.
            self.plane.set(owner, None).await?;
            self.known.gone::<kinds::Peer>(&name.project, &name.name).await;
            return Ok(Action::Wait);
        };
        let left = left(&peer, SystemTime::now());
        self.known.put(peer.clone()).await;
        self.plane.set(owner, share(&peer, SystemTime::now())).await?;
        Ok(left.map_or(Action::Wait, Action::After))
    }

    async fn listed(&self, all: &[Peer]) {
        self.known.only(all).await;
        let owners: HashSet<Owner> = all.iter().map(|it| owner(&it.meta.project, &it.meta.name)).collect();
        super::sweep(&self.plane, kinds::Peer::INFO.name, owners).await;
        self.health.done("peers");
    }
}

pub(super) fn owner(project: &str, name: &str) -> Owner {
    Owner { kind: kinds::Peer::INFO.name, project: project.to_owned(), name: name.to_owned() }
}

/// How long it is still let in; `None`: for good, or not any more.
fn left(peer: &Peer, now: SystemTime) -> Option<Duration> {
    let ends = SystemTime::try_from(peer.spec.expires_at?).ok()?;
    ends.duration_since(now).ok().filter(|left| !left.is_zero())
}

/// `None`: it is not let in.
pub(super) fn share(peer: &Peer, now: SystemTime) -> Option<Share> {
    // A time that cannot be read is no reason to let someone in.
    let is_over = peer.spec.expires_at.is_some() && left(peer, now).is_none();
    if is_over || peer.is_being_deleted() || peer.status.addresses.is_empty() {
        return None;
    }
    let network = if peer.spec.network.is_empty() { "default" } else { &peer.spec.network };
    let bridge = bridge_name(&peer.meta.project, network);
    let addresses: Vec<IpAddr> = peer.status.addresses.iter().filter_map(|address| address.parse().ok()).collect();
    let routes: Vec<IpNet> = addresses.iter().copied().map(IpNet::from).collect();
    Some(Share {
        elements: addresses.into_iter().map(|address| Element::Member { address, bridge: bridge.clone() }).collect(),
        // It calls us; where it is, its handshake says.
        peer: Some(TunnelPeer {
            public_key: peer.spec.public_key.clone(),
            endpoint: None,
            allowed: routes.clone(),
            keepalive: None,
        }),
        routes,
        ..Share::default()
    })
}

#[cfg(test)]
mod tests {
    use form_types::timestamp;
    use form_types::v1::{PeerSpec, PeerStatus};

    use super::*;

    #[test]
    fn a_peer_is_let_in_until_its_time_is_over() {
        let now = SystemTime::now();
        let until = |ends: SystemTime| {
            let spec = PeerSpec { expires_at: Some(timestamp(ends)), ..Default::default() };
            let mut peer = Peer::new("p", "laptop", spec);
            peer.status = PeerStatus { addresses: vec!["100.127.0.2".into(), "fd00::2".into()] };
            peer
        };
        let minute = Duration::from_secs(60);
        let share = share(&until(now + minute), now).unwrap();
        assert_eq!((share.elements.len(), share.routes.len()), (2, 2));
        assert!(left(&until(now + minute), now).is_some());
        assert_eq!(super::share(&until(now - minute), now), None);
        assert_eq!(super::share(&until(now), now), None);
    }
}
