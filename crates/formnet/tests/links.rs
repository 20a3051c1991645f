//! What links and routes promise, in a network namespace of their own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::{here, sh, story};
use formnet::Error;
use formnet::links::{KernelObject, Links, bridge_name, tap_name};
use futures::StreamExt as _;
use ipnet::IpNet;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn object(kind: &'static str, name: &str, owner: &str) -> KernelObject {
    KernelObject { kind, name: name.to_owned(), owner: owner.to_owned() }
}

const ADDRESSES: [&str; 2] = ["100.64.1.1/32", "fd64::1/128"];

#[test]
fn what_is_made_is_listed_and_is_all_that_is_listed() {
    story(&[], || {
        sh("ip link add br0 type bridge; ip link set br0 alias stranger up; ip addr add 192.0.2.1/24 dev br0
            ip addr add 2001:db8::1/64 dev br0 nodad; ip tuntap add tap0 mode tap; ip route add 198.51.100.0/24 dev br0 proto static
            ip -6 route add 2001:db8:5::/48 dev br0 proto static");
        let (bridge, tap) = (bridge_name("p", "n"), tap_name("uid-1"));
        let strangers = "ip -o link show br0; ip -o link show tap0; ip -o addr show dev br0; ip route show proto static; ip -6 route show proto static";
        let before = sh(strangers);
        here(|| async {
            let links = Links::connect().unwrap();
            assert!(links.objects().await.unwrap().is_empty());
            // Twice: the second time nothing is to be done.
            for _ in 0..2 {
                links.ensure_bridge(&bridge, "network:p/n", &ADDRESSES.map(net), 1420).await.unwrap();
                assert_eq!(links.ensure_tap("uid-1", &bridge, 4242, 1400).await.unwrap(), tap);
                links.ensure_route(net("100.64.1.7/32"), &bridge, None).await.unwrap();
                links.ensure_route(net("fd64::7/128"), &bridge, Some(net(ADDRESSES[1]).addr())).await.unwrap();
                links.ensure_route(net("100.64.2.0/24"), &bridge, Some(net(ADDRESSES[0]).addr())).await.unwrap();
                links.ensure_route(net("fd64:2::/64"), &bridge, None).await.unwrap();
            }
            let expected = [
                object("bridge", &bridge, "network:p/n"),
                object("tap", &tap, "instance:uid-1"),
                object("route", "100.64.1.7/32", &bridge),
                object("route", "100.64.2.0/24", &bridge),
                object("route", "fd64::7/128", &bridge),
                object("route", "fd64:2::/64", &bridge),
            ];
            let found = links.objects().await.unwrap();
            assert_eq!(found.len(), expected.len());
            assert_eq!(found.into_iter().collect::<HashSet<_>>(), expected.into_iter().collect());
            // Where the node may be reached: not at what is ours.
            let expected = [("br0".to_owned(), net("192.0.2.1/24")), ("br0".to_owned(), net("2001:db8::1/64"))];
            assert_eq!(links.addresses().await.unwrap(), expected);
            assert_eq!(links.mtu_towards("100.64.1.7".parse().unwrap()).await.unwrap(), Some(1420));
            assert_eq!(links.mtu_towards("2001:db8::9".parse().unwrap()).await.unwrap(), Some(1500));
            assert_eq!(links.mtu_towards("203.0.113.1".parse().unwrap()).await.unwrap(), None);
        });
        let shown = sh(&format!(
            "ip -d -o link show {tap}; ip -o addr show dev {bridge}; ip -o addr show dev {tap}; ip route show proto 240; ip -6 route show proto 240; ip route"
        ));
        for part in [
            &format!("master {bridge}"),
            "mtu 1400",
            "user 4242",
            "persist on",
            "alias formation:instance:uid-1",
            "100.64.1.7 dev",
            "src 100.64.1.1",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(
            !shown.contains("inet6 fe80") || !sh(&format!("ip -o addr show dev {tap}")).contains("fe80"),
            "{shown}"
        );
        assert!(!sh("ip -6 route show proto kernel").contains("fd64::1 "), "a prefix route");
        here(|| async {
            let links = Links::connect().unwrap();
            // What is wanted changes: addresses go and come, a route leads elsewhere, a tap moves.
            let other = bridge_name("p", "m");
            links.ensure_bridge(&other, "network:p/m", &[net("100.64.1.2/32")], 1420).await.unwrap();
            links.ensure_bridge(&bridge, "network:p/n", &[net("100.64.1.9/32")], 1400).await.unwrap();
            links.ensure_route(net("100.64.1.7/32"), &other, None).await.unwrap();
            links.ensure_route(net("fd64::7/128"), &other, None).await.unwrap();
            links.ensure_tap("uid-1", &other, 4242, 1400).await.unwrap();
            let found = links.objects().await.unwrap();
            assert!(
                found.contains(&object("route", "100.64.1.7/32", &other))
                    && found.contains(&object("route", "fd64::7/128", &other)),
                "{found:?}"
            );
            assert_eq!(found.iter().filter(|it| it.name.contains("7/")).count(), 2);
            let shown = sh(&format!("ip -o addr show dev {bridge}"));
            assert!(
                shown.contains("100.64.1.9/32") && !shown.contains("100.64.1.1/32") && !shown.contains("fd64"),
                "{shown}"
            );
            assert!(sh(&format!("ip link show {tap}")).contains(&format!("master {other}")));
            for _ in 0..2 {
                for route in ["100.64.1.7/32", "fd64::7/128", "100.64.2.0/24", "fd64:2::/64"] {
                    links.delete_route(net(route)).await.unwrap();
                }
                links.delete_tap("uid-1").await.unwrap();
                links.delete_bridge(&bridge).await.unwrap();
                links.delete_bridge(&other).await.unwrap();
            }
            assert!(links.objects().await.unwrap().is_empty());
        });
        assert_eq!(sh(strangers), before);
    });
}

#[test]
fn what_is_someone_elses_is_refused_and_stays() {
    story(&[], || {
        let (bridge, tap) = (bridge_name("p", "n"), tap_name("uid-1"));
        sh(&format!(
            "ip link add br0 type bridge; ip link set br0 up; ip link add {bridge} type bridge; ip link set {bridge} alias other
             ip tuntap add {tap} mode tap; ip link set {tap} alias formation:instance:uid-2
             ip route add 100.64.1.7/32 dev br0 proto static; ip -6 route add fd64::7/128 dev br0 proto static; ip route add 100.64.2.0/24 dev br0"
        ));
        let state = || sh("ip -o link; ip route; ip -6 route");
        let before = state();
        here(|| async {
            let links = Links::connect().unwrap();
            assert!(matches!(
                links.ensure_bridge(&bridge, "network:p/n", &[], 1420).await,
                Err(Error::NameTaken { .. })
            ));
            assert!(matches!(links.ensure_tap("uid-1", "br0", 1, 1420).await, Err(Error::NameTaken { .. })));
            assert!(matches!(links.ensure_tap("uid-1", "br1", 1, 1420).await, Err(Error::NoInterface { .. })));
            assert!(links.delete_bridge(&bridge).await.is_err() && links.delete_tap("uid-1").await.is_err());
            for route in ["100.64.1.7/32", "fd64::7/128", "100.64.2.0/24"] {
                let refused = links.ensure_route(net(route), "br0", None).await.unwrap_err();
                assert!(refused.to_string().contains("to br0"), "{refused}");
                links.delete_route(net(route)).await.unwrap();
            }
        });
        assert_eq!(state(), before);
    });
}

#[test]
fn a_tap_that_a_machine_has_open_is_kept_as_it_is() {
    story(&[], || {
        here(|| async {
            let links = Links::connect().unwrap();
            links.ensure_bridge("fmbx", "network:p/n", &[], 1420).await.unwrap();
            let tap = links.ensure_tap("uid-1", "fmbx", 0, 1420).await.unwrap();
            let open = form_tap::open_tap(&tap).unwrap();
            links.ensure_tap("uid-1", "fmbx", 0, 1420).await.unwrap();
            assert_eq!(form_tap::open_tap(&tap).unwrap_err().raw_os_error(), Some(nix::libc::EBUSY));
            drop(open);
            links.ensure_tap("uid-1", "fmbx", 4243, 1420).await.unwrap();
            assert!(sh(&format!("ip -d link show {tap}")).contains("user 4243"));
        });
    });
}

#[test]
fn what_somebody_deletes_is_noticed_and_made_again() {
    story(&[], || {
        here(|| async {
            let links = Links::connect().unwrap();
            let ensure = async || {
                links.ensure_bridge("fmbx", "network:p/n", &ADDRESSES.map(net), 1420).await.unwrap();
                links.ensure_tap("uid-1", "fmbx", 0, 1420).await.unwrap();
                links.ensure_route(net("100.64.1.7/32"), "fmbx", None).await.unwrap();
                links.ensure_route(net("fd64::7/128"), "fmbx", None).await.unwrap();
            };
            ensure().await;
            let before: HashSet<_> = links.objects().await.unwrap().into_iter().collect();
            let mut changes = Box::pin(Links::changes().unwrap());
            for broken in [
                "ip route del 100.64.1.7/32",
                "ip -6 route del fd64::7/128",
                "ip addr del 100.64.1.1/32 dev fmbx",
                &format!("ip link del {}", tap_name("uid-1")),
                "ip link del fmbx",
            ] {
                sh(broken);
                tokio::time::timeout(Duration::from_secs(10), changes.next()).await.expect(broken).unwrap();
                ensure().await;
                assert_eq!(links.objects().await.unwrap().into_iter().collect::<HashSet<_>>(), before, "{broken}");
                assert!(sh("ip -o addr show dev fmbx").contains("100.64.1.1/32"), "{broken}");
            }
        });
    });
}
