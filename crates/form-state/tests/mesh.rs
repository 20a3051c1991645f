//! What the mesh has in the store: the two writers of a status, prefixes, peers, published ports.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use common::{Cloud, ready_node, ready_package};
use form_client::{Client, Error, Update};
use form_types::v1::{InstanceInterface, Mesh, NodeSpec, NodeStatus};
use form_types::{Kind, Object, kinds, timestamp};
use futures::StreamExt as _;
use futures::future::join_all;
use ipnet::IpNet;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(600);
const PEERS: &str = "/v1/projects/default/peers";
const INSTANCES: &str = "/v1/projects/default/instances";

/// Waits until the object is as wanted; `None`: until it is gone.
async fn until<K: Kind>(
    client: &Client,
    name: &str,
    project: &str,
    wanted: impl Fn(Option<&Object<K>>) -> bool,
) -> Option<Object<K>> {
    let listed = client.list::<K>(project).await.unwrap();
    let found = listed.items.into_iter().find(|object| object.meta.name == name);
    if wanted(found.as_ref()) {
        return found;
    }
    let mut watch = std::pin::pin!(client.watch::<K>(project, listed.revision).await.unwrap());
    loop {
        let now = match watch.next().await.unwrap().unwrap() {
            Update::Put(object) if object.meta.name == name => Some(*object),
            Update::Deleted(object) if object.meta.name == name => None,
            _ => continue,
        };
        if wanted(now.as_ref()) {
            return now;
        }
    }
}

/// A key that nobody has, for each number another.
fn key(number: u8) -> String {
    let mut bytes = [number; 32];
    // The highest bit of all has to be 0.
    bytes[31] = 0;
    data_encoding::BASE64.encode(&bytes)
}

fn peer(name: &str, number: u8) -> Value {
    json!({"name": name, "spec": {"public_key": key(number)}})
}

fn addresses(item: &Value) -> Vec<String> {
    let list = item["status"]["addresses"].as_array().cloned().unwrap_or_default();
    list.iter().map(|address| address.as_str().unwrap().to_owned()).collect()
}

fn publishing(name: &str, ports: Value) -> Value {
    json!({"name": name, "spec": {"package": "hello", "memory_mib": 64, "publish": ports}})
}

#[tokio::test]
async fn a_nodes_status_has_two_writers_and_neither_undoes_the_other() {
    let cloud = Cloud::start().await;
    let (vmm, _lease) = ready_node(&cloud, "one", 1024, LONG).await;
    let net = cloud.service("formnet", "one");
    let mesh = Mesh { public_key: key(1), interface: "formnet0".into(), mtu: 1420, ..Default::default() };

    let mut node = vmm.get::<kinds::Node>("", "one").await.unwrap();
    node.status = NodeStatus { mesh: Some(mesh.clone()), ready: false, vcpu: 99, ..Default::default() };
    let said = net.update_status(node).await.unwrap().status;
    assert_eq!((said.mesh.as_ref(), said.ready, said.vcpu), (Some(&mesh), true, 4));

    let mut node = vmm.get::<kinds::Node>("", "one").await.unwrap();
    node.status = NodeStatus { mesh: None, ready: true, vcpu: 8, ..Default::default() };
    let said = vmm.update_status(node).await.unwrap().status;
    assert_eq!((said.mesh.as_ref(), said.vcpu), (Some(&mesh), 8));

    // By formnet's lease no node lives.
    let other = cloud.service("formnet", "two");
    other.apply(Object::<kinds::Node>::new("", "two", NodeSpec::default())).await.unwrap();
    let mut two = other.get::<kinds::Node>("", "two").await.unwrap();
    two.status = NodeStatus { ready: true, ..Default::default() };
    let lease = other.grant_lease(LONG).await.unwrap();
    other.node_ready(two.clone(), &lease).await.unwrap();
    assert!(!other.get::<kinds::Node>("", "two").await.unwrap().status.ready);
    // And another node's status is not its to write.
    assert!(matches!(net.update_status(two.clone()).await, Err(Error::Denied(_))));
    assert!(matches!(net.apply(two).await, Err(Error::Denied(_))));
}

#[tokio::test]
async fn an_instances_status_has_two_writers_and_addresses_are_freed_by_the_one_who_gave_them() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    ready_package(&cloud, 64).await;
    let (vmm, _lease) = ready_node(&cloud, "one", 1024, LONG).await;
    let net = cloud.service("formnet", "one");
    for name in ["a", "b"] {
        admin.post(INSTANCES, publishing(name, json!([]))).await.ok();
    }
    let placed = |it: Option<&Object<kinds::Instance>>| it.is_some_and(|it| it.status.node == "one");
    let mut web = until::<kinds::Instance>(&vmm, "a", "default", placed).await.unwrap();
    let mut other = until::<kinds::Instance>(&vmm, "b", "default", placed).await.unwrap();
    let prefix = vmm.get::<kinds::Node>("", "one").await.unwrap().spec.ipv4_prefix;
    let given = vec![prefix.replace("0/24", "7")];
    let interface = InstanceInterface { tap: "formtap7".into(), mac: "02:f0:64:40:00:07".into(), ..Default::default() };

    web.status.addresses = given.clone();
    web.status.interface = Some(interface.clone());
    web.status.message = "not its to say".into();
    let mut web = net.update_status(web).await.unwrap();
    assert_eq!((&web.status.addresses, &web.status.interface), (&given, &Some(interface.clone())));
    assert_eq!(web.status.message, "placed on one");

    web.status.addresses.clear();
    web.status.interface = None;
    web.status.message = "starting".into();
    let mut web = vmm.update_status(web).await.unwrap();
    assert_eq!((&web.status.addresses, &web.status.interface), (&given, &Some(interface)));
    assert_eq!(web.status.message, "starting");

    other.status.addresses = given.clone();
    assert!(matches!(net.update_status(other.clone()).await, Err(Error::AlreadyExists(_))));
    web.status.addresses.clear();
    net.update_status(web).await.unwrap();
    net.update_status(other).await.unwrap();
}

#[tokio::test]
async fn of_two_who_register_a_node_neither_undoes_the_other_and_the_ranges_are_form_states_to_say() {
    let cloud = Cloud::start().await;
    let (vmm, net) = (cloud.service("vmm-service", "one"), cloud.service("formnet", "one"));
    let url = "https://192.0.2.1:3002".to_owned();
    let spec = NodeSpec { vmm_url: url.clone(), cluster_ipv4: "10.0.0.0/8".into(), ..Default::default() };
    let made = vmm.apply(Object::<kinds::Node>::new("", "one", spec)).await.unwrap().spec;
    assert_eq!(made.cluster_ipv4, "100.64.0.0/10");
    assert!(made.cluster_ipv6.starts_with("fd") && made.cluster_ipv6.ends_with("::/48"), "{}", made.cluster_ipv6);
    let again = net.apply(Object::<kinds::Node>::new("", "one", NodeSpec::default())).await.unwrap().spec;
    assert_eq!(again, made, "formnet has nothing to say in it");
    assert!(matches!(
        net.create(Object::<kinds::Node>::new("", "one", NodeSpec::default())).await,
        Err(Error::AlreadyExists(_))
    ));
}

#[tokio::test]
async fn the_end_of_the_ranges_is_for_peers_and_never_a_nodes() {
    let cloud = Cloud::start().await;
    let ask = |ipv4: &str| {
        let spec = NodeSpec { ipv4_prefix: ipv4.to_owned(), ..Default::default() };
        let agent = cloud.service("vmm-service", "one");
        async move { agent.apply(Object::<kinds::Node>::new("", "one", spec)).await }
    };
    let Err(Error::AlreadyExists(said)) = ask("100.127.250.0/24").await else { panic!("a prefix of the peers") };
    assert!(said.contains("Peers"), "{said}");
    assert!(matches!(ask("100.127.0.0/16").await, Err(Error::AlreadyExists(_))));
    assert_eq!(ask("100.127.239.0/24").await.unwrap().spec.ipv4_prefix, "100.127.239.0/24");
}

#[tokio::test]
async fn a_small_range_gives_its_last_quarter_to_peers_and_no_more_nodes_than_fit() {
    let dir = tempfile::tempdir().unwrap();
    let place = common::Place::new(dir);
    let cloud = Cloud::start_in(place, |config| config.ipv4_range = "10.1.0.0/22".parse().unwrap()).await;
    let mut prefixes = Vec::new();
    for name in ["a", "b", "c"] {
        let agent = cloud.service("vmm-service", name);
        prefixes.push(
            agent.apply(Object::<kinds::Node>::new("", name, NodeSpec::default())).await.unwrap().spec.ipv4_prefix,
        );
    }
    assert_eq!(prefixes, ["10.1.0.0/24", "10.1.1.0/24", "10.1.2.0/24"]);
    let refused = cloud.admin().post("/v1/nodes", json!({"name": "d"})).await;
    assert_eq!(refused.problem().1, "no-prefix-left");
    let made = cloud.admin().post(PEERS, peer("laptop", 1)).await.ok();
    assert!("10.1.3.0/24".parse::<IpNet>().unwrap().contains(&addresses(&made.body)[0].parse::<IpAddr>().unwrap()));
}

#[tokio::test]
async fn a_peer_gets_addresses_of_its_own_and_gives_them_back() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let made = join_all((0..40).map(|n| admin.post(PEERS, peer(&format!("p{n}"), n)))).await;
    let made: Vec<Vec<String>> = made.into_iter().map(|made| addresses(&made.ok().body)).collect();
    let range: IpNet = "100.127.240.0/20".parse().unwrap();
    let mut all = std::collections::BTreeSet::new();
    for pair in &made {
        let [v4, v6] = &pair[..] else { panic!("{pair:?}") };
        assert!(range.contains(&v4.parse::<IpAddr>().unwrap()) && v6.contains(":ffff:"), "{pair:?}");
        assert!(all.insert(v4.clone()) && all.insert(v6.clone()), "{pair:?} is somebody's");
    }

    // Rotation: another key, the same addresses.
    let rotated = admin.put(&format!("{PEERS}/p0"), peer("p0", 100)).await.ok();
    assert_eq!(addresses(&rotated.body), made[0]);
    admin.post(PEERS, peer("who-had-it", 0)).await.ok();
    let taken = admin.put(&format!("{PEERS}/p0"), peer("p0", 1)).await.problem();
    assert_eq!((taken.0, taken.1.as_str()), (409, "taken"));
    assert!(taken.2.contains("Peer default/p1"), "{}", taken.2);
    assert_eq!(admin.post(PEERS, peer("twin", 2)).await.problem().1, "taken");
    assert_eq!(admin.post(PEERS, peer("p3", 101)).await.problem().1, "already-exists");

    let elsewhere = json!({"name": "x", "spec": {"public_key": key(102), "network": "none"}});
    assert_eq!(admin.post(PEERS, elsewhere).await.bad_fields(), ["spec.network"]);
    assert_eq!(
        admin.post(PEERS, json!({"name": "x", "spec": {"public_key": "?"}})).await.bad_fields(),
        ["spec.public_key"]
    );

    admin.delete(&format!("{PEERS}/p2")).await.ok();
    admin.post(PEERS, peer("twin", 2)).await.ok();
}

#[tokio::test]
async fn the_last_address_of_the_peers_is_given_and_then_no_more() {
    let place = common::Place::new(tempfile::tempdir().unwrap());
    let cloud = Cloud::start_in(place, |config| config.ipv4_range = "10.1.0.0/23".parse().unwrap()).await;
    let admin = cloud.admin();
    // Of a /25, the first and the last are for nobody.
    for n in 0..126 {
        admin.post(PEERS, peer(&format!("p{n}"), n)).await.ok();
    }
    assert_eq!(admin.post(PEERS, peer("late", 200)).await.problem().1, "no-address-left");
    admin.delete(&format!("{PEERS}/p17")).await.ok();
    admin.post(PEERS, peer("late", 200)).await.ok();
}

#[tokio::test]
async fn nobodys_laptop_has_the_key_of_a_node() {
    let cloud = Cloud::start().await;
    let net = cloud.service("formnet", "one");
    let mut node = net.apply(Object::<kinds::Node>::new("", "one", NodeSpec::default())).await.unwrap();
    node.status.mesh = Some(Mesh { public_key: key(1), ..Default::default() });
    net.update_status(node).await.unwrap();
    assert_eq!(cloud.admin().post(PEERS, peer("laptop", 1)).await.problem().1, "taken");
    cloud.admin().delete("/v1/nodes/one").await.ok();
    cloud.admin().post(PEERS, peer("laptop", 1)).await.ok();
}

#[tokio::test]
async fn a_peer_whose_time_is_over_is_gone_and_an_event_says_so() {
    let cloud = Cloud::start().await;
    let (admin, watcher) = (cloud.admin(), cloud.service("formnet", "one"));
    let spec = |soon: Duration, number| {
        let at = timestamp(SystemTime::now() + soon).to_string();
        json!({"spec": {"public_key": key(number), "expires_at": at}})
    };
    admin.put(&format!("{PEERS}/guest"), spec(LONG, 1)).await.ok();
    admin.put(&format!("{PEERS}/friend"), spec(LONG, 2)).await.ok();
    admin.put(&format!("{PEERS}/guest"), spec(Duration::from_millis(50), 1)).await.ok();
    until::<kinds::Peer>(&watcher, "guest", "default", |it| it.is_none()).await;
    until::<kinds::Peer>(&watcher, "friend", "default", |it| it.is_some()).await;
    let expired = |events: &[Object<kinds::Event>]| {
        events.iter().any(|event| event.spec.reason == "Expired" && event.spec.name == "guest")
    };
    while !expired(&watcher.list::<kinds::Event>("default").await.unwrap().items) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Its key is free again.
    admin.put(&format!("{PEERS}/again"), spec(LONG, 1)).await.ok();
}

#[tokio::test]
async fn a_port_of_a_node_is_one_instances() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    ready_package(&cloud, 64).await;
    let (vmm, _one) = ready_node(&cloud, "one", 1024, LONG).await;
    let reason = |reason: &'static str| {
        move |it: Option<&Object<kinds::Instance>>| it.is_some_and(|it| it.status.reason == reason)
    };
    let until = async |name: &str, why: &'static str| {
        until::<kinds::Instance>(&vmm, name, "default", reason(why)).await.unwrap()
    };
    let twice = json!([{"host_port": 80, "port": 80}, {"host_port": 80, "port": 81}]);
    assert_eq!(admin.post(INSTANCES, publishing("x", twice)).await.bad_fields(), ["spec.publish[1]"]);

    let tcp = json!([{"host_port": 8080, "port": 80}]);
    let udp = json!([{"host_port": 8080, "port": 80, "protocol": "udp"}]);
    admin.post(INSTANCES, publishing("first", tcp.clone())).await.ok();
    let first = until("first", "Placed").await;
    admin.post(INSTANCES, publishing("other", udp)).await.ok();
    until("other", "Placed").await;
    admin.post(INSTANCES, publishing("second", tcp.clone())).await.ok();
    let waits = until("second", "PortTaken").await;
    assert!(
        waits.status.message.contains("one/tcp/8080 belongs to Instance default/first"),
        "{}",
        waits.status.message
    );
    // One that is placed already takes a port as it is applied, or not.
    let taken = admin.put(&format!("{INSTANCES}/other"), publishing("other", tcp.clone())).await.problem();
    assert_eq!(taken.1, "taken", "{taken:?}");

    // Another node has that port free.
    let (_vmm, _two) = ready_node(&cloud, "two", 512, LONG).await;
    assert_eq!(until("second", "Placed").await.status.node, "two");
    admin.post(INSTANCES, publishing("third", tcp.clone())).await.ok();
    until("third", "PortTaken").await;
    // Who gives it up lets the next in.
    admin.put(&format!("{INSTANCES}/first"), publishing("first", json!([]))).await.ok();
    assert_eq!(until("third", "Placed").await.status.node, "one");
    admin.post(INSTANCES, publishing("fourth", tcp)).await.ok();
    until("fourth", "PortTaken").await;
    admin.delete(&format!("{INSTANCES}/third")).await.ok();
    let third = vmm.get::<kinds::Instance>("default", "third").await.unwrap();
    vmm.finalize::<kinds::Instance>(&third.meta).await.unwrap();
    assert_eq!(until("fourth", "Placed").await.status.node, "one");
    assert_eq!(first.status.node, "one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_instance_is_placed_on_a_node_that_is_gone_however_the_two_race() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    ready_package(&cloud, 64).await;
    let watcher = cloud.service("formnet", "one");
    for round in 0..30 {
        let (node, instance) = (format!("n{round}"), format!("i{round}"));
        let (vmm, _lease) = ready_node(&cloud, &node, 1024, LONG).await;
        let address = format!("/v1/nodes/{node}");
        let (made, removed) = tokio::join!(admin.post(INSTANCES, publishing(&instance, json!([]))), async {
            // The scheduler is about to place it.
            until::<kinds::Instance>(&watcher, &instance, "default", |it| it.is_some()).await;
            admin.delete(&address).await
        });
        made.ok();
        let placed = watcher.get::<kinds::Instance>("default", &instance).await.unwrap();
        if removed.status == 200 {
            let waits = |it: Option<&Object<kinds::Instance>>| it.is_some_and(|it| it.status.reason == "NoRoom");
            until::<kinds::Instance>(&watcher, &instance, "default", waits).await;
            admin.delete(&format!("{INSTANCES}/{instance}")).await.ok();
        } else {
            assert_eq!((removed.status, placed.status.node.as_str()), (409, node.as_str()), "{removed:?}");
            admin.delete(&format!("{INSTANCES}/{instance}")).await.ok();
            vmm.finalize::<kinds::Instance>(&placed.meta).await.unwrap();
            admin.delete(&address).await.ok();
        }
    }
}
