//! A form-state in this process, a form-pack-manager as a process of its own, and those who talk to them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    dead_code,
    unreachable_pub
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use form_client::Client;
use form_rootfs::Digest;
use form_service::{Authority, CancellationToken, Context, Identity, config};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Child;

pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub struct Cloud {
    pub dir: TempDir,
    pub authority: Authority,
    pub state: SocketAddr,
    pub pack: SocketAddr,
    pub admin: String,
    pub http: reqwest::Client,
    child: Child,
    shutdown: CancellationToken,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

impl Cloud {
    /// `config`: what is added to form-pack-manager's.
    pub async fn start(config: &str) -> Self {
        form_service::run::init_process();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(&dir.path().join("ca")).unwrap();
        let (state, pack, shutdown) = (free_port(), free_port(), CancellationToken::new());
        let (data_dir, identity) = (dir.path().join("state"), authority.issue("form-state", "one", &[], &[]).unwrap());
        let wanted = form_state::Config { listen: state, data_dir: data_dir.clone(), ..Default::default() };
        let context = Context::new(config::fixed(wanted), identity, shutdown.clone());
        let health = context.health.clone();
        tokio::spawn(form_state::run(context));
        health.ready().await;

        let local = [Ipv4Addr::LOCALHOST.into()];
        let identity = authority.issue("form-pack-manager", "one", &["localhost".to_owned()], &local).unwrap();
        identity.save(&dir.path().join("tls")).unwrap();
        let text = format!(
            "{config}\nlisten = \"{pack}\"\npublic_url = \"https://{pack}\"\nstate = \"{state}\"\ndata_dir = {:?}\nidentity_dir = {:?}\n",
            dir.path().join("packages"),
            dir.path().join("tls"),
        );
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        std::fs::create_dir(dir.path().join("certs")).unwrap();
        std::fs::write(dir.path().join("certs/ca.crt"), &identity.ca_pem).unwrap();
        let ca = reqwest::Certificate::from_pem(identity.ca_pem.as_bytes()).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
        let admin = std::fs::read_to_string(data_dir.join("admin.token")).unwrap().trim().to_owned();
        let child = spawn(dir.path());
        let cloud = Self { dir, authority, state, pack, admin, http, child, shutdown };
        cloud.is_ready().await;
        cloud
    }

    pub async fn is_ready(&self) {
        let url = self.url("/readyz");
        while !self.http.get(&url).send().await.is_ok_and(|answer| answer.status() == 200) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// kill -9, and a new life with the same files.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
        self.child = spawn(self.dir.path());
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.pack)
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("packages")
    }

    pub fn identity(&self, service: &str) -> Identity {
        self.authority.issue(service, "one", &[], &[]).unwrap()
    }

    pub fn client(&self, service: &str) -> Client {
        Client::new(self.state.into(), &self.identity(service), service).unwrap()
    }

    pub fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.url(path)).bearer_auth(&self.admin)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.ask(Method::GET, path).send().await.unwrap()
    }

    /// Makes a project or a token in form-state; answers with what form-state did.
    pub async fn make(&self, kind: &str, name: &str, spec: Value) -> Value {
        let ca = std::fs::read(self.dir.path().join("certs/ca.crt")).unwrap();
        let ca = reqwest::Certificate::from_pem(&ca).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([ca]).resolve("form-state", self.state).build().unwrap();
        let url = format!("https://form-state:{}/v1/{kind}", self.state.port());
        let made =
            http.post(url).bearer_auth(&self.admin).json(&json!({"name": name, "spec": spec})).send().await.unwrap();
        assert!(made.status().is_success(), "{}", made.text().await.unwrap());
        made.json().await.unwrap()
    }

    pub async fn token(&self, name: &str, spec: Value) -> String {
        self.make("tokens", name, spec).await["status"]["secret"].as_str().unwrap().to_owned()
    }

    /// Pushes a blob at once.
    pub async fn push(&self, repository: &str, contents: &[u8]) -> Digest {
        let digest = Digest::of(contents);
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let answer = self.ask(Method::POST, &path).body(contents.to_vec()).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
        digest
    }

    pub async fn put(&self, repository: &str, reference: &str, kind: &str, manifest: &Value) -> Response {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.ask(Method::PUT, &path).header("content-type", kind).body(manifest.to_string()).send().await.unwrap()
    }

    /// Pushes an image of one layer; answers with its digest.
    pub async fn image(&self, repository: &str, tag: &str, layer: &[u8]) -> Digest {
        let (config, layer) = (self.push(repository, b"{}").await, (self.push(repository, layer).await, layer.len()));
        let manifest = image(config, &[layer]);
        let answer = self.put(repository, tag, IMAGE, &manifest).await;
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
        Digest::of(manifest.to_string().as_bytes())
    }

    pub async fn status(&self, method: Method, path: &str) -> StatusCode {
        self.ask(method, path).send().await.unwrap().status()
    }

    pub async fn sweep(&self) -> Value {
        let answer = self.ask(Method::POST, "/v1/sweeps").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    /// Sweeps until all that may go is gone.
    pub async fn sweep_until_nothing_is_young(&self) {
        let left = || {
            let tmp = std::fs::read_dir(self.store().join("tmp")).unwrap().count();
            (self.blobs(), tmp)
        };
        let start = std::time::SystemTime::now();
        loop {
            // Four seconds are the grace time that these tests set.
            let is_over = start.elapsed().unwrap() > Duration::from_secs(5);
            let before = left();
            self.sweep().await;
            if is_over && before == left() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The blobs on the disk, in order.
    pub fn blobs(&self) -> Vec<String> {
        fn walk(dir: &std::path::Path, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                } else {
                    found.push(path.file_name().unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.store().join("blobs"), &mut found);
        found.sort();
        found
    }
}

fn spawn(dir: &std::path::Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    tokio::process::Command::new(env!("CARGO_BIN_EXE_form-pack-manager"))
        .arg("--config")
        .arg(dir.join("config.toml"))
        // For registries that the tests start.
        .env("SSL_CERT_FILE", dir.join("certs/ca.crt"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

pub fn descriptor(kind: &str, digest: Digest, size: usize) -> Value {
    json!({"mediaType": kind, "digest": digest.to_string(), "size": size})
}

pub fn image(config: Digest, layers: &[(Digest, usize)]) -> Value {
    let layer = |(digest, size): &(Digest, usize)| descriptor("application/vnd.oci.image.layer.v1.tar", *digest, *size);
    json!({"schemaVersion": 2, "mediaType": IMAGE, "config": descriptor("application/vnd.oci.image.config.v1+json", config, 2),
        "layers": layers.iter().map(layer).collect::<Vec<_>>()})
}

pub async fn code(answer: Response) -> String {
    assert_eq!(answer.headers()["content-type"], "application/json");
    let body: Value = answer.json().await.unwrap();
    assert!(!body["errors"][0]["message"].as_str().unwrap().is_empty());
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

/// Runs a program of others; its output, or `None` where it is not installed.
pub fn run(program: &str, arguments: &[&str]) -> Option<Result<String, String>> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: {program} does not run ({error}); apt-get install {program}");
            return None;
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}
