//! A form-state to talk to: in this process, or as a process of its own; and those who talk to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, dead_code, unreachable_pub)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use form_client::{Client, Endpoint, NodeLease};
use form_service::{Authority, CancellationToken, Context, Identity, config};
use form_state::{Config, RunError};
use form_types::v1::state_client::StateClient;
use form_types::v1::{NodeSpec, NodeStatus, PackageSpec, RootDisk, Sizes};
use form_types::{Object, kinds};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

/// A port that nobody has now.
pub fn free_port() -> SocketAddr {
    let probe = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    probe.local_addr().unwrap()
}

/// Where a form-state is, and who says so.
pub struct Place {
    pub dir: TempDir,
    pub authority: Authority,
    pub address: SocketAddr,
}

impl Place {
    pub fn new(dir: TempDir) -> Self {
        form_service::run::init_process();
        let authority = Authority::open_or_create(&dir.path().join("ca")).unwrap();
        Self { dir, authority, address: free_port() }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Where the CA is.
    pub fn authority_dir(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    /// What a form-state is run with here.
    pub fn context(&self, adjust: impl FnOnce(&mut Config)) -> Context<Config> {
        let mut config = Config { listen: self.address, data_dir: self.data_dir(), ..Config::default() };
        adjust(&mut config);
        Context::new(config::fixed(config), self.identity("form-state", "one"), CancellationToken::new())
    }

    pub fn admin(&self) -> Http {
        let token = std::fs::read_to_string(self.data_dir().join("admin.token")).unwrap();
        self.person(token.trim())
    }

    /// Whoever shows this token.
    pub fn person(&self, token: &str) -> Http {
        Http { token: Some(token.to_owned()), ..self.nobody() }
    }

    pub fn nobody(&self) -> Http {
        let ca = self.authority.issue("nobody", "nowhere", &[], &[]).unwrap().ca_pem;
        let ca = reqwest::Certificate::from_pem(ca.as_bytes()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([ca]).resolve("form-state", self.address);
        Http {
            client: client.build().unwrap(),
            base: format!("https://form-state:{}", self.address.port()),
            token: None,
        }
    }

    pub fn identity(&self, service: &str, node: &str) -> Identity {
        self.authority.issue(service, node, &[], &[]).unwrap()
    }

    pub fn service(&self, service: &str, node: &str) -> Client {
        Client::new(Endpoint::from(self.address), &self.identity(service, node), service).unwrap()
    }

    pub fn grpc(&self, service: &str, node: &str) -> StateClient<Channel> {
        StateClient::new(channel(self.address, &self.identity(service, node)))
    }
}

pub fn channel(address: SocketAddr, identity: &Identity) -> Channel {
    let tls = ClientTlsConfig::new()
        .domain_name("form-state")
        .ca_certificate(Certificate::from_pem(&identity.ca_pem))
        .identity(tonic::transport::Identity::from_pem(&identity.cert_pem, identity.key_pem()));
    Channel::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap().connect_lazy()
}

/// form-state in this process.
pub struct Cloud {
    pub place: Place,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

impl std::ops::Deref for Cloud {
    type Target = Place;
    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Cloud {
    pub async fn start() -> Self {
        Self::start_in(Place::new(tempfile::tempdir().unwrap()), |_| {}).await
    }

    /// One that lets machines in.
    pub async fn start_signing() -> Self {
        let place = Place::new(tempfile::tempdir().unwrap());
        let dir = place.authority_dir();
        Self::start_in(place, |config| config.authority_dir = dir).await
    }

    pub async fn start_in(place: Place, adjust: impl FnOnce(&mut Config)) -> Self {
        let context = place.context(adjust);
        let (health, shutdown) = (context.health.clone(), context.shutdown.clone());
        let mut task = tokio::spawn(form_state::run(context));
        tokio::select! {
            () = health.ready() => {}
            ended = &mut task => panic!("form-state did not start: {ended:?}"),
        }
        Self { place, shutdown, task }
    }

    /// An orderly stop.
    pub async fn stop(self) -> Place {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        self.place
    }
}

/// form-state as a process of its own.
pub struct Process {
    pub place: Place,
    child: Child,
}

impl std::ops::Deref for Process {
    type Target = Place;
    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Process {
    pub async fn start(config: &str) -> Self {
        Self::start_in(Place::new(tempfile::tempdir().unwrap()), config).await
    }

    /// As [`Process::start`], with the data under `root`.
    pub async fn start_on(root: &Path, config: &str) -> Self {
        Self::start_in(Place::new(tempfile::tempdir_in(root).unwrap()), config).await
    }

    /// `config` is added to what a test needs.
    pub async fn start_in(place: Place, config: &str) -> Self {
        place.identity("form-state", "one").save(&place.dir.path().join("tls")).unwrap();
        let text = format!(
            "{config}\nlisten = {:?}\ndata_dir = {:?}\nidentity_dir = {:?}\n",
            place.address.to_string(),
            place.data_dir(),
            place.dir.path().join("tls"),
        );
        std::fs::write(place.dir.path().join("config.toml"), text).unwrap();
        let child = spawn(&place);
        let process = Self { place, child };
        process.is_ready().await;
        process
    }

    pub async fn is_ready(&self) {
        let nobody = self.nobody();
        while !nobody.try_get("/readyz").await.is_ok_and(|answer| answer.status == 200) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// kill -9, and a new life with the same files.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
        self.child = spawn(&self.place);
    }

    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.child.id().unwrap() as i32), signal).unwrap();
    }

    /// How it ended.
    pub async fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().await.unwrap()
    }

    /// Resident memory, bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    pub fn config_file(&self) -> PathBuf {
        self.place.dir.path().join("config.toml")
    }

    /// All that it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.place.dir.path().join("log")).unwrap()
    }

    /// Waits until `text` stands in the log `times` times.
    pub async fn logged(&self, text: &str, times: usize) {
        while self.log().matches(text).count() < times {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn spawn(place: &Place) -> Child {
    let log = std::fs::File::options().append(true).create(true).open(place.dir.path().join("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_form-state"))
        .arg("--config")
        .arg("config.toml")
        .current_dir(place.dir.path())
        .stderr(log)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// REST, as one person.
#[derive(Clone)]
pub struct Http {
    pub client: reqwest::Client,
    base: String,
    token: Option<String>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn etag(&self) -> String {
        self.headers["etag"].to_str().unwrap().to_owned()
    }

    pub fn revision(&self) -> u64 {
        self.body["revision"].as_u64().unwrap()
    }

    /// The stable name of a problem document, and its text.
    pub fn problem(&self) -> (u16, String, String) {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], self.status);
        let text = |name: &str| self.body[name].as_str().unwrap_or_default().to_owned();
        (self.status, text("type").replace("/problems/", ""), text("detail"))
    }

    /// The paths of the bad fields.
    pub fn bad_fields(&self) -> Vec<String> {
        assert_eq!(self.status, 422, "{self:?}");
        let errors = self.body["errors"].as_array().unwrap().iter();
        errors.map(|error| error["path"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status < 300, "{self:?}");
        self
    }
}

impl Http {
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
        let answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let bytes = answer.bytes().await?;
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Answer { status, headers, body })
    }

    pub async fn try_get(&self, path: &str) -> reqwest::Result<Answer> {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.try_get(path).await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::POST, path).json(&body)).await.unwrap()
    }

    pub fn put(&self, path: &str, body: Value) -> impl Future<Output = Answer> + use<> {
        let (me, request) = (self.clone(), self.request(Method::PUT, path).json(&body));
        async move { me.send(request).await.unwrap() }
    }

    pub async fn put_if(&self, path: &str, (header, value): (&str, &str), body: Value) -> Answer {
        self.send(self.request(Method::PUT, path).header(header, value).json(&body)).await.unwrap()
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await.unwrap()
    }

    /// A new token's secret.
    pub async fn token(&self, name: &str, spec: Value) -> String {
        let made = self.post("/v1/tokens", json!({"name": name, "spec": spec})).await.ok();
        made.body["status"]["secret"].as_str().unwrap().to_owned()
    }

    /// The events of a watch.
    pub async fn watch(&self, path: &str, last: Option<u64>) -> Events {
        let mut request = self.request(Method::GET, path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        Events { answer: request.send().await.unwrap(), text: String::new() }
    }
}

/// Server-sent events, one after another.
pub struct Events {
    pub answer: reqwest::Response,
    text: String,
}

impl Events {
    /// The next event's name, data and id; `None`: the stream is over.
    pub async fn next(&mut self) -> Option<(String, Value, Option<u64>)> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let found = field("event:").map(|name| {
                    let data = serde_json::from_str(field("data:").unwrap_or("null")).unwrap();
                    (name.to_owned(), data, field("id:").map(|id| id.parse().unwrap()))
                });
                self.text = rest.to_owned();
                if found.is_some() {
                    return found;
                }
            }
            self.text.push_str(std::str::from_utf8(&self.answer.chunk().await.ok()??).unwrap());
        }
    }

    /// The next that is no progress.
    pub async fn change(&mut self) -> (String, Value) {
        loop {
            let (name, data, _) = self.next().await.unwrap();
            if name != "progress" {
                return (name, data);
            }
        }
    }

    /// The next place in the log.
    pub async fn progress(&mut self) -> u64 {
        loop {
            let (name, _, id) = self.next().await.unwrap();
            if name == "progress" {
                return id.unwrap();
            }
        }
    }
}

pub fn network(name: &str) -> Value {
    json!({"name": name, "spec": {"description": "of a test"}})
}

pub fn instance(name: &str) -> Value {
    json!({"name": name, "spec": {"package": "hello"}})
}

/// A digest of nothing in particular.
pub fn digest() -> String {
    format!("sha256:{}", "0".repeat(64))
}

/// A node that is ready, kept so by the lease.
pub async fn ready_node(place: &Place, name: &str, memory_mib: u32, ttl: Duration) -> (Client, NodeLease) {
    let agent = place.service("vmm-service", name);
    agent.apply(Object::<kinds::Node>::new("", name, NodeSpec::default())).await.unwrap();
    let lease = agent.grant_lease(ttl).await.unwrap();
    be_ready(&agent, name, memory_mib, &lease).await.unwrap();
    (agent, lease)
}

pub async fn be_ready(
    agent: &Client,
    name: &str,
    memory_mib: u32,
    lease: &NodeLease,
) -> Result<(), form_client::Error> {
    let mut node = agent.get::<kinds::Node>("", name).await?;
    node.status = NodeStatus { ready: true, vcpu: 4, memory_mib, ..Default::default() };
    agent.node_ready(node, lease).await
}

/// A package named hello that takes one vCPU and `memory_mib`.
pub async fn ready_package(place: &Place, memory_mib: u32) {
    let packs = place.service("form-pack-manager", "one");
    let spec = PackageSpec {
        digest: digest(),
        root_disk: Some(RootDisk { digest: digest(), image_digest: digest(), size: 1 }),
        sizes: Some(Sizes { vcpu: 1, memory_mib, disk_mib: 16 }),
        entrypoint: vec!["/hello".to_owned()],
        ..Default::default()
    };
    let mut package = packs.apply(Object::<kinds::Package>::new("default", "hello", spec)).await.unwrap();
    package.status.ready = true;
    packs.update_status(package).await.unwrap();
}
