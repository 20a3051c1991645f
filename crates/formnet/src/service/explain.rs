//! Why a peer is not there, and where a packet would end: in words, out of what is wanted and what is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::SystemTime;

use form_types::{Kind as _, kinds};
use ipnet::IpNet;

use super::endpoints::{self, is_fresh};
use crate::plane::{Owner, Share, View};
use crate::rules::Element;
use crate::tunnel::PeerState;
use crate::view::{PeerView, StepView};

/// All peers, by kind and name.
pub(super) fn peers(
    view: &View,
    states: &[PeerState],
    probed: &HashMap<String, endpoints::Peer>,
    now: SystemTime,
) -> Vec<PeerView> {
    let states: HashMap<&str, &PeerState> = states.iter().map(|it| (it.public_key.as_str(), it)).collect();
    let wanted = view.shares.iter().filter_map(|(owner, share)| Some((owner, share.peer.as_ref()?)));
    wanted
        .map(|(owner, peer)| {
            let state = states.get(peer.public_key.as_str()).copied();
            let probe = probed.get(&owner.name).filter(|_| owner.kind == kinds::Node::INFO.name);
            let why = why_not(owner, state, probe, now);
            let name =
                if owner.project.is_empty() { owner.name.clone() } else { format!("{}/{}", owner.project, owner.name) };
            PeerView {
                kind: owner.kind.to_owned(),
                name,
                public_key: peer.public_key.clone(),
                endpoint: state.and_then(|state| Some(state.endpoint?.to_string())),
                handshake_age_seconds: state.and_then(|state| age(state, now)),
                rx_bytes: state.map_or(0, |state| state.rx_bytes),
                tx_bytes: state.map_or(0, |state| state.tx_bytes),
                rtt_ms: probe.and_then(|probe| Some(probe.rtt()?.as_secs_f64() * 1e3)),
                loss: probe.and_then(endpoints::Peer::loss),
                is_up: why.is_empty(),
                why,
            }
        })
        .collect()
}

fn age(state: &PeerState, now: SystemTime) -> Option<u64> {
    Some(now.duration_since(state.last_handshake?).unwrap_or_default().as_secs())
}

/// Empty where it is there.
fn why_not(owner: &Owner, state: Option<&PeerState>, probe: Option<&endpoints::Peer>, now: SystemTime) -> String {
    let Some(state) = state else {
        return "WireGuard does not have this peer yet; formnet's log says why".to_owned();
    };
    let is_laptop = owner.kind != kinds::Node::INFO.name;
    match (state.endpoint, state.last_handshake) {
        _ if is_fresh(state.last_handshake, now) => match probe.and_then(endpoints::Peer::loss) {
            Some(loss) if loss >= 1.0 => {
                "there are handshakes, but no probe is answered: is its formnet running, and do \
                                          its own rules let UDP port 3001 in from the mesh?"
                    .to_owned()
            }
            _ => String::new(),
        },
        (None, _) if is_laptop => "it has not called yet".to_owned(),
        (None, _) => "it told of no address where it could be reached".to_owned(),
        (Some(at), None) => {
            format!("no handshake with {at} yet: is formnet running there, and does a firewall let that UDP port in?")
        }
        (Some(at), Some(_)) => {
            let age = age(state, now).unwrap_or_default();
            format!("the last handshake with {at} was {age} s ago: it is off, or the way there is cut")
        }
    }
}

/// The way of a packet, as far as this node can tell.
pub(super) fn trace(
    view: &View,
    peers: &[PeerView],
    objects: &HashSet<String>,
    from: IpAddr,
    to: IpAddr,
) -> Vec<StepView> {
    let mut steps = Vec::new();
    let mut step = |what: &str, is_fine: bool, found: String| {
        steps.push(StepView { what: what.to_owned(), is_fine, found });
        is_fine
    };
    let (source, target) = (holder(&view.shares, from), holder(&view.shares, to));
    let said = |holder: Option<(&Owner, &Share)>, address: IpAddr| match holder {
        Some((owner, share)) => {
            let network = share.bridge.as_ref().map_or(String::new(), |bridge| format!(", {}", bridge.owner));
            format!("{address} is {owner}{network}")
        }
        None => format!("{address} is nobody's that this node knows"),
    };
    if !step("source", source.is_some(), said(source, from)) | !step("destination", target.is_some(), said(target, to))
    {
        return steps;
    }
    let (Some((_, source)), Some((target_owner, target))) = (source, target) else { return steps };

    let (sends, takes) = (networks(source, from), networks(target, to));
    let (is_allowed, found) = match (is_node(source), is_node(target)) {
        (true, _) | (_, true) => (true, "a node's own address is let through".to_owned()),
        _ if sends.is_disjoint(&takes) => {
            (false, "they are on different networks, and those are kept apart".to_owned())
        }
        _ => (true, "they are on the same network".to_owned()),
    };
    step("rules", is_allowed, found);

    for (what, share) in [("source's tap", source), ("destination's tap", target)] {
        if let Some(uid) = &share.tap {
            let tap = crate::links::tap_name(uid);
            let is_there = objects.contains(&tap);
            step(what, is_there, if is_there { format!("{tap} is there") } else { format!("{tap} is missing") });
        }
    }
    if target.tap.is_some() {
        step("way", true, "it is on this node".to_owned());
        return steps;
    }
    let through = view.shares.iter().find(|(_, share)| {
        share.peer.as_ref().is_some_and(|peer| peer.allowed.iter().any(|prefix: &IpNet| prefix.contains(&to)))
    });
    match through {
        None if is_node(target) => step("way", true, "it is this node itself".to_owned()),
        None => step("way", false, format!("no peer of the mesh has {to} behind it; {target_owner} has no node yet")),
        Some((owner, share)) => {
            let key = share.peer.as_ref().map(|peer| &peer.public_key);
            let peer = peers.iter().find(|peer| Some(&peer.public_key) == key);
            let why = peer.map_or("WireGuard does not have this peer yet".to_owned(), |peer| peer.why.clone());
            let is_fine = why.is_empty();
            step(
                "way",
                is_fine,
                if is_fine { format!("through the mesh by {owner}") } else { format!("{owner}: {why}") },
            )
        }
    };
    steps
}

fn holder(shares: &BTreeMap<Owner, Share>, address: IpAddr) -> Option<(&Owner, &Share)> {
    let has = |element: &Element| match element {
        Element::Member { address: own, .. } | Element::Node { address: own } => *own == address,
        Element::Owner { .. } | Element::Publish { .. } => false,
    };
    shares.iter().find(|(_, share)| share.elements.iter().any(has))
}

/// The bridges of the networks that `address` is on by `share`.
fn networks(share: &Share, address: IpAddr) -> HashSet<&str> {
    let bridge = |element| match element {
        &Element::Member { address: own, ref bridge } if own == address => Some(bridge.as_str()),
        _ => None,
    };
    share.elements.iter().filter_map(bridge).collect()
}

fn is_node(share: &Share) -> bool {
    share.elements.iter().any(|element| matches!(element, Element::Node { .. }))
}
