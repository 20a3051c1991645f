//! What a tunnel promises: two nodes, each a network namespace, with a wire between them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{PROGRAM, eventually, lost, sh, start, story, within, works};
use formnet::links::Links;
use formnet::tunnel::{Backend, PeerState, PrivateKey, Tunnel, TunnelPeer};

/// Two namespaces, a and b, and a wire: 10.9.0.1 and 10.9.0.2.
fn wire() {
    sh("ip netns add a; ip netns add b
        ip link add ua netns a type veth peer name ub netns b
        ip -n a addr add 10.9.0.1/24 dev ua; ip -n b addr add 10.9.0.2/24 dev ub
        ip -n a addr add fd09::1/64 dev ua nodad; ip -n b addr add fd09::2/64 dev ub nodad
        ip -n a link set ua up; ip -n b link set ub up; ip -n a link set lo up; ip -n b link set lo up");
}

/// Brings up `wgN` in namespace `name`, with 10.77.0.N, fd77::N and the routes to the other.
fn up(name: &str, number: u8, key: &PrivateKey) -> Backend {
    within(name, || async move {
        let interface = format!("wg{number}");
        let tunnel =
            Tunnel::up_with_program(&interface, key, 5000 + u16::from(number), Path::new(PROGRAM)).await.unwrap();
        let links = Links::connect().unwrap();
        let addresses = [format!("10.77.0.{number}/32"), format!("fd77::{number}/128")].map(|it| it.parse().unwrap());
        links.ensure_link(&interface, &addresses, 1420).await.unwrap();
        for (to, source) in [("10.77.0.0/24", addresses[0]), ("fd77::/64", addresses[1])] {
            links.ensure_route(to.parse().unwrap(), &interface, Some(source.addr())).await.unwrap();
        }
        assert!(tunnel.is_up().await);
        tunnel.backend()
    })
}

/// What is already up, as a formnet that was started again gets it.
async fn adopt(number: u8, key: &PrivateKey) -> Tunnel {
    Tunnel::up_with_program(&format!("wg{number}"), key, 5000 + u16::from(number), Path::new(PROGRAM)).await.unwrap()
}

fn peer(number: u8, key: &PrivateKey) -> TunnelPeer {
    let endpoint: SocketAddr = format!("10.9.0.{number}:{}", 5000 + u16::from(number)).parse().unwrap();
    let allowed = [format!("10.77.0.{number}/32"), format!("fd77::{number}/128")].map(|it| it.parse().unwrap());
    TunnelPeer { public_key: key.public(), endpoint: Some(endpoint), allowed: allowed.to_vec(), keepalive: None }
}

/// Both nodes, each with the other for a peer.
fn both(a: &PrivateKey, b: &PrivateKey) {
    wire();
    up("a", 1, a);
    up("b", 2, b);
    within("a", || async { adopt(1, a).await.set_peer(&peer(2, b)).await.unwrap() });
    within("b", || async { adopt(2, b).await.set_peer(&peer(1, a)).await.unwrap() });
}

fn state(name: &str, number: u8, key: &PrivateKey) -> Vec<PeerState> {
    within(name, || async { adopt(number, key).await.peers().await.unwrap() })
}

/// The processes that are a tunnel's helper.
fn helpers() -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let is_helper = |name: &String| {
        std::fs::read(format!("/proc/{name}/cmdline"))
            .is_ok_and(|line| line.split(|b| *b == 0).nth(1) == Some(b"formnet-tunnel"))
    };
    all.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_helper).collect()
}

const REACH_B: &str =
    "ip netns exec a ping -c 3 -i 0.05 -W 2 10.77.0.2 && ip netns exec a ping -c 3 -i 0.05 -W 2 fd77::2";

#[test]
fn two_nodes_talk_in_both_families_and_the_wire_sees_nothing_but_udp() {
    story(&["tcpdump"], || {
        let (a, b) = (PrivateKey::generate(), PrivateKey::generate());
        both(&a, &b);
        let capture = start("ip netns exec a tcpdump -i ua -U -w /run/wire.pcap");
        eventually("a capture", || Path::new("/run/wire.pcap").exists().then_some(()));
        for to in ["10.77.0.2", "fd77::2"] {
            let said = sh(&format!("ip netns exec a ping -c 10 -i 0.02 -W 2 -s 1300 -p c0ffee {to}"));
            assert_eq!(lost(&said), 0, "{said}");
            // As much as fits, whole.
            let most = if to.contains(':') { 1420 - 48 } else { 1420 - 28 };
            sh(&format!("ip netns exec b ping -c 3 -i 0.02 -W 2 -M do -s {most} {}", to.replace('2', "1")));
        }
        let said = eventually("the packets in the capture", || {
            let said = sh("tcpdump -nn -r /run/wire.pcap udp 2>/dev/null");
            (said.lines().count() > 40).then_some(said)
        });
        capture.end();
        let other =
            sh("tcpdump -nn -r /run/wire.pcap not udp and not arp and not icmp6 and not ip6 proto 0 2>/dev/null");
        assert_eq!(other, "", "{said}");
        let bytes = std::fs::read("/run/wire.pcap").unwrap();
        let plain = [0xc0, 0xff, 0xee, 0xc0, 0xff, 0xee, 0xc0, 0xff, 0xee];
        assert!(!bytes.windows(plain.len()).any(|window| window == plain), "plaintext on the wire");
        let peers = state("a", 1, &a);
        assert!(peers[0].last_handshake.is_some() && peers[0].rx_bytes > 10_000 && peers[0].tx_bytes > 10_000);
        assert_eq!(peers[0].endpoint, peer(2, &b).endpoint);
    });
}

#[test]
fn the_tunnel_talks_with_wireguard_go_whoever_calls_first() {
    story(&["wireguard-go", "wg"], || {
        wire();
        let (a, b) = (PrivateKey::generate(), PrivateKey::generate());
        b.save(Path::new("/run/b.key")).unwrap();
        sh("ip netns exec b wireguard-go wgo >/dev/null 2>&1");
        assert_eq!(sh("wg pubkey < /run/b.key").trim(), b.public());
        up("a", 1, &a);
        let public = a.public();
        sh(&format!(
            "ip netns exec b wg set wgo listen-port 5002 private-key /run/b.key \
             peer {public} endpoint 10.9.0.1:5001 allowed-ips 10.77.0.1/32,fd77::1/128
             ip -n b addr add 10.77.0.2/24 dev wgo; ip -n b addr add fd77::2/64 dev wgo nodad
             ip -n b link set wgo mtu 1420 up"
        ));
        // It has no peer yet: a stranger is not answered.
        assert!(!works("ip netns exec b ping -c 1 -W 1 10.77.0.1"));
        within("a", || async {
            adopt(1, &a).await.set_peer(&TunnelPeer { endpoint: None, ..peer(2, &b) }).await.unwrap()
        });
        // We know no way to it: it has to call, and then we do.
        eventually("wireguard-go to call", || works("ip netns exec b ping -c 1 -W 1 10.77.0.1").then_some(()));
        sh(REACH_B);
        assert_eq!(state("a", 1, &a)[0].endpoint, peer(2, &b).endpoint);
        // And the other way round, with a new session.
        sh(&format!("ip netns exec b wg set wgo peer {public} remove"));
        within("a", || async {
            let tunnel = adopt(1, &a).await;
            tunnel.remove_peer(&b.public()).await.unwrap();
            tunnel.set_peer(&peer(2, &b)).await.unwrap();
        });
        sh(&format!("ip netns exec b wg set wgo peer {public} allowed-ips 10.77.0.1/32,fd77::1/128"));
        eventually("us to call", || works("ip netns exec a ping -c 1 -W 1 10.77.0.2").then_some(()));
        sh("ip netns exec b ping -c 3 -i 0.05 -W 2 -s 1300 fd77::1");
    });
}

/// The process that brings up the tunnel in the next story, and is killed in it.
#[test]
fn owner() {
    if let Some(path) = std::env::var_os("FORMNET_OWNER") {
        let key = PrivateKey::load_or_create(Path::new(&path)).unwrap();
        up("a", 1, &key);
        std::fs::write("/run/up", "").unwrap();
        loop {
            std::thread::park();
        }
    }
}

#[test]
fn a_tunnel_outlives_its_owner_and_the_next_one_takes_it_up_without_a_handshake() {
    story(&[], || {
        wire();
        let (a, b) = (PrivateKey::load_or_create(Path::new("/run/a.key")).unwrap(), PrivateKey::generate());
        let mut owner = Command::new(std::env::current_exe().unwrap());
        owner.args(["--exact", "owner", "--nocapture"]).env("FORMNET_OWNER", "/run/a.key").stdout(Stdio::null());
        let mut owner = owner.spawn().unwrap();
        eventually("the owner", || Path::new("/run/up").exists().then_some(()));
        up("b", 2, &b);
        within("a", || async { adopt(1, &a).await.set_peer(&peer(2, &b)).await.unwrap() });
        within("b", || async { adopt(2, &b).await.set_peer(&peer(1, &a)).await.unwrap() });
        sh(REACH_B);
        let (before, processes) = (state("a", 1, &a), helpers());
        assert_eq!(processes.len(), 2);
        let ping = start("ip netns exec a ping -i 0.02 -W 2 10.77.0.2");
        owner.kill().unwrap();
        owner.wait().unwrap();
        up("a", 1, &a);
        within("a", || async { adopt(1, &a).await.set_peer(&peer(2, &b)).await.unwrap() });
        sh(REACH_B);
        assert_eq!(lost(&ping.end()), 0);
        let after = state("a", 1, &a);
        let moved = after[0].last_handshake.unwrap().duration_since(before[0].last_handshake.unwrap());
        assert!(moved.unwrap_or_default().as_millis() < 500, "a new handshake");
        assert_eq!(helpers(), processes);
        // Nothing of the owner's is open in the helper, and its core would not be dumped.
        for process in processes {
            let open: Vec<_> = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten().collect();
            let names: Vec<_> = open.iter().filter_map(|it| std::fs::read_link(it.path()).ok()).collect();
            let strange = |name: &&std::path::PathBuf| {
                let name = name.to_string_lossy();
                !["/dev/null", "/dev/net/tun", "/run/wireguard/", "socket:", "anon_inode:"]
                    .iter()
                    .any(|known| name.starts_with(known))
            };
            assert_eq!(names.iter().find(strange), None, "{names:?}");
            let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
            assert!(
                limits
                    .lines()
                    .any(|line| line.starts_with("Max core file size") && line.split_whitespace().nth(4) == Some("0")),
                "{limits}"
            );
        }
    });
}

#[test]
fn a_peer_is_changed_and_cut_off_and_nothing_happens_if_it_is_so_already() {
    story(&[], || {
        let (a, b) = (PrivateKey::generate(), PrivateKey::generate());
        both(&a, &b);
        sh(REACH_B);
        within("a", || async {
            let tunnel = adopt(1, &a).await;
            let before = tunnel.peers().await.unwrap();
            let mut same = peer(2, &b);
            same.allowed.reverse();
            tunnel.set_peer(&same).await.unwrap();
            tunnel.set_peer(&TunnelPeer { endpoint: None, ..same }).await.unwrap();
            assert_eq!(tunnel.peers().await.unwrap()[0].rx_bytes, before[0].rx_bytes, "its session was dropped");
            // Another prefix, and its endpoint is not lost though none is given.
            let mut more = TunnelPeer { endpoint: None, keepalive: Some(25), ..peer(2, &b) };
            more.allowed.push("10.77.0.99/32".parse().unwrap());
            tunnel.set_peer(&more).await.unwrap();
            let after = tunnel.peers().await.unwrap();
            assert_eq!((after.len(), after[0].allowed.len(), after[0].endpoint), (1, 3, before[0].endpoint));
        });
        eventually("a new session", || works(REACH_B).then_some(()));
        within("a", || async {
            let tunnel = adopt(1, &a).await;
            tunnel.remove_peer(&b.public()).await.unwrap();
            tunnel.remove_peer(&b.public()).await.unwrap();
            assert!(tunnel.peers().await.unwrap().is_empty());
        });
        assert!(!works("ip netns exec a ping -c 1 -W 1 10.77.0.2"));
        assert!(!works("ip netns exec b ping -c 1 -W 1 10.77.0.1"));
    });
}

#[test]
fn a_key_is_rotated_and_peers_stay() {
    story(&[], || {
        let (a, b) = (PrivateKey::generate(), PrivateKey::generate());
        both(&a, &b);
        sh(REACH_B);
        let ping = start("ip netns exec a ping -i 0.02 -W 2 10.77.0.2");
        let new = PrivateKey::generate();
        within("b", || async {
            let tunnel = adopt(2, &b).await;
            tunnel.remove_peer(&a.public()).await.unwrap();
            tunnel.set_peer(&peer(1, &new)).await.unwrap();
        });
        within("a", || async {
            let tunnel = adopt(1, &a).await;
            tunnel.set_private_key(&new).await.unwrap();
            assert_eq!(tunnel.peers().await.unwrap()[0].public_key, b.public());
        });
        eventually("a session by the new key", || works(REACH_B).then_some(()));
        let said = ping.end();
        println!("lost while the key was rotated: {} of pings every 20 ms", lost(&said));
    });
}

#[test]
fn a_tunnel_whose_helper_was_killed_is_down_and_comes_up_again() {
    story(&[], || {
        let (a, b) = (PrivateKey::generate(), PrivateKey::generate());
        both(&a, &b);
        let tunnel = within("a", || async { adopt(1, &a).await });
        for process in helpers() {
            sh(&format!("kill -9 {process}"));
        }
        eventually("the interface to go", || (!within("a", || async { tunnel.is_up().await })).then_some(()));
        up("a", 1, &a);
        up("b", 2, &b);
        within("a", || async { adopt(1, &a).await.set_peer(&peer(2, &b)).await.unwrap() });
        within("b", || async { adopt(2, &b).await.set_peer(&peer(1, &a)).await.unwrap() });
        eventually("a session", || works(REACH_B).then_some(()));
        for (name, interface) in [("a", "wg1"), ("b", "wg2")] {
            within(name, || async {
                Tunnel::down(interface).await.unwrap();
                Tunnel::down(interface).await.unwrap();
            });
            assert!(!works(&format!("ip -n {name} link show {interface}")));
        }
        assert!(helpers().is_empty());
        assert_eq!(sh("ls /run/wireguard | grep -c sock || true").trim(), "0");
    });
}

#[test]
fn an_interface_of_someone_else_is_neither_taken_nor_removed() {
    story(&[], || {
        sh("ip link add wg1 type bridge");
        common::here(|| async {
            let key = PrivateKey::generate();
            let refused = Tunnel::up_with_program("wg1", &key, 5001, Path::new(PROGRAM)).await.unwrap_err();
            assert!(refused.to_string().contains("is not ours"), "{refused}");
            assert!(Tunnel::down("wg1").await.is_err());
            let none = Tunnel::up_with_program("wg2", &key, 5001, Path::new("/bin/true")).await.unwrap_err();
            assert!(none.to_string().contains("tunnel::entry()"), "{none}");
        });
        sh("ip link show wg1");
    });
}
