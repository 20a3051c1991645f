//! Eight machines, and all that happens to machines.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may; clippy only knows those that are in a #[test]"
)]

use std::io::Write as _;
use std::net::{TcpStream, UdpSocket};

use formation_tests::{Mesh, Value, eventually, story_of_a_mesh};

const NODES: usize = 8;

fn all_reach_all(mesh: &Mesh, nodes: &[usize]) {
    let inner: Vec<_> = nodes.iter().map(|node| (*node, mesh.inner(*node))).collect();
    for (from, _) in &inner {
        for (to, address) in &inner {
            if from != to {
                mesh.eventually_reaches(*from, *address);
            }
        }
    }
}

/// Every node says so of every other, with packets as large as the mesh takes.
fn is_whole(mesh: &Mesh) {
    eventually("the mesh is whole", || mesh.form(&["net", "doctor"]).out.contains("the mesh is whole").then_some(()));
}

#[test]
fn each_reaches_each_through_a_partition_and_after_it() {
    story_of_a_mesh(8, |mesh| {
        let all: Vec<usize> = (0..NODES).collect();
        all_reach_all(mesh, &all);

        // The last three are cut off, from form-state too.
        let (left, right) = all.split_at(5);
        for node in right {
            cut(&format!("lan{}", node + 1), "down");
        }
        let lost = mesh.inner(NODES - 1);
        eventually("the cut-off are out of reach", || (!mesh.reaches(0, lost)).then_some(()));
        let why = mesh.form(&["net", "ping", "n8", "--from", "n1", "-c", "1"]).refused(1);
        assert!(why.contains("1 probes were lost"), "{why}");
        all_reach_all(mesh, left);

        for node in right {
            cut(&format!("lan{}", node + 1), "up");
        }
        all_reach_all(mesh, &all);
        is_whole(mesh);
    });
}

#[test]
fn one_that_comes_back_elsewhere_is_found_there() {
    story_of_a_mesh(3, |mesh| {
        all_reach_all(mesh, &[0, 1, 2]);
        let inner = mesh.inner(2);
        mesh.kill(2);
        // The whole machine was off: nothing is left of its tunnel.
        mesh.run(2, &["rm", "/run/wireguard/formnet0.sock"]).done();
        for words in [["address", "del", "192.0.2.3/24"], ["address", "add", "192.0.2.77/24"]] {
            mesh.run(2, &["ip", words[0], words[1], words[2], "dev", "eth0"]).done();
        }
        mesh.start(2);
        for node in [0, 1] {
            mesh.eventually_reaches(node, inner);
        }
        let status = mesh.form(&["net", "status"]).done();
        assert!(status.contains("192.0.2.77:51820"), "{status}");
    });
}

#[test]
fn without_form_state_the_mesh_goes_on_and_so_does_a_formnet_that_is_started_again() {
    story_of_a_mesh(3, |mesh| {
        all_reach_all(mesh, &[0, 1, 2]);
        let inner = [0, 1, 2].map(|node| mesh.inner(node));
        mesh.kill_state();
        mesh.kill(1);
        assert!(mesh.reaches(0, inner[1]), "the session is the tunnel's, and outlives formnet");
        // As after a reboot: with what was on disk alone.
        mesh.run(1, &["rm", "/run/wireguard/formnet0.sock"]).done();
        eventually("its tunnel is gone", || (!mesh.reaches(0, inner[1])).then_some(()));
        mesh.start(1);
        mesh.eventually_reaches(1, inner[2]);
        mesh.eventually_reaches(0, inner[1]);
        mesh.start_state();
        all_reach_all(mesh, &[0, 1, 2]);
    });
}

#[test]
fn loss_and_delay_on_the_wire_are_told_and_nothing_else_comes_of_them() {
    story_of_a_mesh(2, |mesh| {
        all_reach_all(mesh, &[0, 1]);
        let netem = ["tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "40ms", "5ms", "loss", "10%"];
        let said = mesh.run(1, &netem);
        if said.err.contains("qdisc kind is unknown") {
            return println!("skipped: this kernel has no netem");
        }
        said.done();
        let rtt = eventually("the delay is measured", || {
            let status: Value = serde_json::from_str(&mesh.form(&["net", "status", "n1", "--json"]).done()).ok()?;
            status[0]["peers"][0]["rtt_ms"].as_f64().filter(|rtt| *rtt >= 35.0)
        });
        println!("rtt {rtt} ms");
        let inner = mesh.inner(1);
        mesh.eventually_reaches(0, inner);
    });
}

#[test]
fn what_is_removed_by_hand_is_put_back_and_told() {
    story_of_a_mesh(2, |mesh| {
        all_reach_all(mesh, &[0, 1]);
        let (inner, prefix) =
            (mesh.inner(1), mesh.get("node", "n2")["spec"]["ipv4_prefix"].as_str().unwrap().to_owned());
        for words in [
            vec!["ip", "route", "del", &prefix],
            vec!["nft", "flush", "chain", "inet", "formation", "forward"],
            vec!["nft", "delete", "table", "bridge", "formation"],
            vec!["nft", "flush", "set", "inet", "formation", "nodes4"],
            vec!["ip", "link", "del", "formnet0"],
        ] {
            let before = repairs(mesh);
            mesh.run(0, &words).done();
            eventually(&format!("{} is repaired", words.join(" ")), || (repairs(mesh) > before).then_some(()));
            mesh.eventually_reaches(0, inner);
        }
        let rules = mesh.run(0, &["nft", "list", "ruleset"]).done();
        assert!(rules.contains("table bridge formation") && rules.contains("jump leaving"), "{rules}");
    });
}

fn repairs(mesh: &Mesh) -> u64 {
    let status: Value = serde_json::from_str(&mesh.form(&["net", "status", "n1", "--json"]).done()).unwrap();
    status[0]["repairs"].as_u64().unwrap()
}

/// The cable of a machine.
fn cut(link: &str, state: &str) {
    let done = std::process::Command::new("ip").args(["link", "set", link, state]).status().unwrap();
    assert!(done.success());
}

#[test]
fn what_is_taken_down_leaves_nothing_and_touches_nothing_else() {
    story_of_a_mesh(2, |mesh| {
        all_reach_all(mesh, &[0, 1]);
        for words in [
            "ip link add mine type bridge",
            "ip route add 198.51.100.0/24 dev eth0",
            "nft add table inet mine",
            "nft add chain inet mine c",
        ] {
            mesh.run(0, &words.split(' ').collect::<Vec<_>>()).done();
        }
        let listed = mesh.form(&["net", "ls", "n1"]).done();
        assert!(listed.contains("formnet0") && listed.contains("inet formation"), "{listed}");
        mesh.kill(0);
        let config = format!("--set=data_dir={:?}", mesh.dir().join("n1/net"));
        let formnet = formation_tests::form().with_file_name("formnet").display().to_string();
        let removed = mesh.run(0, &[&formnet, "down", &config]).done();
        assert!(removed.contains("removed wireguard formnet0"), "{removed}");
        let left = [
            mesh.run(0, &["ip", "-oneline", "link"]).done(),
            mesh.run(0, &["ip", "route"]).done(),
            mesh.run(0, &["nft", "list", "ruleset"]).done(),
        ]
        .concat();
        for gone in ["formnet0", "formation", "fmb", "fmt", "100.64."] {
            assert!(!left.contains(gone), "{gone} is left:\n{left}");
        }
        for stays in ["mine", "198.51.100.0/24", "table inet mine"] {
            assert!(left.contains(stays), "{stays} is gone:\n{left}");
        }
        // A second time there is nothing to do, and that is no error.
        mesh.run(0, &[&formnet, "down", &config]).done();
    });
}

#[test]
fn a_key_that_is_old_is_renewed_while_packets_flow() {
    story_of_a_mesh(2, |mesh| {
        all_reach_all(mesh, &[0, 1]);
        let inner = mesh.inner(1).to_string();
        let key = |mesh: &Mesh| {
            mesh.get("node", "n1")["status"]["mesh"]["public_key"].as_str().unwrap_or_default().to_owned()
        };
        let before = eventually("its key is told", || Some(key(mesh)).filter(|key| !key.is_empty()));
        // Five packets a second, from before to after.
        let ping = mesh.spawn(0, &["ping", "-n", "-q", "-i", "0.2", "-c", "75", &inner]);
        let file = mesh.dir().join("n1/net/mesh.key").display().to_string();
        mesh.run(0, &["touch", "-d", "100 days ago", &file]).done();
        eventually("another key is told", || (key(mesh) != before).then_some(()));
        let said = ping.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout);
        println!("{said}");
        let lost = said.split(", ").find_map(|part| part.strip_suffix("% packet loss")).unwrap();
        // What was under way in that moment may be lost, and no more: one of 75 is 1.3 %.
        assert!(lost.parse::<f64>().unwrap() < 5.0, "{said}");
        all_reach_all(mesh, &[0, 1]);
        let told = mesh.form(&["get", "events"]).done();
        assert!(told.contains("MeshKey"), "{told}");
    });
}

#[test]
fn nonsense_from_the_wire_changes_nothing() {
    story_of_a_mesh(2, |mesh| {
        all_reach_all(mesh, &[0, 1]);
        // From a stranger on the same Ethernet.
        let done = std::process::Command::new("ip").args(["address", "add", "192.0.2.254/24", "dev", "lan"]).status();
        assert!(done.unwrap().success());
        let socket = UdpSocket::bind("192.0.2.254:0").unwrap();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            // xorshift64: the same packets at each run.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for round in 0..20_000_u32 {
            let length = usize::try_from(next() % 300).unwrap();
            let mut packet: Vec<u8> = (0..length).map(|_| next().to_le_bytes()[0]).collect();
            // Most of them look like WireGuard's own: a type, three zeros, and a length that is right or is not.
            if let Some(head) = packet.first_chunk_mut::<4>() {
                *head = [u8::try_from(round % 6).unwrap(), 0, 0, 0];
            }
            if round % 3 == 0 {
                packet.resize([148, 92, 64, 32][usize::try_from(round / 3 % 4).unwrap()], 7);
            }
            // To WireGuard; and to the probes, which are in the mesh alone.
            let port = if round % 10 == 9 { 3001 } else { 51820 };
            let _ = socket.send_to(&packet, ("192.0.2.1", port));
        }
        // To formnet's own listener: no TLS, half of one, and a request without a token.
        for bytes in [&b"GET /v1/mesh HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01", &[0; 4096]] {
            let mut stream = TcpStream::connect("192.0.2.1:3001").unwrap();
            stream.write_all(bytes).unwrap();
        }
        let said = std::process::Command::new("curl")
            .args(["--silent", "--insecure", "https://192.0.2.1:3001/v1/mesh", "--write-out", "%{http_code}"])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&said.stdout).ends_with("401"), "{said:?}");
        all_reach_all(mesh, &[0, 1]);
        is_whole(mesh);
    });
}

#[test]
fn a_formnet_that_is_killed_at_any_moment_ends_where_it_should() {
    story_of_a_mesh(2, |mesh| {
        all_reach_all(mesh, &[0, 1]);
        // The base64 of 32 bytes, whatever they are.
        let key = |number: u32| format!("{number:04}{:0>38}A=", "");
        let mut there = Vec::new();
        for round in 0..20_u32 {
            let name = format!("p{round}");
            mesh.form(&["net", "peer", "add", &name, "--public-key", &key(round)]).done();
            there.push(name);
            if round % 3 == 2 {
                mesh.form(&["net", "peer", "revoke", &there.remove(0)]).done();
            }
            // It is in the middle of something, or has just begun.
            mesh.start(usize::try_from(round % 2).unwrap());
        }
        for node in [0, 1] {
            let mut seen = Default::default();
            let start = std::time::Instant::now();
            eventually("each peer is there once, and nobody else", || {
                let peers = mesh.run(node, &["wg", "show", "formnet0", "peers"]).out.lines().count();
                let routes = mesh.run(node, &["ip", "-4", "route", "show", "dev", "formnet0"]).out.lines().count();
                let members = mesh.run(node, &["nft", "list", "set", "inet", "formation", "members4"]).out;
                seen = (peers, routes, members.matches("fmb").count());
                assert!(start.elapsed().as_secs() < 50, "{seen:?} and not {}", there.len());
                // The other node is a peer and a route, too.
                (seen == (there.len() + 1, there.len() + 1, there.len())).then_some(())
            });
        }
        all_reach_all(mesh, &[0, 1]);
    });
}
