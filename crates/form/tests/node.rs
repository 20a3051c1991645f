//! `form node` and `form net peer`, as they are typed, against a form-state that listens on loopback.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use data_encoding::BASE64;
use form_client::{Client, Endpoint};
use form_service::{Authority, CancellationToken, Context, Identity, config, secret};
use form_types::v1::{InstanceSpec, Mesh, NodeSpec, NodeStatus, PackageSpec, RootDisk, Sizes};
use form_types::{Object, kinds};
use serde_json::Value;
use tempfile::TempDir;
use x25519_dalek::{PublicKey, StaticSecret};

const LONG: Duration = Duration::from_secs(600);

/// A form-state with the CA, its operator, and machines that may join.
struct Cloud {
    dir: TempDir,
    authority: Authority,
    address: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.out
    }

    #[track_caller]
    fn refused(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self.err
    }
}

impl Cloud {
    async fn start() -> Self {
        form_service::run::init_process();
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let authority = Authority::open_or_create(&pki).unwrap();
        let address = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let data_dir = dir.path().join("state");
        let settings =
            form_state::Config { listen: address, data_dir, authority_dir: pki, ..form_state::Config::default() };
        let identity = authority.issue("form-state", "one", &[], &[]).unwrap();
        let context = Context::new(config::fixed(settings), identity, CancellationToken::new());
        let (health, stop) = (context.health.clone(), context.shutdown.clone().drop_guard());
        tokio::spawn(form_state::run(context));
        health.ready().await;
        let cloud = Self { dir, authority, address, _stop: stop };
        cloud.write_context();
        cloud
    }

    fn write_context(&self) {
        let token = std::fs::read_to_string(self.dir.path().join("state/admin.token")).unwrap();
        let ca = self.authority.issue("nobody", "nowhere", &[], &[]).unwrap().ca_pem;
        let text = format!(
            "state = {:?}\ntoken = {:?}\nca = {ca:?}\nzone = \"test.internal\"\n",
            self.address.to_string(),
            token.trim()
        );
        secret::write(&self.dir.path().join("context.toml"), &text).unwrap();
    }

    fn service(&self, service: &str, node: &str) -> Client {
        let identity = self.authority.issue(service, node, &[], &[]).unwrap();
        Client::new(Endpoint::from(self.address), &identity, service).unwrap()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_form"));
        command.args(words).env_clear().env("FORM_CONTEXT", self.dir.path().join("context.toml"));
        command.stdin(Stdio::null()).current_dir(self.dir.path());
        command
    }

    async fn form(&self, words: &[&str]) -> Said {
        let mut command = self.command(words);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    async fn invite(&self, more: &[&str]) -> String {
        let address = self.address.to_string();
        let words = [&["node", "invite", "--address", &address], more].concat();
        self.form(&words).await.done().trim().to_owned()
    }

    fn machine(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn join(&self, word: &str, machine: &Path, more: &[&str]) -> Said {
        self.form(&[&["node", "join", word, "--data-dir", machine.to_str().unwrap()], more].concat()).await
    }
}

fn identity(machine: &Path, service: &str) -> Identity {
    Identity::load(&machine.join("identity").join(service)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_invited_joins_once_and_may_say_it_twice() {
    let cloud = Cloud::start().await;
    let word = cloud.invite(&[]).await;
    let machine = cloud.machine("two");
    let said = cloud.join(&word, &machine, &["--name", "two"]).await;
    assert!(said.err.contains(&format!("form up --data-dir {}", machine.display())), "{said:?}");
    assert_eq!(said.done(), "this machine is node two\n");
    let joined: toml::Table = toml::from_str(&std::fs::read_to_string(machine.join("joined.toml")).unwrap()).unwrap();
    assert_eq!((joined["node"].as_str(), joined["zone"].as_str()), (Some("two"), Some("test.internal")));
    assert_eq!(
        (joined["address"].as_str(), joined["state"].as_str().unwrap()),
        (Some("127.0.0.1"), &*cloud.address.to_string())
    );

    for service in ["vmm-service", "form-dns", "formnet", "form-pack-manager"] {
        let found = identity(&machine, service);
        let name = found.name().unwrap();
        assert_eq!((name.service.as_str(), name.node.as_str()), (service, "two"));
        let client = Client::new(Endpoint::from(cloud.address), &found, service).unwrap();
        client.get::<kinds::Node>("", "two").await.unwrap();
    }
    let before = identity(&machine, "vmm-service").cert_pem;
    assert_eq!(cloud.join(&word, &machine, &["--name", "two"]).await.done(), "this machine is node two\n");
    assert_eq!(identity(&machine, "vmm-service").cert_pem, before);
    let nodes = cloud.form(&["node", "list"]).await.done();
    assert!(nodes.lines().nth(1).unwrap().starts_with("two "), "{nodes}");
    let tokens = cloud.form(&["get", "jointokens"]).await.done();
    assert!(tokens.contains("USED BY") && tokens.contains("two"), "{tokens}");
    // Another machine with the same word is told so.
    let said = cloud.join(&word, &cloud.machine("thief"), &["--name", "two"]).await.refused(1);
    assert!(said.contains("was used already, by node two"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_is_killed_anywhere_goes_on_with_the_same_word() {
    let cloud = Cloud::start().await;
    for (round, seen) in [
        "identity/vmm-service/key.pem",
        "identity/formnet/key.pem",
        "identity/form-dns/cert.pem",
        "identity/formnet/ca.pem",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("n{round}");
        let (word, machine) = (cloud.invite(&["--name", &name]).await, cloud.machine(&name));
        let mut child =
            cloud.command(&["node", "join", &word, "--data-dir", machine.to_str().unwrap()]).spawn().unwrap();
        while !machine.join(seen).exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !machine.join("joined.toml").exists() {
            // What is half is no cloud of its own either.
            let said = cloud.form(&["up", "--data-dir", machine.to_str().unwrap()]).await.refused(2);
            assert!(said.contains("a join was begun here"), "{said}");
            assert!(!machine.join("pki").exists());
        }
        assert_eq!(cloud.join(&word, &machine, &[]).await.done(), format!("this machine is node {name}\n"));
        let client = Client::new(Endpoint::from(cloud.address), &identity(&machine, "formnet"), "formnet").unwrap();
        client.get::<kinds::Node>("", &name).await.unwrap();
    }
    assert_eq!(cloud.service("form-dns", "one").list::<kinds::Node>("").await.unwrap().items.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_told_before_anything_is_changed() {
    let cloud = Cloud::start().await;
    let said = cloud.form(&["node", "invite"]).await.refused(2);
    assert!(said.contains("--address"), "{said}");
    let machine = cloud.machine("two");
    assert!(cloud.join("hello", &machine, &[]).await.refused(2).contains("no invitation"));
    let word = cloud.invite(&["--expires", "1h"]).await;
    // A cloud of its own.
    let own = cloud.machine("own");
    Authority::open_or_create(&own.join("pki")).unwrap();
    assert!(cloud.join(&word, &own, &[]).await.refused(1).contains("a cloud was made in"));
    assert!(!own.join("identity").exists());
    // Another form-state than the one that was meant.
    let other = Cloud::start().await;
    let wrong = other.form(&["node", "invite", "--address", &cloud.address.to_string()]).await.done();
    assert!(cloud.join(wrong.trim(), &machine, &[]).await.refused(1).contains("cannot be reached"));
    assert!(!machine.join("joined.toml").exists());
    // A node is of one cluster.
    cloud.join(&word, &machine, &["--name", "two"]).await.done();
    let word = other.invite(&[]).await;
    assert!(cloud.join(&word, &machine, &[]).await.refused(1).contains("of another cluster"));
    // A name that is a node's.
    let word = cloud.invite(&[]).await;
    let said = cloud.join(&word, &cloud.machine("three"), &["--name", "two"]).await.refused(1);
    assert!(said.contains("belongs to Node two") && said.contains("another --name"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_goes_when_it_is_empty_and_comes_back_when_it_is_invited() {
    let cloud = Cloud::start().await;
    let machine = cloud.machine("two");
    cloud.join(&cloud.invite(&["--name", "two"]).await, &machine, &[]).await.done();
    let old = Client::new(Endpoint::from(cloud.address), &identity(&machine, "vmm-service"), "vmm-service").unwrap();

    let packs = cloud.service("form-pack-manager", "one");
    let digest = format!("sha256:{}", "0".repeat(64));
    let spec = PackageSpec {
        digest: digest.clone(),
        root_disk: Some(RootDisk { digest: digest.clone(), image_digest: digest, size: 1 }),
        sizes: Some(Sizes { vcpu: 1, memory_mib: 64, disk_mib: 16 }),
        entrypoint: vec!["/hello".to_owned()],
        ..Default::default()
    };
    let mut package = packs.apply(Object::<kinds::Package>::new("default", "hello", spec)).await.unwrap();
    package.status.ready = true;
    packs.update_status(package).await.unwrap();
    let lease = old.grant_lease(LONG).await.unwrap();
    let mut node = old.get::<kinds::Node>("", "two").await.unwrap();
    node.status = NodeStatus { ready: true, vcpu: 4, memory_mib: 1024, ..Default::default() };
    old.node_ready(node, &lease).await.unwrap();

    assert!(cloud.form(&["node", "cordon", "two"]).await.done().contains("no new instances"));
    assert!(old.get::<kinds::Node>("", "two").await.unwrap().spec.cordoned);
    cloud.form(&["node", "uncordon", "two"]).await.done();
    let spec = InstanceSpec { package: "hello".into(), ..Default::default() };
    let web = Object::<kinds::Instance>::new("default", "web", spec);
    let text = form_types::to_json(&web.into()).to_string();
    std::fs::write(cloud.machine("web.json"), text).unwrap();
    cloud.form(&["apply", "-f", "web.json"]).await.done();
    let web = loop {
        let found = old.get::<kinds::Instance>("default", "web").await.unwrap();
        if found.status.node == "two" {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let said = cloud.form(&["node", "remove", "two"]).await.refused(4);
    assert!(said.contains("default/web") && said.contains("form node cordon two"), "{said}");
    cloud.form(&["instance", "delete", "web", "--no-wait"]).await.done();
    old.finalize::<kinds::Instance>(&web.meta).await.unwrap();
    assert_eq!(cloud.form(&["node", "remove", "two"]).await.done(), "node two is removed\n");
    assert_eq!(cloud.form(&["node", "remove", "two"]).await.code, Some(3));
    while old.get::<kinds::Node>("", "two").await.is_ok() {}

    cloud.join(&cloud.invite(&["--name", "two"]).await, &machine, &[]).await.done();
    let new = Client::new(Endpoint::from(cloud.address), &identity(&machine, "vmm-service"), "vmm-service").unwrap();
    new.get::<kinds::Node>("", "two").await.unwrap();
    assert!(matches!(old.get::<kinds::Node>("", "two").await, Err(form_client::Error::Denied(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_laptop_gets_a_file_with_a_key_that_nobody_else_has() {
    let cloud = Cloud::start().await;
    let net = cloud.service("formnet", "one");
    let mut node = net.apply(Object::<kinds::Node>::new("", "one", NodeSpec::default())).await.unwrap();
    let (ipv4, ipv6) = (node.spec.ipv4_prefix.clone(), node.spec.ipv6_prefix.clone());
    let (public_key, endpoints) = (BASE64.encode(&[7; 32]), vec!["192.0.2.1:51820".to_owned()]);
    node.status.mesh = Some(Mesh { public_key: public_key.clone(), endpoints, mtu: 1400, ..Default::default() });
    net.update_status(node).await.unwrap();

    let said = cloud.form(&["net", "peer", "add", "laptop", "--expires", "30d", "--description", "of a test"]).await;
    assert_eq!(said.err, "", "no picture where there is no terminal");
    let text = said.done();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(&format!("{key} = "))).unwrap().to_owned();
    let private: [u8; 32] = BASE64.decode(value("PrivateKey").as_bytes()).unwrap().try_into().unwrap();
    let public = BASE64.encode(PublicKey::from(&StaticSecret::from(private)).as_bytes());
    let peer = net.get::<kinds::Peer>("default", "laptop").await.unwrap();
    assert_eq!(peer.spec.public_key, public);
    assert!(peer.spec.expires_at.is_some());
    let own = format!("{}/32, {}/128", peer.status.addresses[0], peer.status.addresses[1]);
    assert_eq!((value("Address"), value("MTU")), (own, "1400".to_owned()));
    assert_eq!((value("PublicKey"), value("Endpoint")), (public_key, "192.0.2.1:51820".to_owned()));
    assert_eq!(value("AllowedIPs"), format!("{ipv4}, {ipv6}"));
    // It is in no file and no answer of the cloud.
    let listed = cloud.form(&["get", "peers", "-o", "json"]).await.done();
    assert!(!listed.contains(&value("PrivateKey")));

    assert_eq!(cloud.form(&["net", "peer", "add", "laptop"]).await.code, Some(4), "it is there already");
    let own = BASE64.encode(&[9; 32]);
    let text = cloud.form(&["net", "peer", "add", "phone", "--public-key", &own]).await.done();
    assert!(text.contains("# PrivateKey = ") && !text.contains("\nPrivateKey"), "{text}");
    assert_eq!(cloud.form(&["net", "peer", "add", "x", "--public-key", "short"]).await.code, Some(2));
    let table = cloud.form(&["net", "peer", "list"]).await.done();
    assert!(table.contains("laptop") && table.contains("phone") && table.contains("of a test"), "{table}");
    cloud.form(&["net", "peer", "revoke", "laptop"]).await.done();
    let left: Value = serde_json::from_str(&cloud.form(&["get", "peers", "-o", "json"]).await.done()).unwrap();
    assert_eq!(left.as_array().unwrap().len(), 1);
}
