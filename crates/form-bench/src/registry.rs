//! The registry beside apt's docker-registry: both over TLS, HTTP/1.1 and one disk.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use reqwest::{Body, Client, header};
use sha2::{Digest as _, Sha256};
use tokio::process::{Child, Command};

use crate::Row;
use crate::cloud::Cloud;

const PEER: &str = "127.0.0.1:15000";
const BLOB: usize = 256 << 20;
const PIECE: usize = 1 << 20;
const ROUNDS: u8 = 3;
const READERS: usize = 16;
const SPAN: Duration = Duration::from_secs(4);

pub(crate) async fn compare(cloud: &Cloud, scratch: &Path) -> Result<Vec<Row>> {
    let mut peer = start_peer(cloud, &scratch.join("docker-registry"))?;
    let token = std::fs::read_to_string(cloud.data.join("state/admin.token"))?;
    let ours = Registry {
        client: client(cloud, "form-pack-manager", 3003)?,
        base: "https://form-pack-manager:3003".into(),
        token: Some(token.trim().to_owned()),
    };
    let theirs =
        Registry { client: client(cloud, "localhost", 15000)?, base: "https://localhost:15000".into(), token: None };
    theirs.wait().await?;

    let (mut pushes, mut pulls, mut gets) = ([vec![], vec![]], [vec![], vec![]], [vec![], vec![]]);
    let mut blob = vec![0_u8; BLOB];
    fill(&mut blob);
    for round in 0..ROUNDS {
        // Another blob each time: one that is known already costs nothing.
        if let Some(first) = blob.first_mut() {
            *first = round;
        }
        let blob = bytes::Bytes::from(blob.clone());
        let digest = digest(&blob);
        for (index, registry) in [&ours, &theirs].into_iter().enumerate() {
            let push = registry.push(&blob, &digest).await?;
            let pull = registry.pull(&digest).await?;
            let get = registry.manifests().await?;
            for (figures, figure) in [(&mut pushes, push), (&mut pulls, pull), (&mut gets, get)] {
                if let Some(figures) = figures.get_mut(index) {
                    figures.push(figure);
                }
            }
        }
    }
    peer.kill().await?;
    let row = |what, [ours, theirs]: [Vec<f64>; 2], unit: &str| {
        let (ours, theirs) = (crate::quantile(ours, 0.5), crate::quantile(theirs, 0.5));
        Row {
            what,
            ours: format!("{ours:.0}{unit}"),
            peer: format!("{theirs:.0}{unit}"),
            ratio: format!("{:.2}", ours / theirs),
        }
    };
    Ok(vec![
        row("push of a blob of 256 MiB, to the answer 201 (docker-registry: apt's)", pushes, " MB/s"),
        row("pull of it", pulls, " MB/s"),
        row("GETs of a manifest by its tag, 16 connections", gets, "/s"),
    ])
}

struct Registry {
    client: Client,
    base: String,
    token: Option<String>,
}

impl Registry {
    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        Ok(request.send().await?.error_for_status()?)
    }

    async fn wait(&self) -> Result<()> {
        let start = Instant::now();
        while self.send(self.client.get(format!("{}/v2/", self.base))).await.is_err() {
            ensure!(start.elapsed() < Duration::from_secs(60), "docker-registry does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// MB/s of a push in one piece: POST, then PUT.
    async fn push(&self, blob: &bytes::Bytes, digest: &str) -> Result<f64> {
        let start = Instant::now();
        let begun = self.send(self.client.post(format!("{}/v2/default/bench/blobs/uploads/", self.base))).await?;
        let location = begun.headers().get(header::LOCATION).context("a Location")?.to_str()?.to_owned();
        let location = if location.starts_with('/') { format!("{}{location}", self.base) } else { location };
        let mark = if location.contains('?') { '&' } else { '?' };
        let pieces = (0..blob.len()).step_by(PIECE).map(|at| blob.slice(at..blob.len().min(at + PIECE)));
        let pieces: Vec<_> = pieces.map(Ok::<_, std::io::Error>).collect();
        let body = Body::wrap_stream(futures::stream::iter(pieces));
        let put = self.client.put(format!("{location}{mark}digest={digest}")).body(body);
        self.send(
            put.header(header::CONTENT_LENGTH, blob.len()).header(header::CONTENT_TYPE, "application/octet-stream"),
        )
        .await?;
        Ok(blob.len() as f64 / 1e6 / start.elapsed().as_secs_f64())
    }

    async fn pull(&self, digest: &str) -> Result<f64> {
        let start = Instant::now();
        let mut answer = self.send(self.client.get(format!("{}/v2/default/bench/blobs/{digest}", self.base))).await?;
        let mut length = 0;
        while let Some(piece) = answer.chunk().await? {
            length += piece.len();
        }
        ensure!(length == BLOB, "{length} bytes came");
        Ok(length as f64 / 1e6 / start.elapsed().as_secs_f64())
    }

    /// GETs of a small image's manifest, a second.
    async fn manifests(&self) -> Result<f64> {
        const KIND: &str = "application/vnd.oci.image.manifest.v1+json";
        let config = bytes::Bytes::from_static(b"{}");
        let at = digest(&config);
        self.push(&config, &at).await?;
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{KIND}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{at}","size":2}},"layers":[]}}"#
        );
        let url = format!("{}/v2/default/bench/manifests/latest", self.base);
        self.send(self.client.put(&url).header(header::CONTENT_TYPE, KIND).body(manifest)).await?;
        let start = Instant::now();
        let readers = (0..READERS).map(|_| async {
            let mut count = 0_u32;
            while start.elapsed() < SPAN {
                self.send(self.client.get(&url).header(header::ACCEPT, KIND)).await?.bytes().await?;
                count += 1;
            }
            Ok::<_, anyhow::Error>(count)
        });
        let count: u32 = try_join_all(readers).await?.into_iter().sum();
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    }
}

/// A person's client of the service `name` on this machine.
fn client(cloud: &Cloud, name: &str, port: u16) -> Result<Client> {
    let ca = reqwest::Certificate::from_pem(cloud.identity()?.ca_pem.as_bytes())?;
    let client = Client::builder().tls_certs_only([ca]).http1_only();
    Ok(client.resolve(name, ([127, 0, 0, 1], port).into()).build()?)
}

fn start_peer(cloud: &Cloud, dir: &Path) -> Result<Child> {
    let tls = dir.join("tls");
    cloud.identity()?.save(&tls)?;
    let config = dir.join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\n\
         http: {{addr: '{PEER}', tls: {{certificate: {tls}/cert.pem, key: {tls}/key.pem}}}}\n",
        data = dir.join("data").display(),
        tls = tls.display()
    );
    std::fs::write(&config, text)?;
    Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("docker-registry; apt-get install docker-registry")
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(blob)))
}

/// What no disk and no protocol can make smaller, the same each time (xorshift).
fn fill(blob: &mut [u8]) {
    let mut state = 0x5eed_u64;
    for word in blob.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(state.to_le_bytes().get(..word.len()).unwrap_or_default());
    }
}
