//! What the rules promise: a node with guests on two networks, the mesh behind one wire, the world behind another.
//!
//! ```text
//!   a1, a2 ── fmb A ──┐          ┌── mesh ── far: another node, a member of A, a member of B
//!   b1 ────── fmb B ──┤   node   │
//!                     └──────────┴── wan ─── out: somebody outside
//! ```
//! Guests are namespaces, and their taps ends of veth pairs with taps' names.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use common::{eventually, here, lost, run, sh, start, story, within, works};
use formnet::links::{Links, bridge_name, tap_name};
use formnet::rules::{Element, Protocol, Ranges, Rules};
use futures::StreamExt as _;

fn ranges() -> Ranges {
    let net = |text: &str| text.parse().unwrap();
    Ranges {
        cluster: [net("100.64.0.0/10"), net("fd64::/32")],
        own: [net("100.64.1.0/24"), net("fd64:0:1::/64")],
        mesh: "mesh".into(),
    }
}

fn mac(number: u8) -> [u8; 6] {
    [2, 0xf0, 0, 0, 0, number]
}

fn member(address: &str, network: &str) -> Element {
    Element::Member { address: address.parse().unwrap(), bridge: bridge_name("p", network) }
}

/// A guest's addresses: 100.64.1.N and fd64:0:1::N.
fn own(number: u8) -> [String; 2] {
    [format!("100.64.1.{number}"), format!("fd64:0:1::{number}")]
}

fn guest_elements(guest: &str, number: u8, network: &str) -> Vec<Element> {
    let owner =
        |address: &String| Element::Owner { tap: tap_name(guest), mac: mac(number), address: address.parse().unwrap() };
    own(number).iter().flat_map(|address| [owner(address), member(address, network)]).collect()
}

fn publish(port: u16, to: &str) -> Element {
    Element::Publish { protocol: Protocol::Tcp, host_port: port, to: to.parse().unwrap() }
}

/// All that is true of the picture above.
fn elements() -> Vec<Element> {
    let mut all = vec![publish(8080, "100.64.1.2:80"), publish(8081, "[fd64:0:1::2]:80")];
    for (guest, number, network) in [("a1", 2, "a"), ("a2", 3, "a"), ("b1", 4, "b")] {
        all.extend(guest_elements(guest, number, network));
    }
    for (number, network) in [(2, "a"), (3, "b")] {
        all.extend([member(&format!("100.64.2.{number}"), network), member(&format!("fd64:0:2::{number}"), network)]);
    }
    all.extend(
        ["100.64.1.1", "fd64:0:1::1", "100.64.2.1", "fd64:0:2::1"]
            .map(|it| Element::Node { address: it.parse().unwrap() }),
    );
    all
}

/// The picture, with the rules in it.
fn stage() {
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
        for name in far out; do ip netns add $name; ip -n $name link set lo up; done
        ip link add mesh type veth peer name eth0 netns far; ip link add wan type veth peer name eth0 netns out
        ip link set mesh up; ip link set wan up; ip -n far link set eth0 up; ip -n out link set eth0 up
        ip addr add 203.0.113.1/24 dev wan; ip -n out addr add 203.0.113.2/24 dev eth0
        ip addr add 2001:db8::1/64 dev wan nodad; ip -n out addr add 2001:db8::2/64 dev eth0 nodad
        ip addr add 100.64.1.1/32 dev mesh; ip addr add fd64:0:1::1/128 dev mesh nodad
        ip route add 100.64.2.0/24 dev mesh src 100.64.1.1; ip -6 route add fd64:0:2::/64 dev mesh src fd64:0:1::1
        for n in 1 2 3; do ip -n far addr add 100.64.2.$n/32 dev eth0; ip -n far addr add fd64:0:2::$n/128 dev eth0 nodad; done
        ip -n far route add 100.64.0.0/10 dev eth0; ip -n far -6 route add fd64::/32 dev eth0
        # The mesh has no neighbours to ask for: WireGuard is no Ethernet.
        card=$(ip -br link show mesh | awk '{print $3}'); far=$(ip -n far -br link show eth0 | awk '{print $3}')
        ip link set mesh arp off; ip -n far link set eth0 arp off
        for n in 1 2 3; do ip neigh replace 100.64.2.$n lladdr $far dev mesh; ip neigh replace fd64:0:2::$n lladdr $far dev mesh; done
        for n in 1 2 3 4 9; do ip -n far neigh replace 100.64.1.$n lladdr $card dev eth0
            ip -n far neigh replace fd64:0:1::$n lladdr $card dev eth0; done");
    here(|| async {
        let rules = Rules::install(&ranges()).await.unwrap();
        rules.change(&elements(), &[]).await.unwrap();
        let links = Links::connect().unwrap();
        for network in ["a", "b"] {
            let addresses =
                [format!("100.64.1.{}/32", if network == "a" { 254 } else { 253 }), "fd64:0:1::fe/128".into()];
            let addresses = addresses.map(|it| it.parse().unwrap());
            links
                .ensure_bridge(&bridge_name("p", network), &format!("network:p/{network}"), &addresses, 1420)
                .await
                .unwrap();
        }
        for (guest, number, network) in [("a1", 2, "a"), ("a2", 3, "a"), ("b1", 4, "b")] {
            let (tap, bridge, [v4, v6]) = (tap_name(guest), bridge_name("p", network), own(number));
            let gateway = if network == "a" { "100.64.1.254" } else { "100.64.1.253" };
            sh(&format!(
                "ip netns add {guest}; ip link add {tap} type veth peer name eth0 netns {guest}
                 ip -n {guest} link set eth0 address 02:f0:00:00:00:{number:02x} mtu 1420 up; ip -n {guest} link set lo up
                 ip -n {guest} addr add {v4}/32 dev eth0; ip -n {guest} addr add {v6}/128 dev eth0 nodad
                 ip -n {guest} route add {gateway} dev eth0; ip -n {guest} route add default via {gateway}
                 ip -n {guest} -6 route add fd64:0:1::fe dev eth0; ip -n {guest} -6 route add default via fd64:0:1::fe
                 ip link set {tap} master {bridge} mtu 1420 up"
            ));
            for address in own(number) {
                let to = format!("{address}/{}", if address.contains(':') { 128 } else { 32 });
                links.ensure_route(to.parse().unwrap(), &bridge, None).await.unwrap();
            }
        }
    });
    for (guest, gateway) in [("a1", "100.64.1.254"), ("a2", "100.64.1.254"), ("b1", "100.64.1.253")] {
        eventually("a guest", || (pings(guest, gateway) && pings(guest, "fd64:0:1::fe")).then_some(()));
    }
}

/// `name` is a namespace, or empty for the node.
fn exec(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("ip netns exec {name} ") }
}

fn pings(from: &str, to: &str) -> bool {
    works(&format!("{}ping -c 1 -W 1 {to}", exec(from)))
}

fn pings_as(from: &str, source: &str, to: &str) -> bool {
    works(&format!("{}ping -c 1 -W 1 -I {source} {to}", exec(from)))
}

/// Answers on a TCP port with who called, for as long as the story lasts.
fn serve(name: &'static str, address: &'static str) {
    let listener = within(name, || async { TcpListener::bind(address).unwrap() });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = write!(stream, "{}", stream.peer_addr().unwrap().ip());
        }
    });
}

/// As who a server on the other side saw us; nothing if we got no connection.
fn calls(from: &str, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    within(from, || async move {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(800)).ok()?;
        let mut who = String::new();
        stream.read_to_string(&mut who).ok()?;
        Some(who)
    })
}

#[test]
fn a_guest_reaches_its_network_and_no_other() {
    story(&[], || {
        stage();
        // Of its network: here, elsewhere; and the node, which asks whether it is there.
        for to in ["100.64.1.3", "fd64:0:1::3", "100.64.2.2", "fd64:0:2::2", "100.64.1.254", "fd64:0:1::fe"] {
            assert!(pings("a1", to), "a1 does not reach {to}");
        }
        // Of the other network: here, elsewhere. And the other node, which it may answer only.
        for to in ["100.64.1.4", "fd64:0:1::4", "100.64.2.3", "fd64:0:2::3", "100.64.2.1", "fd64:0:2::1"] {
            assert!(!pings("a1", to), "a1 reaches {to}");
        }
        for to in ["100.64.1.2", "fd64:0:1::2", "100.64.2.2"] {
            assert!(!pings("b1", to), "b1 reaches {to}");
        }
        // From elsewhere: a member reaches its network, the node reaches all, nobody else anything.
        for (source, to, reaches) in [
            ("100.64.2.2", "100.64.1.2", true),
            ("fd64:0:2::2", "fd64:0:1::2", true),
            ("100.64.2.3", "100.64.1.2", false),
            ("fd64:0:2::3", "fd64:0:1::2", false),
            ("100.64.2.1", "100.64.1.2", true),
            ("fd64:0:2::1", "fd64:0:1::2", true),
            ("100.64.2.1", "100.64.1.4", true),
        ] {
            assert_eq!(pings_as("far", source, to), reaches, "{source} to {to}");
        }
        // The node itself.
        for to in ["100.64.1.2", "fd64:0:1::2", "100.64.1.4", "fd64:0:1::4"] {
            assert!(pings("", to), "the node does not reach {to}");
        }
        // Two guests as neighbours, without the node between them.
        sh("ip -n a1 -6 route add fd64:0:1::3 dev eth0; ip -n a2 -6 route add fd64:0:1::2 dev eth0
            ip -n a1 route add 100.64.1.3 dev eth0; ip -n a2 route add 100.64.1.2 dev eth0");
        assert!(pings("a1", "fd64:0:1::3") && pings("a1", "100.64.1.3"));
        // It agrees on one side only: not enough.
        here(|| async {
            let rules = Rules::install(&ranges()).await.unwrap();
            rules.change(&[member("100.64.1.4", "a")], &[]).await.unwrap();
        });
        assert!(!pings("a1", "100.64.1.4") && !pings("b1", "100.64.1.2"));
        here(|| async {
            let rules = Rules::install(&ranges()).await.unwrap();
            rules.change(&[member("100.64.1.2", "b")], &[]).await.unwrap();
        });
        assert!(pings("a1", "100.64.1.4") && pings("b1", "100.64.1.2"));
    });
}

#[test]
fn a_guest_sends_as_itself_or_not_at_all() {
    story(&["tcpdump"], || {
        stage();
        sh("ip -n a1 addr add 100.64.1.9/32 dev eth0; ip -n a1 addr add fd64:0:1::9/128 dev eth0 nodad");
        // An address that is nobody's, to the node, which would answer.
        sh(&format!(
            "ip route add 100.64.1.9/32 dev {0}; ip -6 route add fd64:0:1::9/128 dev {0}",
            bridge_name("p", "a")
        ));
        for (source, to) in [("100.64.1.9", "100.64.1.254"), ("fd64:0:1::9", "fd64:0:1::fe")] {
            assert!(!pings_as("a1", source, to), "{source} got through");
        }
        assert!(
            !pings("", "100.64.1.9") && !pings("", "fd64:0:1::9"),
            "its ARP or its neighbour advertisement got through"
        );
        // A neighbour's address, while the neighbour is silent.
        assert!(pings("", "100.64.1.3") && pings("", "fd64:0:1::3"));
        sh("ip -n a2 link set eth0 down; ip -n a1 addr add 100.64.1.3/32 dev eth0; ip -n a1 addr add fd64:0:1::3/128 dev eth0 nodad
            ip neigh flush all");
        assert!(!pings("", "100.64.1.3") && !pings("", "fd64:0:1::3"), "another guest answered for it");
        sh("ip -n a1 addr del 100.64.1.3/32 dev eth0; ip -n a1 addr del fd64:0:1::3/128 dev eth0
            ip -n a2 link set eth0 up; ip -n a2 addr replace fd64:0:1::3/128 dev eth0 nodad");
        // What only routers and DHCP servers say, and what has a VLAN tag; after each something that is allowed.
        let capture = start("ip netns exec a2 tcpdump -i eth0 -e -nn -U -w /run/a2.pcap");
        eventually("a capture", || std::path::Path::new("/run/a2.pcap").exists().then_some(()));
        within("a1", || async {
            // So that there is nothing to ask for first.
            let to = "fd64:0:1::3";
            sh(&format!(
                "ip -n a1 -6 route replace {to} dev eth0; ip -n a1 route replace 100.64.1.3 dev eth0
                 ip -n a1 neigh replace {to} lladdr 02:f0:00:00:00:03 dev eth0
                 ip -n a1 neigh replace 100.64.1.3 lladdr 02:f0:00:00:00:03 dev eth0"
            ));
            for (port, from, to) in [
                (67, "100.64.1.2", "100.64.1.3:68"),
                (547, "fd64:0:1::2", "[fd64:0:1::3]:546"),
                (4711, "100.64.1.2", "100.64.1.3:68"),
            ] {
                let socket = UdpSocket::bind((from, port)).unwrap();
                socket.send_to(b"offer", to).unwrap();
            }
        });
        let has_vlans = works("ip -n a1 link add link eth0 name v10 type vlan id 10");
        if has_vlans {
            sh("ip -n a1 addr add 100.64.1.2/32 dev v10; ip -n a1 link set v10 up; ip -n a1 route replace 100.64.1.3 dev v10
                ip -n a1 neigh replace 100.64.1.3 lladdr 02:f0:00:00:00:03 dev v10");
            assert!(!pings_as("a1", "v10", "100.64.1.3"));
        } else {
            println!("skipped: this kernel has no VLANs");
        }
        let seen = eventually("what is allowed", || {
            let seen = sh("tcpdump -nn -r /run/a2.pcap 2>/dev/null");
            seen.contains(".4711 >").then_some(seen)
        });
        capture.end();
        let bad = sh(
            "tcpdump -nn -r /run/a2.pcap 'udp src port 67 or udp src port 547 or vlan or (icmp6 and ip6[40] == 134)' 2>/dev/null",
        );
        assert_eq!(bad, "", "{seen}");
        // Another card.
        sh("ip -n a1 link set eth0 address 02:f0:00:00:00:77");
        assert!(!pings("a1", "100.64.1.254") && !pings("a1", "100.64.1.3"));
    });
}

#[test]
fn the_world_is_reached_by_nat_and_reaches_what_is_published() {
    story(&[], || {
        // Where bridged packets are shown to the rules, a guest does not reach itself by its published port: the packet
        // would have to leave by the tap that it came from, and a bridge does not do that.
        let _ = run("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0");
        stage();
        serve("out", "0.0.0.0:80");
        serve("out", "[::]:81");
        serve("a1", "100.64.1.2:80");
        serve("a1", "[fd64:0:1::2]:80");
        serve("", "0.0.0.0:2222");
        serve("", "0.0.0.0:53");
        // Out, as the node.
        assert_eq!(calls("a1", "203.0.113.2:80").as_deref(), Some("203.0.113.1"));
        assert_eq!(calls("b1", "[2001:db8::2]:81").as_deref(), Some("2001:db8::1"));
        // In, by the published port alone, and the guest sees who calls.
        assert_eq!(calls("out", "203.0.113.1:8080").as_deref(), Some("203.0.113.2"));
        assert_eq!(calls("out", "[2001:db8::1]:8081").as_deref(), Some("2001:db8::2"));
        sh("ip -n out route add 100.64.0.0/10 via 203.0.113.1; ip -n out -6 route add fd64::/32 via 2001:db8::1");
        for to in ["100.64.1.2:80", "[fd64:0:1::2]:80"] {
            assert_eq!(calls("out", to), None, "{to} from outside");
        }
        assert!(!pings("out", "100.64.1.2") && !pings("out", "100.64.2.2"), "the mesh is open to the world");
        // A published port from within: the other network's guest, the same network's, the guest itself, the node.
        for from in ["b1", "a2", "a1", ""] {
            let who = calls(from, "203.0.113.1:8080");
            assert!(who.is_some(), "{from:?} and the published port");
        }
        // Not at the node's address in the mesh, which guests and peers would take for the instance's way around.
        assert_eq!(calls("far", "100.64.1.1:8080"), None);
        // The node's own ports: names, and nothing else.
        assert!(calls("a1", "100.64.1.254:53").is_some());
        for to in ["100.64.1.254:2222", "203.0.113.1:2222"] {
            assert_eq!(calls("a1", to), None, "a1 got {to}");
        }
        assert!(calls("out", "203.0.113.1:2222").is_some(), "what is not ours is left alone");
        // Another node gets any port, a member of a network does not.
        let from = |source: &str| works(&format!("ip netns exec far ping -c 1 -W 1 -I {source} 100.64.1.1"));
        assert!(from("100.64.2.1") && from("100.64.2.2"));
        assert!(calls("far", "100.64.1.1:2222").is_some_and(|who| who == "100.64.2.1"));
        sh("ip -n far route replace 100.64.1.1/32 dev eth0 src 100.64.2.2");
        assert_eq!(calls("far", "100.64.1.1:2222"), None);
        let before = heard("a1");
        assert!(pings_as("far", "100.64.2.2", "100.64.1.2") && heard("a1") != before);
        // Who claims from outside to be of the cluster: to a guest that would take it for its own network.
        for source in ["100.64.2.2", "100.64.1.3"] {
            sh(&format!("ip -n out addr add {source}/32 dev eth0"));
            let before = heard("a1");
            let _ = pings_as("out", source, "100.64.1.2");
            assert_eq!(heard("a1"), before, "{source} from outside");
        }
        // And by the mesh, to be of this node.
        sh("ip -n far addr add 100.64.1.3/32 dev eth0");
        let before = heard("a1");
        let _ = pings_as("far", "100.64.1.3", "100.64.1.2");
        assert_eq!(heard("a1"), before);
        // The mesh is no way to elsewhere.
        sh(
            "ip -n far route add default dev eth0; ip -n far neigh replace 203.0.113.2 lladdr $(ip -br link show mesh | awk '{print $3}') dev eth0",
        );
        assert!(!pings_as("far", "100.64.2.2", "203.0.113.2") && !pings_as("far", "100.64.2.1", "203.0.113.2"));
    });
}

/// How many echo requests a guest has got.
fn heard(name: &str) -> String {
    sh(&format!(
        "{}cat /proc/net/snmp | grep '^IcmpMsg' | tail -1; {}cat /proc/net/snmp | grep '^Icmp:' | tail -1 | cut -d' ' -f 9",
        exec(name),
        exec(name)
    ))
}

#[test]
fn there_is_no_moment_without_rules() {
    story(&[], || {
        stage();
        let member = start("ip netns exec a1 ping -i 0.01 -W 2 100.64.2.2");
        let stranger = start("ip netns exec b1 ping -i 0.01 -W 2 100.64.1.2");
        let remote = start("ip netns exec far ping -i 0.01 -W 2 -I 100.64.2.3 100.64.1.2");
        here(|| async {
            let rules = Rules::install(&ranges()).await.unwrap();
            for round in 0..40_u8 {
                if round % 2 == 0 {
                    rules.reinstall(&ranges()).await.unwrap()
                } else {
                    Rules::install(&ranges()).await.map(drop).unwrap()
                }
                // What is added and removed is another's; what is there is added again.
                let other = [Element::Member { address: [100, 64, 7, round].into(), bridge: bridge_name("p", "c") }];
                rules.change(&other, &[]).await.unwrap();
                rules.change(&elements(), &other).await.unwrap();
                assert!(rules.are_whole().await.unwrap() || round % 2 == 1);
            }
        });
        assert_eq!(lost(&member.end()), 0);
        for said in [stranger.end(), remote.end()] {
            assert!(said.contains(" 0 received"), "{said}");
        }
    });
}

#[test]
fn changes_that_come_together_are_done_together_and_in_order() {
    story(&[], || {
        here(|| async {
            let rules = Rules::install(&ranges()).await.unwrap();
            let node = |number: u8| Element::Node { address: [100, 64, 9, number].into() };
            // One that cannot be among many that can.
            let taken = [publish(80, "100.64.1.2:1"), publish(80, "100.64.1.3:1")];
            rules.change(&taken[..1], &[]).await.unwrap();
            let good: Vec<_> = (0..50)
                .map(|number| {
                    let rules = rules.clone();
                    tokio::spawn(async move { rules.change(&[node(number)], &[]).await })
                })
                .collect();
            let bad = {
                let (rules, taken) = (rules.clone(), taken.clone());
                tokio::spawn(async move { rules.change(&taken[1..], &[]).await })
            };
            for change in good {
                change.await.unwrap().unwrap();
            }
            assert!(bad.await.unwrap().is_err());
            // To add what is there, to remove what is not: fine. A port moves in one step; its old owner cannot take it back.
            rules.change(&[node(1)], &[node(200)]).await.unwrap();
            rules.change(&taken[1..], &taken[..1]).await.unwrap();
            rules.change(&[], &taken[..1]).await.unwrap();
            rules.change(&[node(1)], &[node(201), taken[0].clone()]).await.unwrap();
            let found = rules.elements().await.unwrap();
            let mut expected: HashSet<_> = (0..50).map(node).collect();
            expected.insert(taken[1].clone());
            assert_eq!(found, expected);
            // Everything there is, back and forth.
            rules.change(&elements(), &found.into_iter().collect::<Vec<_>>()).await.unwrap();
            assert_eq!(rules.elements().await.unwrap(), elements().into_iter().collect());
            let text = sh("nft list set bridge formation owners6");
            assert!(text.contains("fe80::f0:ff:fe00:2"), "{text}");
            rules.change(&[], &elements()).await.unwrap();
            assert!(rules.elements().await.unwrap().is_empty());
            assert_eq!(sh("nft -j list set bridge formation owners6 | grep -c elem || true").trim(), "0");
            let none = Ranges { own: [ranges().own[1], ranges().own[0]], ..ranges() };
            assert!(Rules::install(&none).await.is_err());
        });
    });
}

/// The process that installs and changes rules in the next story, and is killed in it.
#[test]
fn installer() {
    if std::env::var_os("FORMNET_INSTALLER").is_some() {
        here(|| async {
            loop {
                let rules = Rules::install(&ranges()).await.unwrap();
                rules.change(&elements(), &[]).await.unwrap();
                rules.change(&[], &elements()).await.unwrap();
            }
        });
    }
}

#[test]
fn whoever_is_killed_leaves_all_of_a_change_or_nothing() {
    story(&[], || {
        // All of them, or none; a table that is there has its rules.
        let whole: HashSet<Element> = elements().into_iter().collect();
        let (mut with, mut without) = (0, 0);
        for round in 0..40_u64 {
            let mut installer = Command::new(std::env::current_exe().unwrap());
            installer
                .args(["--exact", "installer", "--nocapture"])
                .env("FORMNET_INSTALLER", "1")
                .stdout(std::process::Stdio::null());
            let mut installer = installer.stderr(std::process::Stdio::null()).spawn().unwrap();
            // Later and later, by what it has done: some hundredths of its loop.
            let script = format!("for n in $(seq {}); do nft list tables >/dev/null; done", round);
            sh(&script);
            installer.kill().unwrap();
            installer.wait().unwrap();
            // And nft, which it may have left behind.
            let _ = run("for p in /proc/[0-9]*; do [ \"$(cat $p/comm)\" = nft ] && kill -9 ${p#/proc/}; done");
            let rules = run("nft list chain inet formation leaving");
            if rules.status.success() {
                assert_eq!(String::from_utf8_lossy(&rules.stdout).matches("return").count(), 7);
                let found = found();
                assert!(found.is_empty() || found == whole, "half of them: {found:?}");
                if found.is_empty() { without += 1 } else { with += 1 }
            }
        }
        println!("with all {with}, with none {without}");
        assert!(with + without > 0);
    });
}

fn found() -> HashSet<Element> {
    here(|| async {
        // Without installing: what the killed one left.
        let text = sh("nft -j list ruleset");
        let before = sh("nft list ruleset");
        let rules = Rules::install(&ranges()).await.unwrap();
        let found = rules.elements().await.unwrap();
        assert!(text.contains("formation") && !before.is_empty());
        found
    })
}

#[test]
fn what_is_not_ours_is_left_alone_and_what_somebody_breaks_is_noticed_and_mended() {
    story(&[], || {
        sh("nft add table inet other; nft add chain inet other forward '{ type filter hook forward priority 10; policy accept; }'
            nft add rule inet other forward ip daddr 192.0.2.1 drop; nft add table ip filter; nft add table bridge formations");
        let before = sh("nft list ruleset");
        here(|| async {
            let mut changes = Box::pin(Rules::changes().unwrap());
            let rules = Rules::install(&ranges()).await.unwrap();
            rules.change(&elements(), &[]).await.unwrap();
            assert!(rules.are_whole().await.unwrap());
            // What we did ourselves is no news.
            let news = tokio::time::timeout(Duration::from_millis(300), changes.next()).await;
            assert!(news.is_err(), "our own change");
            for broken in [
                "nft flush chain inet formation leaving",
                "nft delete rule inet formation entering handle $(nft -a list chain inet formation entering | grep drop | sed 's/.*handle //')",
                "nft insert rule bridge formation guest accept",
                "nft add chain inet formation forward '{ policy drop; }'",
                "nft delete table bridge formation",
                "nft add table inet formation '{ flags dormant; }'",
                "nft flush ruleset",
            ] {
                sh(broken);
                tokio::time::timeout(Duration::from_secs(10), changes.next()).await.expect(broken).unwrap();
                assert!(!rules.are_whole().await.unwrap(), "{broken}");
                rules.reinstall(&ranges()).await.unwrap();
                assert!(rules.are_whole().await.unwrap(), "{broken}");
                let policies = sh("nft list ruleset");
                assert!(!policies.contains("policy drop") && !policies.contains("dormant"), "{broken}: {policies}");
                rules.change(&elements(), &[]).await.unwrap();
                assert_eq!(rules.elements().await.unwrap(), elements().into_iter().collect(), "{broken}");
            }
            // A foreign change breaks nothing.
            sh("nft add table ip stranger");
            tokio::time::timeout(Duration::from_secs(10), changes.next()).await.unwrap().unwrap();
            assert!(rules.are_whole().await.unwrap());
            sh("nft flush ruleset; nft add table inet other; nft add chain inet other forward '{ type filter hook forward priority 10; policy accept; }'
                nft add rule inet other forward ip daddr 192.0.2.1 drop; nft add table ip filter; nft add table bridge formations");
            rules.reinstall(&ranges()).await.unwrap();
            Rules::remove().await.unwrap();
            Rules::remove().await.unwrap();
        });
        assert_eq!(sh("nft list ruleset"), before);
    });
}
