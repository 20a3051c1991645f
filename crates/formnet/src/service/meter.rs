//! The peers as metrics, and as Events when one is lost or is back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use form_client::Client;
use form_types::v1::event_spec;
use form_types::{Kind as _, kinds};

use super::endpoints::Endpoints;
use super::explain;
use crate::config::Config;
use crate::plane::Plane;
use crate::view::PeerView;

const LOOK: Duration = Duration::from_secs(5);

pub(super) struct Meter {
    pub(super) client: Client,
    pub(super) config: Arc<Config>,
    pub(super) plane: Plane,
    pub(super) endpoints: Arc<Endpoints>,
}

impl Meter {
    pub(super) async fn run(self) {
        let mut before = HashMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            // Where WireGuard does not answer, nothing is known of anybody, and that is told elsewhere.
            let Ok(states) = self.plane.peers().await else { continue };
            let probed = self.endpoints.all();
            let peers = self.plane.view(|view| explain::peers(view, &states, &probed, SystemTime::now()));
            peers.iter().for_each(measure);
            let now: HashMap<String, PeerView> = peers.into_iter().map(|peer| (peer.name.clone(), peer)).collect();
            for (name, reason, message) in changes(&before, &now) {
                self.tell(&name, reason, message).await;
            }
            before = now;
        }
    }

    async fn tell(&self, peer: &str, reason: &'static str, message: String) {
        let kind = if reason == LOST { event_spec::Type::Warning } else { event_spec::Type::Normal };
        // About the other one: that is where people look.
        match self.client.get::<kinds::Node>("", peer).await {
            Ok(node) => {
                let message = format!("as {} sees it: {message}", self.config.node);
                self.client.event::<kinds::Node>(&node.meta, kind, reason, message).await;
            }
            Err(error) => tracing::debug!(%error, peer, reason, "nobody is told"),
        }
    }
}

const LOST: &str = "MeshLost";
const BACK: &str = "MeshBack";

fn measure(peer: &PeerView) {
    let labels = [("kind", peer.kind.clone()), ("peer", peer.name.clone())];
    metrics::gauge!("formnet_peer_up", &labels).set(if peer.is_up { 1.0 } else { 0.0 });
    // What is not known is not told as a number.
    let known = |name: &'static str, value: Option<f64>| {
        if let Some(value) = value {
            metrics::gauge!(name, &labels).set(value);
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "an age in seconds")]
    known("formnet_peer_handshake_age_seconds", peer.handshake_age_seconds.map(|age| age as f64));
    known("formnet_peer_rtt_seconds", peer.rtt_ms.map(|rtt| rtt / 1e3));
    known("formnet_peer_loss_ratio", peer.loss);
    metrics::counter!("formnet_peer_received_bytes_total", &labels).absolute(peer.rx_bytes);
    metrics::counter!("formnet_peer_sent_bytes_total", &labels).absolute(peer.tx_bytes);
}

/// Nodes that were there and are not, and the other way round. One that was never there is not lost: it may be new.
fn changes(before: &HashMap<String, PeerView>, now: &HashMap<String, PeerView>) -> Vec<(String, &'static str, String)> {
    let nodes = now.values().filter(|peer| peer.kind == kinds::Node::INFO.name);
    let changed = nodes.filter_map(|peer| {
        let was_up = before.get(&peer.name)?.is_up;
        match (was_up, peer.is_up) {
            (true, false) => Some((peer.name.clone(), LOST, peer.why.clone())),
            (false, true) if peer.handshake_age_seconds.is_some() => {
                let at = peer.endpoint.clone().unwrap_or_default();
                Some((peer.name.clone(), BACK, format!("it answers at {at}")))
            }
            _ => None,
        }
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(kind: &str, is_up: bool) -> HashMap<String, PeerView> {
        let peer = PeerView {
            kind: kind.into(),
            name: "two".into(),
            public_key: String::new(),
            endpoint: Some("192.0.2.2:51820".into()),
            handshake_age_seconds: Some(1),
            rx_bytes: 0,
            tx_bytes: 0,
            rtt_ms: None,
            loss: None,
            is_up,
            why: if is_up { String::new() } else { "it is off".into() },
        };
        HashMap::from([("two".to_owned(), peer)])
    }

    #[test]
    fn a_node_that_goes_and_one_that_comes_back_are_told_once() {
        let (up, down) = (peer("Node", true), peer("Node", false));
        let reasons = |before: &HashMap<_, _>, now: &HashMap<_, _>| {
            changes(before, now).into_iter().map(|(_, reason, _)| reason).collect::<Vec<_>>()
        };
        assert_eq!(reasons(&up, &down), [LOST]);
        assert_eq!(reasons(&down, &up), [BACK]);
        assert_eq!(reasons(&up, &up), [""; 0]);
        assert_eq!(reasons(&HashMap::new(), &down), [""; 0], "it may be new");
        assert_eq!(reasons(&peer("Peer", true), &peer("Peer", false)), [""; 0], "a laptop sleeps when it likes");
    }
}
