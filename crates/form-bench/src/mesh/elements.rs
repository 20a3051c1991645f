//! Ten thousand elements at once, while two members of a network talk.

use std::net::Ipv4Addr;
use std::process::Child;
use std::time::Instant;

use anyhow::{Context as _, Result};
use formnet::links::{Links, bridge_name, tap_name};
use formnet::rules::{Element, Ranges, Rules};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::stage::{sh, start, within};
use crate::Row;

const ROUNDS: usize = 7;
const ELEMENTS: u32 = 10_000;

pub(super) fn compare() -> Result<Vec<Row>> {
    sh("ip netns add node; ip netns add far; ip netns add guest")?;
    within("node", || async {
        let rules = stage().await?;
        let bridge = bridge_name("bench", "net");
        let first = u32::from(Ipv4Addr::new(100, 80, 0, 0));
        let member =
            |number| Element::Member { address: Ipv4Addr::from(first + number).into(), bridge: bridge.clone() };
        let many: Vec<_> = (0..ELEMENTS).map(member).collect();
        let ping = start(&["ip", "netns", "exec", "guest", "ping", "-q", "-i", "0.002", "100.64.2.2"])?;
        let (mut adds, mut removals) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            rules.change(&many, &[]).await?;
            adds.push(start.elapsed().as_secs_f64() * 1e3);
            let start = Instant::now();
            rules.change(&[], &many).await?;
            removals.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let said = end(ping)?;
        let words = said.lines().find(|line| line.contains("packets transmitted")).context("ping said nothing")?;
        let mut numbers = words.split(' ').filter_map(|word| word.parse::<u64>().ok());
        let (sent, heard) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let [adds, removals] = [adds, removals].map(|times| crate::quantile(times, 0.5));
        Ok(vec![
            Row::alone("10,000 elements added / removed, a transaction each", format!("{adds:.0} / {removals:.0} ms")),
            Row::alone("pings lost between two members meanwhile", format!("{} of {sent}", sent.saturating_sub(heard))),
        ])
    })
}

/// A guest on a bridge here, and another node that has a member of the same network.
async fn stage() -> Result<Rules> {
    let (tap, bridge) = (tap_name("guest"), bridge_name("bench", "net"));
    sh(&format!(
        "ip link set lo up; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0
         ip link add mesh type veth peer name eth0 netns far; ip link set mesh up
         ip -n far link set eth0 up; ip addr add 100.64.1.1/32 dev mesh; ip route add 100.64.2.0/24 dev mesh
         ip -n far addr add 100.64.2.2/32 dev eth0; ip -n far route add 100.64.1.0/24 dev eth0
         card=$(ip -br link show mesh | awk '{{print $3}}'); far=$(ip -n far -br link show eth0 | awk '{{print $3}}')
         ip neigh replace 100.64.2.2 lladdr $far dev mesh; ip -n far neigh replace 100.64.1.2 lladdr $card dev eth0
         ip link add {tap} type veth peer name eth0 netns guest
         ip -n guest link set eth0 address 02:f0:00:00:00:02 up; ip -n guest addr add 100.64.1.2/32 dev eth0
         ip -n guest route add 100.64.1.254 dev eth0; ip -n guest route add default via 100.64.1.254"
    ))?;
    let net = |text: &str| text.parse();
    let ranges = Ranges {
        cluster: [net("100.64.0.0/10")?, net("fd64::/32")?],
        own: [net("100.64.1.0/24")?, net("fd64:0:1::/64")?],
        mesh: "mesh".into(),
    };
    let rules = Rules::install(&ranges).await?;
    let member = |last| Element::Member { address: last, bridge: bridge.clone() };
    let owner = Element::Owner { tap: tap.clone(), mac: [2, 0xf0, 0, 0, 0, 2], address: "100.64.1.2".parse()? };
    rules.change(&[owner, member("100.64.1.2".parse()?), member("100.64.2.2".parse()?)], &[]).await?;
    let links = Links::connect()?;
    links.ensure_bridge(&bridge, "network:bench/net", &["100.64.1.254/32".parse()?], 1420).await?;
    sh(&format!("ip link set {tap} master {bridge} up"))?;
    links.ensure_route("100.64.1.2/32".parse()?, &bridge, None).await?;
    sh("ip netns exec guest ping -q -c 1 -w 10 100.64.2.2")?;
    Ok(rules)
}

/// Interrupts it, and returns what it said.
fn end(child: Child) -> Result<String> {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT)?;
    Ok(String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned())
}
