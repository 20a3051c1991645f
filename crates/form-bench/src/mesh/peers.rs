//! One that changes, among few and among many; and what each takes of the helper's memory.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context as _, Result};
use formnet::rules::{Element, Ranges, Rules};
use formnet::tunnel::{Backend, PrivateKey, Tunnel, TunnelPeer};

use super::stage::within;
use crate::Row;

const CROWDS: [u32; 4] = [1, 10, 100, 1000];
const CHANGES: usize = 21;

/// What there is of one node, as the others see it.
struct Peer {
    tunnel: TunnelPeer,
    node: Element,
}

pub(super) fn compare() -> Result<Vec<Row>> {
    within("a", || async {
        let tunnel = Tunnel::up("crowd", &PrivateKey::generate(), 7000).await?;
        let net = |text: &str| text.parse();
        let rules = Rules::install(&Ranges {
            cluster: [net("100.64.0.0/10")?, net("fd64::/32")?],
            own: [net("100.127.0.0/24")?, net("fd64:0:1::/64")?],
            mesh: "crowd".into(),
        })
        .await?;
        let (mut peers, mut resident, mut times) = (Vec::new(), Vec::new(), Vec::new());
        for crowd in CROWDS {
            while (peers.len() as u32) < crowd {
                let peer = peer(peers.len() as u32)?;
                tunnel.set_peer(&peer.tunnel).await?;
                rules.change(std::slice::from_ref(&peer.node), &[]).await?;
                peers.push(peer);
            }
            if tunnel.backend() == Backend::Userspace {
                resident.push(helper_kib()?);
            }
            let last = peers.last_mut().context("a peer")?;
            times.push((change_tunnel(&tunnel, last).await?, change_rules(&rules, last).await?));
        }
        Tunnel::down("crowd").await?;
        Rules::remove().await?;
        let list = |of: fn(&(f64, f64)) -> f64| {
            let all = times.iter().skip(1).map(|time| format!("{:.1}", of(time)));
            all.collect::<Vec<_>>().join(" / ") + " ms"
        };
        let mut rows = vec![
            Row::alone("one peer of the tunnel changed, among 10 / 100 / 1,000", list(|time| time.0)),
            Row::alone("one element changed (removed and added), among as many", list(|time| time.1)),
        ];
        if let (Some(first), Some(last)) = (resident.first(), resident.last()) {
            let all = resident.iter().map(|kib| format!("{:.1}", kib / 1024.0)).collect::<Vec<_>>().join(" / ");
            let each = (last - first) / f64::from(CROWDS.last().copied().unwrap_or(1) - 1);
            rows.push(Row {
                ratio: format!("{each:.0} KiB a peer"),
                ..Row::alone("the tunnel's helper, resident with 1 / 10 / 100 / 1,000 peers", all + " MiB")
            });
        }
        Ok(rows)
    })
}

fn peer(number: u32) -> Result<Peer> {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 1)) + (number << 8));
    let tunnel = TunnelPeer {
        public_key: PrivateKey::generate().public(),
        endpoint: Some((Ipv4Addr::new(192, 0, 2, 1), 7001).into()),
        allowed: vec![format!("{address}/24").parse()?],
        keepalive: Some(25),
    };
    Ok(Peer { tunnel, node: Element::Node { address: address.into() } })
}

/// Milliseconds for another prefix, which it gets and loses.
async fn change_tunnel(tunnel: &Tunnel, peer: &mut Peer) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..CHANGES {
        if peer.tunnel.allowed.len() > 1 {
            peer.tunnel.allowed.pop();
        } else {
            peer.tunnel.allowed.push("fd64:0:2::/64".parse()?);
        }
        let start = Instant::now();
        tunnel.set_peer(&peer.tunnel).await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(crate::quantile(times, 0.5))
}

async fn change_rules(rules: &Rules, peer: &mut Peer) -> Result<f64> {
    let mut other = Element::Node { address: Ipv4Addr::new(100, 126, 0, 1).into() };
    let mut times = Vec::new();
    for _ in 0..CHANGES {
        let start = Instant::now();
        rules.change(std::slice::from_ref(&other), std::slice::from_ref(&peer.node)).await?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        std::mem::swap(&mut other, &mut peer.node);
    }
    Ok(crate::quantile(times, 0.5))
}

/// What the helper of `crowd` has resident.
fn helper_kib() -> Result<f64> {
    for process in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        if line.ends_with(b"\0crowd\0") {
            let status = std::fs::read_to_string(process.path().join("status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
            return Ok(line.trim().trim_end_matches(" kB").parse()?);
        }
    }
    anyhow::bail!("the tunnel has no helper")
}
