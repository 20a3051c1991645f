//! Where the other nodes are: which of a node's candidates its packets go to, and whether they arrive.
//!
//! ```text
//!   candidates ──first──▶ tried ──a handshake──▶ good ──▶ WireGuard follows it by itself, wherever it goes
//!        ▲                  │ 5 s without                    │ no handshake for 3 min
//!        └──────next────────┴────────────────────────────────┘
//! ```
//!
//! While there are handshakes nothing here touches a peer: what WireGuard learned from a handshake's source is better
//! than what anybody wrote down.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use form_types::{Object, kinds};
use futures::{StreamExt as _, stream};
use tokio::sync::Notify;

use super::nodes::{address, candidates};
use super::probe::Probe;
use crate::plane::Plane;
use crate::tunnel::{PeerState, TunnelPeer};

/// How long a candidate has for a handshake: WireGuard's own patience (REKEY_TIMEOUT).
const TRY: Duration = Duration::from_secs(5);
/// After this, WireGuard takes a session for dead (REJECT_AFTER_TIME).
const FRESH: Duration = Duration::from_secs(180);
const TICK: Duration = Duration::from_secs(2);
/// Each peer is probed this often.
const PROBE: Duration = Duration::from_secs(10);
/// What loss is counted over.
const PROBES: usize = 10;
const TOGETHER: usize = 64;
/// The size of a probe, bytes with its headers.
const SMALL: usize = 64;

/// The other nodes, as packets find them.
#[derive(Default)]
pub(super) struct Endpoints {
    peers: Mutex<HashMap<String, Peer>>,
    /// There is one that is to be probed now.
    wake: Notify,
}

/// What is known of one.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) public_key: String,
    pub(super) address: IpAddr,
    candidates: Vec<SocketAddr>,
    /// Where it was when it last was heard of.
    good: Option<SocketAddr>,
    next: usize,
    tried: Instant,
    probed: Option<Instant>,
    /// The last probes, the newest last; `None`: lost.
    probes: VecDeque<Option<Duration>>,
}

impl Peer {
    /// Of the last probe that was answered.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.probes.iter().rev().find_map(|probe| *probe)
    }

    /// The part of the last probes that was lost, 0 to 1; `None`: none was sent yet.
    pub(super) fn loss(&self) -> Option<f64> {
        let lost = u32::try_from(self.probes.iter().filter(|probe| probe.is_none()).count()).ok()?;
        let all = u32::try_from(self.probes.len()).ok().filter(|all| *all > 0)?;
        Some(f64::from(lost) / f64::from(all))
    }
}

impl Endpoints {
    /// The endpoint that a peer starts with; `None` for one that is there already: it keeps what it has. With a new key it
    /// is another peer, at the same place.
    pub(super) fn first(&self, node: &str, public_key: &str, candidates: &[SocketAddr]) -> Option<SocketAddr> {
        match self.peers().get(node) {
            Some(peer) if peer.public_key == public_key => None,
            Some(peer) => peer.good.or(candidates.first().copied()),
            None => candidates.first().copied(),
        }
    }

    /// The node's peer is made: from now on it is looked after.
    pub(super) fn follow(&self, node: &Object<kinds::Node>) {
        let name = &node.meta.name;
        let (Some(mesh), Some(address)) = (&node.status.mesh, address(node)) else { return self.forget(name) };
        let candidates = candidates(node);
        let mut peers = self.peers();
        match peers.get_mut(name).filter(|peer| peer.public_key == mesh.public_key) {
            Some(peer) if peer.candidates == candidates => peer.address = address,
            Some(peer) => {
                // It told of other places, so it moved, or will: if it does not answer, they are tried from the first.
                (peer.candidates, peer.next, peer.address) = (candidates, 0, address);
            }
            None => {
                let before = peers.remove(name);
                let peer = Peer {
                    public_key: mesh.public_key.clone(),
                    address,
                    candidates,
                    good: before.as_ref().and_then(|before| before.good),
                    next: 1,
                    tried: Instant::now(),
                    // At once: a handshake begins with something to send.
                    probed: None,
                    probes: before.map(|before| before.probes).unwrap_or_default(),
                };
                peers.insert(name.clone(), peer);
                self.wake.notify_one();
            }
        }
    }

    pub(super) fn forget(&self, node: &str) {
        self.peers().remove(node);
    }

    pub(super) fn all(&self) -> HashMap<String, Peer> {
        self.peers().clone()
    }

    /// Looks after all, until it is dropped.
    pub(super) async fn run(&self, plane: &Plane, probe: &Probe) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.wake.notified() => {}
            }
            match plane.peers().await {
                Ok(states) => self.try_others(plane, &states).await,
                Err(error) => {
                    tracing::warn!(error = form_service::run::chain(&error), "the mesh's peers cannot be read");
                }
            }
            self.probe(probe).await;
        }
    }

    /// Gives those without a handshake their next candidate.
    async fn try_others(&self, plane: &Plane, states: &[PeerState]) {
        let by_key: HashMap<&str, &PeerState> = states.iter().map(|it| (it.public_key.as_str(), it)).collect();
        for change in self.silent(&by_key, Instant::now()) {
            let (node, endpoint) = (change.0, change.1.endpoint);
            match plane.endpoint(change.1).await {
                Ok(()) => tracing::debug!(node, ?endpoint, "no handshake; another endpoint is tried"),
                Err(error) => tracing::warn!(node, error = form_service::run::chain(&error), "no endpoint can be set"),
            }
        }
    }

    fn silent(&self, states: &HashMap<&str, &PeerState>, now: Instant) -> Vec<(String, TunnelPeer)> {
        let wall = SystemTime::now();
        let mut changes = Vec::new();
        for (name, peer) in self.peers().iter_mut() {
            let Some(state) = states.get(peer.public_key.as_str()) else { continue };
            if is_fresh(state.last_handshake, wall) {
                // Where it is good now is tried no more; when that ends, all others have their turn.
                (peer.tried, peer.next, peer.good) = (now, 0, state.endpoint);
                continue;
            }
            let is_due = state.endpoint.is_none() || now.duration_since(peer.tried) >= TRY;
            let Some(count) = std::num::NonZero::new(peer.candidates.len()).filter(|_| is_due) else { continue };
            let endpoint = peer.candidates.get(peer.next % count).copied();
            (peer.tried, peer.next) = (now, (peer.next + 1) % count);
            if endpoint != state.endpoint {
                let key = peer.public_key.clone();
                let (allowed, keepalive) = (state.allowed.clone(), Some(super::nodes::KEEPALIVE));
                changes.push((name.clone(), TunnelPeer { public_key: key, endpoint, allowed, keepalive }));
                // It is asked at once: nothing else may have anything to send.
                peer.probed = None;
            }
        }
        changes
    }

    async fn probe(&self, probe: &Probe) {
        let now = Instant::now();
        let due: Vec<(String, IpAddr)> = {
            let mut peers = self.peers();
            let due = peers.iter_mut().filter(|(_, it)| it.probed.is_none_or(|at| now.duration_since(at) >= PROBE));
            due.map(|(name, peer)| {
                peer.probed = Some(now);
                (name.clone(), peer.address)
            })
            .collect()
        };
        let answers = stream::iter(due).map(|(name, address)| async move { (name, probe.ping(address, SMALL).await) });
        let answers: Vec<_> = answers.buffer_unordered(TOGETHER).collect().await;
        let mut peers = self.peers();
        for (name, answer) in answers {
            let Some(peer) = peers.get_mut(&name) else { continue };
            peer.probes.push_back(answer);
            if peer.probes.len() > PROBES {
                peer.probes.pop_front();
            }
        }
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<String, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there was a handshake that still counts. A clock that was put back does not make one old.
pub(super) fn is_fresh(last: Option<SystemTime>, now: SystemTime) -> bool {
    last.is_some_and(|last| now.duration_since(last).is_ok_and(|age| age < FRESH))
}

#[cfg(test)]
mod tests {
    use form_types::v1::{Mesh, NodeSpec};

    use super::*;

    fn node(endpoints: &[&str]) -> Object<kinds::Node> {
        let spec = NodeSpec {
            ipv4_prefix: "100.64.3.0/24".into(),
            ipv6_prefix: "fd00:1:2:3::/64".into(),
            ..Default::default()
        };
        let mut node = Object::<kinds::Node>::new("", "two", spec);
        let endpoints = endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect();
        node.status.mesh = Some(Mesh { public_key: "k".into(), endpoints, ..Default::default() });
        node
    }

    fn state(endpoint: &str, last_handshake: Option<SystemTime>) -> PeerState {
        let (public_key, endpoint) = ("k".to_owned(), endpoint.parse().ok());
        PeerState { public_key, endpoint, allowed: vec![], last_handshake, rx_bytes: 0, tx_bytes: 0 }
    }

    /// Where the node is looked for, so long after it was followed.
    fn next(endpoints: &Endpoints, state: &PeerState, after: Duration) -> Option<String> {
        let changes = endpoints.silent(&HashMap::from([("k", state)]), Instant::now() + after);
        changes.first().and_then(|(_, peer)| Some(peer.endpoint?.to_string()))
    }

    const A: &str = "192.0.2.1:51820";
    const B: &str = "198.51.100.1:51820";

    #[test]
    fn a_node_that_is_not_at_one_place_is_looked_for_at_the_next() {
        let endpoints = Endpoints::default();
        assert_eq!(endpoints.first("two", "k", &[A.parse().unwrap()]), A.parse().ok());
        endpoints.follow(&node(&[A, B]));
        assert_eq!(next(&endpoints, &state(A, None), Duration::ZERO), None, "it has its time");
        assert_eq!(next(&endpoints, &state(A, None), TRY).as_deref(), Some(B));
        assert_eq!(next(&endpoints, &state(B, None), TRY * 2).as_deref(), Some(A), "and from the first again");
    }

    #[test]
    fn while_there_are_handshakes_nothing_is_touched_wherever_they_come_from() {
        let endpoints = Endpoints::default();
        endpoints.follow(&node(&[A, B]));
        let roamed = state("203.0.113.9:4000", Some(SystemTime::now()));
        assert_eq!(next(&endpoints, &roamed, TRY * 10), None);
        endpoints.follow(&node(&[B]));
        assert_eq!(next(&endpoints, &roamed, TRY * 11), None);
        assert_eq!(endpoints.first("two", "k", &[B.parse().unwrap()]), None, "it keeps what it has");
        assert_eq!(
            endpoints.first("two", "new", &[B.parse().unwrap()]),
            roamed.endpoint,
            "another key, the same place"
        );
        assert_eq!(next(&endpoints, &state("203.0.113.9:4000", None), TRY * 12).as_deref(), Some(B));
    }

    #[test]
    fn a_peer_without_any_endpoint_gets_one_at_once() {
        let endpoints = Endpoints::default();
        endpoints.follow(&node(&[A]));
        assert_eq!(next(&endpoints, &state("", None), Duration::ZERO).as_deref(), Some(A));
        endpoints.follow(&node(&[]));
        assert_eq!(next(&endpoints, &state("", None), TRY), None, "there is nowhere to look");
    }

    #[test]
    fn loss_is_counted_over_the_last_probes() {
        let mut peer = Peer {
            public_key: String::new(),
            address: [127, 0, 0, 1].into(),
            candidates: vec![],
            good: None,
            next: 0,
            tried: Instant::now(),
            probed: None,
            probes: VecDeque::new(),
        };
        assert_eq!((peer.loss(), peer.rtt()), (None, None));
        peer.probes = VecDeque::from([Some(Duration::from_millis(3)), None, None, None]);
        assert_eq!((peer.loss(), peer.rtt()), (Some(0.75), Some(Duration::from_millis(3))));
    }
}
