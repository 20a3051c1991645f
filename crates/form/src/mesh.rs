//! `form net status|ping|trace|doctor|ls`: the mesh, as each node's formnet sees its end of it.

use std::net::IpAddr;

use form_types::v1::NodeSpec;
use form_types::{Kind as _, Object, kinds};
use formnet::view::{MeshView, ObjectView, PeerView, PingView, StepView};
use futures::future;
use ipnet::IpNet;
use serde::de::DeserializeOwned;

use crate::api::{Api, object};
use crate::cli;
use crate::error::Error;
use crate::output::{plain, say, text_table};

type Node = Object<kinds::Node>;

/// What fills one packet of the mesh and not a byte more is what finds a link that is too narrow.
const DOCTORS_PROBES: usize = 3;

/// Each node's peers.
pub(crate) async fn status(api: Api, args: cli::NetStatus) -> Result<(), Error> {
    let nodes = nodes(&api, args.node.as_deref()).await?;
    let views = future::join_all(nodes.iter().map(|node| ask::<MeshView>(&api, node, "/v1/mesh", &[]))).await;
    if args.json {
        let views: Vec<MeshView> = views.into_iter().collect::<Result<_, _>>()?;
        return say(serde_json::to_string_pretty(&views).unwrap_or_default());
    }
    let mut table =
        text_table(&["NODE", "PEER", "STATE", "ENDPOINT", "HANDSHAKE", "RTT", "LOSS", "RECEIVED", "SENT", "WHY NOT"]);
    for (node, view) in nodes.iter().zip(views) {
        match view {
            Ok(view) if view.peers.is_empty() => {
                table.add_row([view.node.as_str(), "", if view.trouble.is_some() { "trouble" } else { "alone" }]);
            }
            Ok(view) => {
                table.add_rows(view.peers.iter().map(|peer| row(&view.node, peer)));
            }
            Err(error) => {
                table.add_row([node.meta.name.as_str(), "", "unknown", "", "", "", "", "", "", &error.to_string()]);
            }
        }
    }
    say(plain(table))
}

fn row(node: &str, peer: &PeerView) -> [String; 10] {
    let unknown = || "-".to_owned();
    [
        node.to_owned(),
        peer.name.clone(),
        if peer.is_up { "up" } else { "down" }.to_owned(),
        peer.endpoint.clone().unwrap_or_else(unknown),
        peer.handshake_age_seconds.map_or_else(unknown, |age| format!("{age} s ago")),
        peer.rtt_ms.map_or_else(unknown, |rtt| format!("{rtt:.1} ms")),
        peer.loss.map_or_else(unknown, |loss| format!("{:.0} %", loss * 100.0)),
        bytes(peer.rx_bytes),
        bytes(peer.tx_bytes),
        peer.why.clone(),
    ]
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..0x10_0000 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}

/// Probes from one node, or from all others.
pub(crate) async fn ping(api: Api, args: cli::NetPing) -> Result<(), Error> {
    let from = nodes(&api, args.from.as_deref()).await?;
    let from: Vec<&Node> = from.iter().filter(|node| node.meta.name != args.node).collect();
    if from.is_empty() {
        return Err(Error::Failed(format!("there is no other node that could ask {}", args.node)));
    }
    let mut lost = 0;
    for node in from {
        let query = [("node", args.node.clone()), ("count", args.count.to_string()), ("size", args.size.to_string())];
        let view: PingView = tell(&api, node, "/v1/mesh/ping", &query).await?;
        for time in &view.times_ms {
            match time {
                Some(time) => say(format_args!("{} -> {} ({}): {time:.2} ms", view.from, view.to, view.address))?,
                None => say(format_args!("{} -> {} ({}): lost", view.from, view.to, view.address))?,
            }
        }
        lost += view.times_ms.iter().filter(|time| time.is_none()).count();
    }
    if lost == 0 { Ok(()) } else { Err(Error::Failed(format!("{lost} probes were lost"))) }
}

/// What formnet made, on each node.
pub(crate) async fn ls(api: Api, args: cli::NetStatus) -> Result<(), Error> {
    let nodes = nodes(&api, args.node.as_deref()).await?;
    let mut table = text_table(&["NODE", "KIND", "NAME", "OWNER"]);
    let mut all = serde_json::Map::new();
    for node in &nodes {
        let objects: Vec<ObjectView> = ask(&api, node, "/v1/mesh/objects", &[]).await?;
        for object in &objects {
            table.add_row([&node.meta.name, &object.kind, &object.name, &object.owner]);
        }
        all.insert(node.meta.name.clone(), serde_json::to_value(&objects).unwrap_or_default());
    }
    if args.json {
        return say(serde_json::to_string_pretty(&all).unwrap_or_default());
    }
    say(plain(table))
}

/// The way of a packet, as the nodes at its two ends tell.
pub(crate) async fn trace(api: Api, args: cli::NetTrace) -> Result<(), Error> {
    let nodes = nodes(&api, None).await?;
    let from = end(&api, &args.project.project, &args.from).await?;
    let to = end(&api, &args.project.project, &args.to).await?;
    // Of the same family, where one has both.
    let pair = from.iter().find_map(|from| Some((*from, *to.iter().find(|to| to.is_ipv4() == from.is_ipv4())?)));
    let Some((from, to)) = pair else {
        return Err(Error::Failed(format!("{} and {} have no addresses of one family", args.from, args.to)));
    };
    let mut asked = Vec::new();
    let mut wrong = 0;
    for address in [from, to] {
        let Some(node) = nodes.iter().find(|node| has(&node.spec, address)) else { continue };
        if asked.contains(&node.meta.name) {
            continue;
        }
        asked.push(node.meta.name.clone());
        say(format_args!("{} says:", node.meta.name))?;
        let query = [("from", from.to_string()), ("to", to.to_string())];
        let steps: Vec<StepView> = ask(&api, node, "/v1/mesh/trace", &query).await?;
        for step in &steps {
            say(format_args!("  {:<7} {}: {}", if step.is_fine { "ok" } else { "WRONG" }, step.what, step.found))?;
        }
        wrong += steps.iter().filter(|step| !step.is_fine).count();
    }
    match (asked.is_empty(), wrong) {
        (true, _) => Err(Error::Failed(format!("neither {from} nor {to} is out of a node's prefix"))),
        (false, 0) => Ok(()),
        (false, _) => Err(Error::Failed("the packet does not get through".to_owned())),
    }
}

/// The addresses of one end: an address, or an instance as `NAME` or `PROJECT/NAME`.
async fn end(api: &Api, project: &str, text: &str) -> Result<Vec<IpAddr>, Error> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let (project, name) = text.split_once('/').unwrap_or((project, text));
    let instance = api.get_object::<kinds::Instance>(project, name).await?;
    let addresses: Vec<IpAddr> = instance.status.addresses.iter().filter_map(|it| it.parse().ok()).collect();
    if addresses.is_empty() {
        return Err(Error::Failed(format!("instance {text} has no address yet: {}", instance.status.message)));
    }
    Ok(addresses)
}

fn has(spec: &NodeSpec, address: IpAddr) -> bool {
    [&spec.ipv4_prefix, &spec.ipv6_prefix]
        .iter()
        .any(|text| text.parse().is_ok_and(|net: IpNet| net.contains(&address)))
}

/// Every node and every way between two of them, and what to do where something is wrong.
pub(crate) async fn doctor(api: Api) -> Result<(), Error> {
    let nodes = nodes(&api, None).await?;
    let mut wrong = 0;
    let mut check = |what: String, problem: Option<String>| {
        wrong += usize::from(problem.is_some());
        match problem {
            None => say(format_args!("ok       {what}")),
            Some(problem) => say(format_args!("wrong    {what}\n         {problem}")),
        }
    };
    for node in &nodes {
        let name = &node.meta.name;
        let view = match ask::<MeshView>(&api, node, "/v1/mesh", &[]).await {
            Ok(view) => view,
            Err(error) => {
                check(format!("{name}: its formnet answers"), Some(error.to_string()))?;
                continue;
            }
        };
        let mesh = node.status.mesh.clone().unwrap_or_default();
        let told = (!mesh.ready).then_some(mesh.message);
        check(format!("{name}: {} by {}, MTU {}", view.interface, view.backend, view.mtu), view.trouble.or(told))?;
        for peer in &view.peers {
            check(format!("{name}: {} is there", peer.name), (!peer.is_up).then(|| peer.why.clone()))?;
            if !peer.is_up || peer.kind != kinds::Node::INFO.name {
                continue;
            }
            let query =
                [("node", peer.name.clone()), ("count", DOCTORS_PROBES.to_string()), ("size", view.mtu.to_string())];
            let ping: PingView = tell(&api, node, "/v1/mesh/ping", &query).await?;
            let arrived = ping.times_ms.iter().flatten().count();
            let problem = format!(
                "{arrived} of {DOCTORS_PROBES} arrived: a link on the way takes less; give formnet a smaller mtu"
            );
            let what = format!("{name}: packets of {} bytes reach {}", view.mtu, peer.name);
            check(what, (arrived < DOCTORS_PROBES).then_some(problem))?;
        }
    }
    if wrong == 0 { say("\nthe mesh is whole") } else { Err(Error::Failed(format!("{wrong} things are wrong"))) }
}

/// The node of this name, or all.
async fn nodes(api: &Api, name: Option<&str>) -> Result<Vec<Node>, Error> {
    match name {
        Some(name) => Ok(vec![api.get_object::<kinds::Node>("", name).await?]),
        None => api.list(kinds::Node::INFO, "", "").await?.items.into_iter().map(object).collect(),
    }
}

async fn ask<T: DeserializeOwned>(api: &Api, node: &Node, path: &str, query: &[(&str, String)]) -> Result<T, Error> {
    let answer = formnet_of(api, node)?.get(path, query).await?;
    answer.json().await.map_err(|error| Error::Answer(error.to_string()))
}

async fn tell<T: DeserializeOwned>(api: &Api, node: &Node, path: &str, query: &[(&str, String)]) -> Result<T, Error> {
    let answer = formnet_of(api, node)?.send(|http, url| http.post(url).query(query), path).await?;
    answer.json().await.map_err(|error| Error::Answer(error.to_string()))
}

fn formnet_of(api: &Api, node: &Node) -> Result<crate::api::Service, Error> {
    let mesh = node.status.mesh.as_ref();
    let url = mesh
        .map(|mesh| mesh.url.as_str())
        .ok_or_else(|| Error::Failed(format!("node {} has no mesh yet: does its formnet run?", node.meta.name)))?;
    api.service("formnet", url)
}
