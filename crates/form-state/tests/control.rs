//! What services do with form-state over gRPC: claims, leases, transactions, and what it does by itself.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Cloud, be_ready, ready_node, ready_package};
use form_client::{Client, Error, Update};
use form_types::v1::{
    ApplyRequest, CreateRequest, DeleteRequest, FinalizeRequest, InstanceSpec, Key, NetworkSpec, NodeSpec, NodeStatus,
    Operation, TransactRequest, WatchRequest, ZoneSpec, event_spec, instance_status::Phase, operation,
};
use form_types::{Kind, Object, kinds};
use futures::StreamExt as _;
use futures::future::join_all;
use serde_json::json;
use tonic::Code;

const LONG: Duration = Duration::from_secs(600);

/// Waits until an object of `K` is as wanted.
async fn until<K: Kind>(client: &Client, project: &str, name: &str, wanted: impl Fn(&Object<K>) -> bool) -> Object<K> {
    let listed = client.list::<K>(project).await.unwrap();
    if let Some(found) = listed.items.into_iter().find(|object| object.meta.name == name && wanted(object)) {
        return found;
    }
    let mut watch = std::pin::pin!(client.watch::<K>(project, listed.revision).await.unwrap());
    loop {
        if let Update::Put(object) = watch.next().await.unwrap().unwrap()
            && object.meta.name == name
            && wanted(&object)
        {
            return *object;
        }
    }
}

fn an_instance(name: &str, memory_mib: u32) -> serde_json::Value {
    json!({"name": name, "spec": {"package": "hello", "memory_mib": memory_mib}})
}

#[tokio::test]
async fn a_service_is_known_by_its_certificate_and_touches_only_what_is_its() {
    let cloud = Cloud::start().await;
    let (one, two) = (cloud.service("vmm-service", "one"), cloud.service("vmm-service", "two"));
    let node = one.apply(Object::<kinds::Node>::new("", "one", NodeSpec::default())).await.unwrap();
    assert!(matches!(two.update_status(node.clone()).await, Err(Error::Denied(_))), "another node's agent");
    assert!(matches!(two.apply(node.clone()).await, Err(Error::Denied(_))));
    assert!(matches!(cloud.service("form-dns", "one").update_status(node.clone()).await, Err(Error::Denied(_))));
    assert!(matches!(two.list::<kinds::Token>("").await, Err(Error::Denied(_))));
    let network = Object::<kinds::Network>::new("default", "blue", NetworkSpec::default());
    assert!(matches!(one.create(network).await, Err(Error::Denied(_))));

    let token = cloud.admin().token("t", json!({"role": "viewer", "project": "default"})).await;
    let caller = one.authenticate(&token).await.unwrap();
    assert_eq!(caller.subject, "t");
    assert!(matches!(one.authenticate("form_t_wrong").await, Err(Error::Unauthenticated(_))));
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let cloud = Cloud::start().await;
    let dir = tempfile::tempdir().unwrap();
    let stranger = form_service::Authority::open_or_create(dir.path()).unwrap();
    let mut identity = stranger.issue("form-state", "one", &[], &[]).unwrap();
    identity.ca_pem = cloud.identity("any", "one").ca_pem;
    let mut client = form_types::v1::state_client::StateClient::new(common::channel(cloud.address, &identity));
    let request = form_types::v1::ListRequest { kind: "Node".into(), ..Default::default() };
    assert!(client.list(request).await.is_err());
    // And the other way round: a server that the client's authority does not know is not talked to.
    let own = stranger.issue("vmm-service", "one", &[], &[]).unwrap();
    let mut client = form_types::v1::state_client::StateClient::new(common::channel(cloud.address, &own));
    assert!(client.list(form_types::v1::ListRequest { kind: "Node".into(), ..Default::default() }).await.is_err());
}

#[tokio::test]
async fn nodes_that_come_together_get_prefixes_of_their_own() {
    let cloud = Cloud::start().await;
    let names: Vec<String> = (0..8).map(|n| format!("n{n}")).collect();
    let joins = names.iter().map(|name| {
        let agent = cloud.service("vmm-service", name);
        async move { agent.apply(Object::<kinds::Node>::new("", name, NodeSpec::default())).await.unwrap().spec }
    });
    let specs = join_all(joins).await;
    let mut prefixes: Vec<String> =
        specs.iter().flat_map(|spec| [&spec.ipv4_prefix, &spec.ipv6_prefix]).cloned().collect();
    prefixes.sort();
    prefixes.dedup();
    assert_eq!(prefixes.len(), 16, "{prefixes:?}");

    let agent = cloud.service("vmm-service", "n9");
    let ask = |ipv4: &str| {
        let spec = NodeSpec { ipv4_prefix: ipv4.to_owned(), ..Default::default() };
        agent.apply(Object::<kinds::Node>::new("", "n9", spec))
    };
    assert!(matches!(ask("100.64.0.0/16").await, Err(Error::AlreadyExists(_))), "a prefix around another's");
    assert!(matches!(ask("100.64.1.128/25").await, Err(Error::AlreadyExists(_))), "a prefix within another's");
    assert!(matches!(ask("100.65.0.1/24").await, Err(Error::Invalid(_))));
    assert!(matches!(ask("fd00::/64").await, Err(Error::Invalid(_))));
    assert_eq!(ask("100.65.0.0/24").await.unwrap().spec.ipv4_prefix, "100.65.0.0/24");
    assert_eq!(ask("").await.unwrap().spec.ipv4_prefix, "100.65.0.0/24", "who says nothing keeps what it has");
    assert_eq!(ask("100.65.0.0/25").await.unwrap().spec.ipv4_prefix, "100.65.0.0/25", "its own is no other's");
}

#[tokio::test]
async fn two_instances_never_have_one_address() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    ready_package(&cloud, 64).await;
    let (agent, _lease) = ready_node(&cloud, "one", 1024, LONG).await;
    let mut placed = Vec::new();
    for name in ["a", "b"] {
        admin.post("/v1/projects/default/instances", an_instance(name, 64)).await.ok();
        placed.push(until::<kinds::Instance>(&agent, "default", name, |it| it.status.node == "one").await);
    }
    let [mut a, mut b]: [Object<kinds::Instance>; 2] = placed.try_into().unwrap();
    let node = agent.get::<kinds::Node>("", "one").await.unwrap().spec;
    let v4 = node.ipv4_prefix.replace("0/24", "5");
    let v6 = node.ipv6_prefix.replace("::/64", "::5");
    let net = cloud.service("formnet", "one");
    a.status.addresses = vec![v4.clone(), v6.clone()];
    let a = net.update_status(a).await.unwrap();
    for taken in [v4, v6.clone(), v6.replace("::5", ":0:0::0005")] {
        b.status.addresses = vec![taken.clone()];
        assert!(matches!(net.update_status(b.clone()).await, Err(Error::AlreadyExists(_))), "{taken}");
    }
    b.status.addresses = vec![node.ipv4_prefix.replace("0/24", "6")];
    // A claim goes with who had it.
    admin.delete("/v1/projects/default/instances/a").await.ok();
    let going = agent.get::<kinds::Instance>("default", "a").await.unwrap();
    assert!(going.is_being_deleted());
    agent.finalize::<kinds::Instance>(&a.meta).await.unwrap();
    agent.finalize::<kinds::Instance>(&a.meta).await.unwrap();
    assert!(matches!(agent.get::<kinds::Instance>("default", "a").await, Err(Error::NotFound(_))));
    net.update_status(b).await.unwrap();
}

#[tokio::test]
async fn an_address_that_is_not_out_of_its_nodes_prefix_is_refused() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    ready_package(&cloud, 64).await;
    let (agent, _lease) = ready_node(&cloud, "one", 1024, LONG).await;
    cloud
        .service("vmm-service", "two")
        .apply(Object::<kinds::Node>::new("", "two", NodeSpec::default()))
        .await
        .unwrap();
    admin.post("/v1/projects/default/instances", an_instance("web", 64)).await.ok();
    let mut web = until::<kinds::Instance>(&agent, "default", "web", |it| it.status.node == "one").await;
    let prefix = async |node: &str| agent.get::<kinds::Node>("", node).await.unwrap().spec.ipv4_prefix;
    let (own, other) = (prefix("one").await, prefix("two").await);
    let net = cloud.service("formnet", "one");
    for outside in [other.replace("0/24", "5"), "192.0.2.1".to_owned(), "fd00::5".to_owned()] {
        web.status.addresses = vec![own.replace("0/24", "5"), outside.clone()];
        let Err(Error::Invalid(said)) = net.update_status(web.clone()).await else { panic!("{outside} was taken") };
        assert!(said.contains("status.addresses") && said.contains(&outside) && said.contains(&own), "{said}");
    }
    assert_eq!(agent.get::<kinds::Instance>("default", "web").await.unwrap().status.addresses, [""; 0]);
}

#[tokio::test]
async fn a_transaction_is_whole_or_not_at_all() {
    let cloud = Cloud::start().await;
    let mut client = cloud.grpc("form-state", "one");
    let create = |resource: form_types::v1::Resource| {
        let create = CreateRequest { resource: Some(resource), idempotency_key: String::new() };
        Operation { operation: Some(operation::Operation::Create(create)) }
    };
    let network = |name: &str| create(Object::<kinds::Network>::new("default", name, NetworkSpec::default()).into());
    let zone = |name: &str| {
        let spec = ZoneSpec { domain: "example.org".into(), ..Default::default() };
        create(Object::<kinds::Zone>::new("default", name, spec).into())
    };
    let made = client.transact(TransactRequest { operations: vec![network("a"), network("b")] }).await.unwrap();
    let made = made.into_inner().resources;
    assert_eq!(made[0].revision, made[1].revision);

    let mut refused = Vec::new();
    for operations in [
        vec![network("c"), network("a")],
        vec![network("c"), network("c")],
        vec![zone("one"), zone("two")],
        vec![network("c"), Operation { operation: None }],
        vec![network("c"); 129],
    ] {
        refused.push(client.transact(TransactRequest { operations }).await.unwrap_err().code());
    }
    use Code::{AlreadyExists, InvalidArgument};
    assert_eq!(refused, [AlreadyExists, InvalidArgument, AlreadyExists, InvalidArgument, InvalidArgument]);
    let stale = form_types::v1::Resource { revision: 1, ..made[0].clone() };
    let stale = Operation { operation: Some(operation::Operation::Apply(ApplyRequest { resource: Some(stale) })) };
    let error = client.transact(TransactRequest { operations: vec![network("c"), stale] }).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let left: Vec<String> = cloud
        .service("form-dns", "one")
        .list::<kinds::Network>("default")
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|network| network.meta.name)
        .collect();
    assert_eq!(left, ["a", "b", "default"]);
}

#[tokio::test]
async fn a_kind_in_another_spelling_is_the_same_kind() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    admin.post("/v1/projects", json!({"name": "team", "spec": {}})).await.ok();
    let mut client = cloud.grpc("form-state", "one");
    let key = |kind: &str| Some(Key { kind: kind.to_owned(), project: String::new(), name: "team".to_owned() });
    assert_eq!(client.get(form_types::v1::GetRequest { key: key("projects") }).await.unwrap().get_ref().name, "team");
    let delete = DeleteRequest { key: key("project"), ..Default::default() };
    let operation = Operation { operation: Some(operation::Operation::Delete(delete.clone())) };
    let refused = client.transact(TransactRequest { operations: vec![operation] }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "it would be closed, and not looked into");
    client.delete(delete).await.unwrap();
    assert_eq!(admin.get("/v1/projects/team").await.status, 404);
    let refused = client.finalize(FinalizeRequest { key: None, uid: String::new() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_node_whose_lease_runs_out_is_not_ready_until_it_speaks_again() {
    let cloud = Cloud::start().await;
    let (agent, lease) = ready_node(&cloud, "one", 1024, Duration::from_secs(1)).await;
    let silent = until::<kinds::Node>(&agent, "", "one", |node| !node.status.ready).await;
    assert_eq!(silent.status.reason, "Silent");
    assert!(matches!(agent.keep_alive(&lease).await, Err(Error::NotFound(_))));
    let late = be_ready(&agent, "one", 1024, &lease).await;
    assert!(matches!(late, Err(Error::NotFound(_))), "on a lease that is over, it would be ready for ever: {late:?}");
    let lease = agent.grant_lease(LONG).await.unwrap();
    be_ready(&agent, "one", 1024, &lease).await.unwrap();
    // A restart takes nobody's readiness.
    let cloud = Cloud::start_in(cloud.stop().await, |_| {}).await;
    let agent = cloud.service("vmm-service", "one");
    assert!(agent.get::<kinds::Node>("", "one").await.unwrap().status.ready);
    agent.keep_alive(&lease).await.unwrap();
}

#[tokio::test]
async fn a_node_that_says_it_is_ready_and_has_no_lease_is_found_silent() {
    let cloud = Cloud::start().await;
    let agent = cloud.service("vmm-service", "one");
    let mut node = agent.apply(Object::<kinds::Node>::new("", "one", NodeSpec::default())).await.unwrap();
    // Twice: not only what was so when it started is seen.
    for _ in 0..2 {
        node.status = NodeStatus { ready: true, vcpu: 4, memory_mib: 64, ..Default::default() };
        agent.update_status(node).await.unwrap();
        node = until::<kinds::Node>(&agent, "", "one", |node| !node.status.ready).await;
        assert_eq!(node.status.reason, "Silent");
    }
}

#[tokio::test]
async fn the_scheduler_places_what_fits_and_says_why_the_rest_waits() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let instances = "/v1/projects/default/instances";
    admin.post(instances, an_instance("first", 512)).await.ok();
    let watcher = cloud.service("form-dns", "one");
    let reason = |reason: &'static str| move |it: &Object<kinds::Instance>| it.status.reason == reason;
    let waits = until::<kinds::Instance>(&watcher, "default", "first", reason("NoPackage")).await;
    assert_eq!(waits.status.phase(), Phase::Pending);

    ready_package(&cloud, 64).await;
    let waits = until::<kinds::Instance>(&watcher, "default", "first", reason("NoRoom")).await;
    assert!(waits.status.message.contains("of 0 nodes 0 are ready"), "{}", waits.status.message);

    let (small, _a) = ready_node(&cloud, "small", 128, LONG).await;
    let (_large, _b) = ready_node(&cloud, "large", 1024, LONG).await;
    let placed = until::<kinds::Instance>(&watcher, "default", "first", reason("Placed")).await;
    assert_eq!((placed.status.node.as_str(), placed.status.memory_mib), ("large", 512), "the one with room");

    admin.post(instances, an_instance("second", 600)).await.ok();
    until::<kinds::Instance>(&watcher, "default", "second", reason("NoRoom")).await;
    admin.post(instances, an_instance("third", 100)).await.ok();
    until::<kinds::Instance>(&watcher, "default", "third", reason("Placed")).await;
    assert!(matches!(small.finalize::<kinds::Instance>(&placed.meta).await, Err(Error::Denied(_))), "another's");

    // Room appears: the first goes.
    assert_eq!(admin.delete(&format!("{instances}/first")).await.status, 202);
    cloud.service("vmm-service", "large").finalize::<kinds::Instance>(&placed.meta).await.unwrap();
    let placed = until::<kinds::Instance>(&watcher, "default", "second", reason("Placed")).await;
    assert_eq!(placed.status.node, "large");

    // What nobody can give is not promised.
    let packs = cloud.service("form-pack-manager", "one");
    let mut package = packs.get::<kinds::Package>("default", "hello").await.unwrap();
    package.spec.gpus = 1;
    packs.apply(package).await.unwrap();
    admin.post(instances, an_instance("drawing", 64)).await.ok();
    let waits = until::<kinds::Instance>(&watcher, "default", "drawing", reason("NoGpu")).await;
    assert!(waits.status.message.contains("needs 1 GPU"), "{}", waits.status.message);

    // What happened is told, once.
    let placements = async || {
        let events = watcher.list::<kinds::Event>("default").await.unwrap().items;
        events.iter().filter(|event| event.spec.reason == "Placed" && event.spec.name == "second").count()
    };
    while placements().await == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(placements().await, 1);
    // What was never placed goes at once.
    admin.post(instances, an_instance("fourth", 9999)).await.ok();
    assert_eq!(admin.delete(&format!("{instances}/fourth")).await.status, 200);

    // A node goes when nothing is placed on it any more.
    let refused = admin.delete("/v1/nodes/large").await;
    assert_eq!((refused.status, refused.problem().1.as_str()), (409, "not-empty"), "{refused:?}");
    let second = until::<kinds::Instance>(&watcher, "default", "second", |_| true).await;
    for name in ["second", "third"] {
        admin.delete(&format!("{instances}/{name}")).await.ok();
    }
    let third = until::<kinds::Instance>(&watcher, "default", "third", |_| true).await;
    for placed in [second, third] {
        let node = cloud.service("vmm-service", &placed.status.node);
        node.finalize::<kinds::Instance>(&placed.meta).await.unwrap();
    }
    admin.delete("/v1/nodes/large").await.ok();
}

#[tokio::test]
async fn the_range_of_addresses_is_decided_once() {
    let place = Cloud::start().await.stop().await;
    let range = |text: &'static str| move |config: &mut form_state::Config| config.ipv4_range = text.parse().unwrap();
    let context = place.context(range("10.0.0.0/16"));
    let refused = form_state::run(context).await.unwrap_err().to_string();
    assert!(refused.contains("made with 100.64.0.0/10"), "{refused}");
    Cloud::start_in(place, range("100.64.0.0/10")).await;
}

#[tokio::test]
async fn a_project_takes_its_events_along() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    admin.post("/v1/projects", json!({"name": "team", "spec": {}})).await.ok();
    let reporter = cloud.service("form-dns", "one");
    let about = Object::<kinds::Instance>::new("team", "web", InstanceSpec::default()).meta;
    reporter.event::<kinds::Instance>(&about, event_spec::Type::Warning, "Failed", "of the test").await;
    assert_eq!(reporter.list::<kinds::Event>("team").await.unwrap().items.len(), 1);
    admin.delete("/v1/projects/team").await.ok();
    assert!(reporter.list::<kinds::Event>("team").await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_watch_over_grpc_replays_and_says_compacted() {
    let cloud = Cloud::start().await;
    let mut client = cloud.grpc("form-dns", "one");
    cloud.admin().post("/v1/projects/default/networks", common::network("blue")).await.ok();
    let watch = |after_revision| WatchRequest {
        kind: "Network".into(),
        project: "default".into(),
        after_revision,
        ..Default::default()
    };
    let mut changes = client.watch(watch(1)).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while seen.last() != Some(&"blue".to_owned()) {
        let response = changes.message().await.unwrap().unwrap();
        seen.extend(response.changes.into_iter().map(|change| change.resource.unwrap().name));
    }
    assert_eq!(client.watch(watch(1 << 40)).await.unwrap_err().code(), Code::InvalidArgument);
}
