//! Writes that are synced before they are acknowledged: ours, through API, rules and all, beside etcd's, of one size.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use form_types::v1::event_spec::Type;
use form_types::v1::{CreateRequest, Resource};
use form_types::{Meta, event, kinds};
use futures::future::try_join_all;
use prost::Message as _;
use tokio::process::{Child, Command};

use crate::Row;
use crate::cloud::Cloud;
use crate::connection::Connection;

const CLIENTS: usize = 64;
/// Connections that the clients share, as etcd's own benchmark has them.
const CONNECTIONS: usize = 8;
/// Where etcd listens.
const ETCD: &str = "127.0.0.1:12379";
const SPAN: Duration = Duration::from_secs(8);
const ROUNDS: usize = 3;

mod etcd {
    #![allow(clippy::all, unreachable_pub)]
    tonic::include_proto!("etcdserverpb");
}

pub(crate) async fn compare(cloud: &Cloud, scratch: &Path) -> Result<Row> {
    let mut peer = Etcd::start(cloud, &scratch.join("etcd")).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(formation(cloud).await?);
        theirs.push(peer.measure(cloud).await?);
    }
    peer.process.kill().await?;
    let (ours, theirs) = (crate::quantile(ours, 0.5), crate::quantile(theirs, 0.5));
    Ok(Row {
        what: "API writes, fdatasync before each acknowledgement, 64 clients, TLS (etcd: apt's etcd-server, one member)",
        ours: format!("{ours:.0}/s"),
        peer: format!("{theirs:.0}/s"),
        ratio: format!("{:.2}", ours / theirs),
    })
}

/// A resource such as services write all day.
pub(crate) fn example() -> Resource {
    let about = Meta { project: "default".to_owned(), name: "bench".to_owned(), ..Meta::default() };
    let text = "a sentence of the usual length on what happened to whom and why";
    event::<kinds::Instance>(&about, Type::Normal, "Measured", text, "form-pack-manager").into()
}

async fn formation(cloud: &Cloud) -> Result<f64> {
    let clients = try_join_all((0..CONNECTIONS).map(|_| cloud.client())).await?;
    run(move |index| {
        let client = clients.get(index % CONNECTIONS).cloned();
        async move {
            let mut client = client.context("a connection")?;
            client.create(CreateRequest { resource: Some(example()), idempotency_key: String::new() }).await?;
            Ok(())
        }
    })
    .await
}

/// Calls from [`CLIENTS`] clients, each as soon as its last was answered; how many a second.
async fn run<F, G>(call: G) -> Result<f64>
where
    F: Future<Output = Result<()>> + Send + 'static,
    G: Fn(usize) -> F + Send + Sync + Clone + 'static,
{
    let done = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let tasks = (0..CLIENTS).map(|index| {
        let (done, call) = (Arc::clone(&done), call.clone());
        tokio::spawn(async move {
            while start.elapsed() < SPAN {
                call(index).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, anyhow::Error>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

struct Etcd {
    process: Child,
    next: Arc<AtomicU64>,
}

impl Etcd {
    async fn start(cloud: &Cloud, dir: &Path) -> Result<Self> {
        let identity = cloud.identity()?;
        identity.save(&dir.join("tls"))?;
        let tls = dir.join("tls");
        let process = Command::new("etcd")
            .args(["--name", "bench", "--listen-client-urls", &format!("https://{ETCD}")])
            .args(["--advertise-client-urls", &format!("https://{ETCD}")])
            .args(["--listen-peer-urls", "http://127.0.0.1:12380"])
            .args(["--initial-advertise-peer-urls", "http://127.0.0.1:12380"])
            .args(["--initial-cluster", "bench=http://127.0.0.1:12380", "--log-level", "error"])
            .arg("--data-dir")
            .arg(dir.join("data"))
            .arg("--cert-file")
            .arg(tls.join("cert.pem"))
            .arg("--key-file")
            .arg(tls.join("key.pem"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("etcd; apt-get install etcd-server")?;
        let start = Instant::now();
        while Connection::open(ETCD, "localhost", &identity).await.is_err() {
            anyhow::ensure!(start.elapsed() < Duration::from_secs(60), "etcd does not start");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { process, next: Arc::default() })
    }

    async fn measure(&self, cloud: &Cloud) -> Result<f64> {
        let identity = cloud.identity()?;
        let connect = || Connection::open(ETCD, "localhost", &identity);
        let connections = try_join_all((0..CONNECTIONS).map(|_| connect())).await?;
        let (next, value) = (Arc::clone(&self.next), example().encode_to_vec());
        run(move |index| {
            let connection = connections.get(index % CONNECTIONS).cloned();
            let key = format!("resource/Event/default/{:032}", next.fetch_add(1, Ordering::Relaxed));
            let request = etcd::PutRequest { key: key.into_bytes(), value: value.clone() };
            async move {
                etcd::kv_client::KvClient::new(connection.context("a connection")?).put(request).await?;
                Ok(())
            }
        })
        .await
    }
}
