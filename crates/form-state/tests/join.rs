//! Machines that become nodes, and nodes that were removed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::time::{Duration, SystemTime};

use common::{Cloud, Place, Process};
use form_client::{Client, Endpoint, Error};
use form_service::identity::SigningRequest;
use form_service::{Authority, Identity, Peer};
use form_types::v1::{self, JoinRequest, NodeSpec};
use form_types::{Object, kinds, timestamp};
use futures::StreamExt as _;
use futures::future::join_all;
use serde_json::{Value, json};

const TOKENS: &str = "/v1/jointokens";

/// A machine with its keys.
struct Machine(Vec<(&'static str, SigningRequest)>);

impl Machine {
    fn new() -> Self {
        let services = ["vmm-service", "form-dns", "formnet", "form-pack-manager"];
        Self(services.map(|service| (service, SigningRequest::new().unwrap())).into())
    }

    fn asks(&self, token: &str, node: &str) -> JoinRequest {
        let requests = self.0.iter().map(|(service, request)| v1::SigningRequest {
            service: (*service).to_owned(),
            csr: request.csr().to_vec(),
        });
        JoinRequest { token: token.to_owned(), node: node.to_owned(), requests: requests.collect() }
    }

    async fn joins(&self, place: &Place, token: &str, node: &str) -> Result<Vec<Identity>, Error> {
        let ca = place.identity("nobody", "nowhere").ca_pem;
        let joined = form_client::join(Endpoint::from(place.address), &ca, self.asks(token, node)).await?;
        let pairs = self.0.iter().zip(&joined.certificates);
        Ok(pairs.map(|((_, request), cert)| request.identity(&ca, cert).unwrap()).collect())
    }
}

async fn invite(place: &Place, name: &str, spec: Value) -> String {
    let made = place.admin().post(TOKENS, json!({"name": name, "spec": spec})).await.ok();
    made.body["status"]["secret"].as_str().unwrap().to_owned()
}

fn client(place: &Place, identity: &Identity, service: &str) -> Client {
    Client::new(Endpoint::from(place.address), identity, service).unwrap()
}

fn denied<T>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Denied(text) | Error::Unauthenticated(text) | Error::AlreadyExists(text) | Error::Invalid(text)) => {
            text
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was let in"),
    }
}

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_node_whose_services_are_let_in() {
    let cloud = Cloud::start_signing().await;
    let token = invite(&cloud, "for-two", json!({})).await;
    let machine = Machine::new();
    let identities = machine.joins(&cloud, &token, "two").await.unwrap();
    for (identity, (service, _)) in identities.iter().zip(&machine.0) {
        let Peer { service: named, node, .. } = identity.name().unwrap();
        assert_eq!((named.as_str(), node.as_str()), (*service, "two"));
    }
    // The node is there, and its vmm-service is who registers it.
    let vmm = client(&cloud, &identities[0], "vmm-service");
    let mut node = vmm.get::<kinds::Node>("", "two").await.unwrap();
    assert!(!node.status.ready && !node.spec.ipv4_prefix.is_empty());
    node.spec.vmm_url = "https://192.0.2.2:3002".into();
    vmm.apply(node).await.unwrap();
    let other = Object::<kinds::Node>::new("", "one", NodeSpec::default());
    denied(vmm.apply(other).await);

    let used = cloud.admin().get(&format!("{TOKENS}/for-two")).await.ok().body["status"].clone();
    assert_eq!(used["used_by"], "two");
    assert!(used["used_at"].is_string() && used.get("secret").is_none(), "{used}");
}

#[tokio::test]
async fn the_same_machine_gets_its_certificates_again_and_no_other_does() {
    let cloud = Cloud::start_signing().await;
    let token = invite(&cloud, "t", json!({})).await;
    let (machine, other) = (Machine::new(), Machine::new());
    machine.joins(&cloud, &token, "two").await.unwrap();
    let before = cloud.admin().get("/v1/nodes/two").await.body;
    // Some of the keys in another order are still the same machine's; other keys are not.
    let mut turned = Machine::new();
    turned.0 = machine.0.into_iter().rev().collect();
    turned.joins(&cloud, &token, "two").await.unwrap();
    assert_eq!(cloud.admin().get("/v1/nodes/two").await.body, before, "nothing was made twice");
    let said = denied(other.joins(&cloud, &token, "two").await);
    assert!(said.contains("used already, by node two"), "{said}");
    let said = denied(turned.joins(&cloud, &token, "three").await);
    assert!(said.contains("used already, by node two"), "{said}");
}

#[tokio::test]
async fn each_reason_not_to_let_a_machine_in_has_its_own_words() {
    let cloud = Cloud::start_signing().await;
    let machine = Machine::new();
    let bound = invite(&cloud, "bound", json!({"node": "four"})).await;
    let soon = timestamp(SystemTime::now() + Duration::from_millis(1)).to_string();
    let over = invite(&cloud, "over", json!({"expires_at": soon})).await;
    let free = invite(&cloud, "free", json!({})).await;
    let said = |result| denied(result);
    for unknown in
        ["", "formjoin_free", "formjoin_free_x", "form_admin_x", "formjoin_none_x", &free.replace("free", "bound")]
    {
        assert!(said(machine.joins(&cloud, unknown, "two").await).contains("not known"), "{unknown}");
    }
    assert!(said(machine.joins(&cloud, &bound, "five").await).contains("for a node named four"));
    while !said(machine.joins(&cloud, &over, "five").await).contains("has expired") {}
    assert!(said(machine.joins(&cloud, &free, "").await).contains("node: missing"));
    assert!(said(machine.joins(&cloud, &free, "Not/A.Name").await).contains("DNS label"));

    // What the requests are, and that they are some.
    let ca = cloud.identity("nobody", "nowhere").ca_pem;
    let ask = |change: &dyn Fn(&mut JoinRequest)| {
        let mut request = machine.asks(&free, "six");
        change(&mut request);
        let (endpoint, ca) = (Endpoint::from(cloud.address), ca.clone());
        async move { denied(form_client::join(endpoint, &ca, request).await) }
    };
    assert!(ask(&|request| request.requests.clear()).await.contains("requests: there have to be 1 to 4"));
    assert!(ask(&|request| request.requests[1].service = "form-state".into()).await.contains("requests[1].service"));
    assert!(ask(&|request| request.requests[1].service = "vmm-service".into()).await.contains("twice"));
    assert!(ask(&|request| request.requests[2].csr.truncate(20)).await.contains("requests[2].csr"));
    assert!(ask(&|request| request.requests[2].csr = vec![0; 5000]).await.contains("larger than 4096"));

    // All that was refused changed nothing.
    assert_eq!(cloud.admin().get("/v1/nodes").await.body["items"], json!([]));
    machine.joins(&cloud, &free, "six").await.unwrap();
    machine.joins(&cloud, &bound, "").await.unwrap();
    cloud.admin().get("/v1/nodes/four").await.ok();
}

#[tokio::test]
async fn two_machines_are_never_one_node() {
    let cloud = Cloud::start_signing().await;
    let tokens = join_all((0..8).map(|n| {
        let cloud = &cloud;
        async move { invite(cloud, &format!("t{n}"), json!({})).await }
    }))
    .await;
    let joins = tokens.iter().map(|token| {
        let cloud = &cloud;
        async move { Machine::new().joins(cloud, token, "two").await }
    });
    let results = join_all(joins).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for refused in results.into_iter().filter(Result::is_err) {
        assert!(denied(refused).contains("the name two belongs to Node two already"));
    }
    // A name that a node has that was never invited.
    cloud
        .service("vmm-service", "one")
        .apply(Object::<kinds::Node>::new("", "one", NodeSpec::default()))
        .await
        .unwrap();
    let token = invite(&cloud, "late", json!({})).await;
    assert!(denied(Machine::new().joins(&cloud, &token, "one").await).contains("belongs to Node one"));
}

#[tokio::test]
async fn a_form_state_without_the_ca_lets_nobody_in_and_says_so() {
    let cloud = Cloud::start().await;
    let token = invite(&cloud, "t", json!({})).await;
    let Err(Error::Conflict(said)) = Machine::new().joins(&cloud, &token, "two").await else { panic!("it signed") };
    assert!(said.contains("authority_dir"), "{said}");
}

#[tokio::test]
async fn one_may_join_over_rest_too() {
    let cloud = Cloud::start_signing().await;
    let token = invite(&cloud, "t", json!({})).await;
    let request = SigningRequest::new().unwrap();
    let asks = |token: &str| {
        let csr = data_encoding::BASE64.encode(request.csr());
        json!({"token": token, "node": "two", "requests": [{"service": "form-dns", "csr": csr}]})
    };
    let nobody = cloud.nobody();
    let refused = nobody.post("/v1/join", asks("formjoin_t_x")).await.problem();
    assert_eq!((refused.0, refused.1.as_str()), (401, "join-token-unknown"));
    let joined = nobody.post("/v1/join", asks(&token)).await.ok().body;
    assert_eq!(joined["node"], "two");
    let ca = cloud.identity("nobody", "nowhere").ca_pem;
    let identity = request.identity(&ca, joined["certificates"][0].as_str().unwrap()).unwrap();
    client(&cloud, &identity, "form-dns").list::<kinds::Instance>("").await.unwrap();
    assert_eq!(nobody.post("/v1/join", json!({"token": token, "what": 1})).await.problem().0, 400);
    let large = json!({"token": token, "node": "x".repeat(40_000), "requests": []});
    assert_eq!(nobody.post("/v1/join", large).await.problem().1, "too-large");
}

#[tokio::test]
async fn a_join_tokens_secret_is_shown_once_and_it_ends_within_the_hour() {
    let cloud = Cloud::start_signing().await;
    let admin = cloud.admin();
    let secret = invite(&cloud, "t", json!({"description": "the new one"})).await;
    let read = admin.get(&format!("{TOKENS}/t")).await.ok();
    assert!(!read.body.to_string().contains(&secret));
    let ends: form_types::Timestamp = read.body["spec"]["expires_at"].as_str().unwrap().parse().unwrap();
    let left = SystemTime::try_from(ends).unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left <= Duration::from_secs(3600), "{left:?}");
    // Who changes it without saying so does not prolong it.
    let changed = admin.put(&format!("{TOKENS}/t"), json!({"spec": {"description": "another"}})).await.ok();
    assert_eq!(changed.body["spec"]["expires_at"], read.body["spec"]["expires_at"]);
    // It is not for everybody.
    let editor = cloud.person(&admin.token("editor", json!({"role": "editor"})).await);
    assert_eq!(editor.get(TOKENS).await.problem().0, 403);
    assert_eq!(editor.post(TOKENS, json!({"name": "mine"})).await.problem().0, 403);
    assert!(matches!(cloud.service("formnet", "one").list::<kinds::JoinToken>("").await, Err(Error::Denied(_))));
    // One that was revoked opens nothing.
    admin.delete(&format!("{TOKENS}/t")).await.ok();
    assert!(denied(Machine::new().joins(&cloud, &secret, "two").await).contains("not known"));
}

#[tokio::test]
async fn a_machine_asks_again_after_form_state_was_killed_and_is_the_same_node() {
    let place = Place::new(tempfile::tempdir().unwrap());
    let config = format!("authority_dir = {:?}", place.authority_dir());
    let mut state = Process::start_in(place, &config).await;
    let token = invite(&state, "t", json!({})).await;
    let machine = Machine::new();
    machine.joins(&state, &token, "two").await.unwrap();
    let before = state.admin().get("/v1/nodes/two").await.body;
    state.kill().await;
    state.is_ready().await;
    machine.joins(&state, &token, "two").await.unwrap();
    assert_eq!(state.admin().get("/v1/nodes/two").await.body, before);
}

#[tokio::test]
async fn a_removed_node_is_cut_and_may_join_anew() {
    let cloud = Cloud::start_signing().await;
    let token = invite(&cloud, "t", json!({})).await;
    let machine = Machine::new();
    let old = machine.joins(&cloud, &token, "two").await.unwrap();
    let (vmm, dns) = (client(&cloud, &old[0], "vmm-service"), client(&cloud, &old[1], "form-dns"));
    let revision = dns.list::<kinds::Instance>("").await.unwrap().revision;
    let mut watch = std::pin::pin!(dns.watch::<kinds::Instance>("", revision).await.unwrap());
    watch.next().await.unwrap().unwrap();

    cloud.admin().delete("/v1/nodes/two").await.ok();
    // The watch that was open ends, and says why.
    let said = loop {
        match watch.next().await.expect("a last word") {
            Ok(_) => {}
            error => break denied(error),
        }
    };
    assert!(said.contains("node two was removed"), "{said}");
    assert!(denied(vmm.get::<kinds::Node>("", "two").await).contains("was removed"));
    assert!(
        denied(vmm.apply(Object::<kinds::Node>::new("", "two", NodeSpec::default())).await).contains("was removed")
    );
    // Its token is not good for a way back.
    assert!(denied(machine.joins(&cloud, &token, "two").await).contains("was removed since"));
    // Other nodes' services go on.
    cloud.service("form-dns", "one").list::<kinds::Instance>("").await.unwrap();

    let token = invite(&cloud, "again", json!({})).await;
    let new = Machine::new().joins(&cloud, &token, "two").await.unwrap();
    client(&cloud, &new[0], "vmm-service").get::<kinds::Node>("", "two").await.unwrap();
    assert!(denied(dns.list::<kinds::Instance>("").await).contains("was removed"), "what it had before");
}

#[tokio::test]
async fn a_removed_node_stays_cut_after_a_restart() {
    let cloud = Cloud::start().await;
    let agent = cloud.service("vmm-service", "two");
    agent.apply(Object::<kinds::Node>::new("", "two", NodeSpec::default())).await.unwrap();
    cloud.admin().delete("/v1/nodes/two").await.ok();
    let _cloud = Cloud::start_in(cloud.stop().await, |_| {}).await;
    assert!(denied(agent.get::<kinds::Node>("", "two").await).contains("was removed"));
}

#[tokio::test]
async fn the_node_of_form_state_itself_is_not_cut_from_it() {
    let cloud = Cloud::start().await;
    let agent = cloud.service("vmm-service", "one");
    let node = Object::<kinds::Node>::new("", "one", NodeSpec::default());
    agent.apply(node.clone()).await.unwrap();
    cloud.admin().delete("/v1/nodes/one").await.ok();
    agent.apply(node).await.unwrap();
}

#[tokio::test]
async fn the_ranges_that_stand_beside_the_ca_are_the_clusters() {
    let place = Place::new(tempfile::tempdir().unwrap());
    let dir = place.authority_dir();
    Authority::open_or_create(&dir).unwrap();
    let written = form_state::Cluster::new("10.7.0.0/16".parse().unwrap());
    written.write(&dir).unwrap();
    let signing = |config: &mut form_state::Config| config.authority_dir = dir.clone();
    let cloud = Cloud::start_in(place, signing).await;
    let spec = cloud.admin().post("/v1/nodes", json!({"name": "n"})).await.ok().body["spec"].clone();
    assert_eq!(spec["cluster_ipv4"], "10.7.0.0/16");
    assert_eq!(spec["cluster_ipv6"], written.ipv6.to_string());

    // Decided once: another file does not change it.
    let place = cloud.stop().await;
    form_state::Cluster::new("10.7.0.0/16".parse().unwrap()).write(&dir).unwrap();
    let refused = form_state::run(place.context(signing)).await.unwrap_err().to_string();
    assert!(refused.contains("cluster.toml, ipv6") && refused.contains(&written.ipv6.to_string()), "{refused}");
    written.write(&dir).unwrap();
    Cloud::start_in(place, signing).await;
}
