//! Our tunnel beside wireguard-go, on one wire.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use formnet::tunnel::{PrivateKey, Tunnel};

use super::stage::{end, sh, start as spawn, within};
use crate::Row;

const ROUNDS: usize = 3;
const STARTS: usize = 5;
const SECONDS: u32 = 4;

/// From nothing to the first ping that is answered through a new pair of tunnels. The last pair stays.
pub(super) fn start() -> Result<Vec<Row>> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let keys = [PrivateKey::generate(), PrivateKey::generate()];
        let [a, b] = &keys;
        for (name, interface) in [("a", "wg1"), ("b", "wg2")] {
            within(name, || async { Ok(Tunnel::down(interface).await?) })?;
        }
        let start = Instant::now();
        within("a", || async { end(1, a, b).await.map(drop) })?;
        within("b", || async { end(2, b, a).await.map(drop) })?;
        sh("ip netns exec a ping -q -c 1 -W 5 10.77.0.2")?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let time = format!("{:.0} ms", crate::quantile(times, 0.5));
    Ok(vec![Row::alone("start of two tunnels to the first ping answered through them", time)])
}

pub(super) fn throughput() -> Result<Vec<Row>> {
    peer()?;
    let mut server = spawn(&["ip", "netns", "exec", "b", "iperf3", "--server"])?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(gigabits("10.77.0.2")?);
        theirs.push(gigabits("10.78.0.2")?);
    }
    server.kill()?;
    server.wait()?;
    let [ours, theirs] = [ours, theirs].map(|runs| crate::quantile(runs, 0.5));
    Ok(vec![Row {
        what: "one TCP stream through the tunnel (wireguard-go: apt's), both ends on these processors",
        ours: format!("{ours:.2} Gbit/s"),
        peer: format!("{theirs:.2} Gbit/s"),
        ratio: format!("{:.2}", ours / theirs),
    }])
}

/// wireguard-go at both ends: 10.78.0.N.
fn peer() -> Result<()> {
    let keys = [PrivateKey::generate(), PrivateKey::generate()];
    let [a, b] = &keys;
    for (name, number, key, other) in [("a", 1, a, b), ("b", 2, b, a)] {
        let (there, file, public) = (3 - number, format!("/run/go{number}.key"), other.public());
        key.save(Path::new(&file))?;
        sh(&format!(
            "ip netns exec {name} wireguard-go go{number} >/dev/null 2>&1
             ip netns exec {name} wg set go{number} listen-port 600{number} private-key {file} \
                 peer {public} endpoint 10.9.0.{there}:600{there} allowed-ips 10.78.0.{there}/32
             ip -n {name} addr add 10.78.0.{number}/24 dev go{number}; ip -n {name} link set go{number} mtu 1420 up"
        ))?;
    }
    sh("ip netns exec a ping -q -c 1 -W 5 10.78.0.2").map(drop)
}

/// What arrives.
fn gigabits(address: &str) -> Result<f64> {
    let said = sh(&format!("ip netns exec a iperf3 --client {address} --time {SECONDS} --omit 1 --json"))?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let bits = said.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
    Ok(bits.context("iperf3 says no bits per second")? / 1e9)
}
