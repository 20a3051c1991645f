//! Images of other registries.
//!
//! A Formfile is a stranger's, and the service that pulls for it stands inside the cluster. So all that a pull reaches
//! (redirects and places of tokens, too) goes through a [`Door`] of its own: a proxy in this process that connects to
//! public addresses only, unless the operator has named the registry, and lets in no more bytes than were expected.

use std::future::Future;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use form_rootfs::Digest;
use formfile::Span;
use futures::StreamExt as _;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::base::{MOST_DOCUMENT, bad};
use super::{BuildError, Engine};
use crate::store::{BlobInfo, BlobStore as _, StoreError};

/// What a client takes for a manifest.
const KINDS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// How long a registry may pause.
const IDLE: Duration = Duration::from_secs(60);
/// How soon a stop is noticed.
const TICK: Duration = Duration::from_millis(100);
/// What TLS, headers and tokens may come to beside what is asked for.
const BESIDE: u64 = 4 << 20;

/// An image of another registry, and the way there.
pub(super) struct Remote {
    runtime: Runtime,
    client: Client,
    reference: Reference,
    left: Arc<AtomicU64>,
}

/// A blob that a pull brought, which the project may have again.
#[derive(Serialize, Deserialize)]
struct Pulled {
    digest: String,
    size: u64,
}

impl Engine<'_, '_> {
    /// The image `name` and its manifest.
    pub(super) fn remote(&self, name: &str, span: Span) -> Result<(Remote, Vec<u8>), BuildError> {
        let Ok(reference) = name.parse::<Reference>() else {
            return Err(BuildError::at(span, format!("`{name}` is no image"), "write HOST/REPOSITORY:TAG"));
        };
        let known = self.workshop.registries();
        let registry = reference.resolve_registry();
        let is_plain = known.insecure.iter().any(|other| other == registry);
        let is_any = is_plain || known.trusted.iter().any(|other| other == registry);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BuildError::Scratch)?;
        let left = Arc::new(AtomicU64::new(MOST_DOCUMENT + BESIDE));
        let mut config =
            ClientConfig { connect_timeout: Some(IDLE), read_timeout: Some(IDLE), ..ClientConfig::default() };
        if is_plain {
            config.protocol = ClientProtocol::Http;
        } else {
            let door = Door { is_any, left: Arc::clone(&left) };
            let address = runtime.block_on(door.open()).map_err(BuildError::Scratch)?;
            let proxy = Some(format!("http://{address}"));
            (config.https_proxy, config.http_proxy) = (proxy.clone(), proxy);
        }
        let client = Client::try_from(config).map_err(|error| failed(span, name, &error))?;
        let remote = Remote { runtime, client, reference, left };
        let login = remote.client.auth(&remote.reference, &RegistryAuth::Anonymous, RegistryOperation::Pull);
        self.wait(&remote, login)?.map_err(|error| failed(span, name, &error))?;
        let manifest = self.remote_manifest(&remote, &remote.reference, span)?;
        Ok((remote, manifest))
    }

    /// The manifest `digest` of an index.
    pub(super) fn remote_child(&self, remote: &Remote, digest: &Digest, span: Span) -> Result<Vec<u8>, BuildError> {
        let (registry, repository) = (remote.reference.registry(), remote.reference.repository());
        let reference = Reference::with_digest(registry.to_owned(), repository.to_owned(), digest.to_string());
        self.remote_manifest(remote, &reference, span)
    }

    fn remote_manifest(&self, remote: &Remote, reference: &Reference, span: Span) -> Result<Vec<u8>, BuildError> {
        remote.left.store(MOST_DOCUMENT + BESIDE, Ordering::Relaxed);
        let pulled = remote.client.pull_manifest_raw(reference, &RegistryAuth::Anonymous, &KINDS);
        let (bytes, _) = self.wait(remote, pulled)?.map_err(|error| failed(span, &reference.whole(), &error))?;
        match reference.digest().map(str::parse::<Digest>) {
            Some(Ok(digest)) if digest.algorithm().digest(&bytes) == digest => {}
            None => {}
            _ => return Err(bad(span, "its manifest is not what its digest says")),
        }
        Ok(bytes.to_vec())
    }

    /// A blob, checked while it comes, in the store.
    pub(super) fn remote_blob(
        &self,
        remote: &Remote,
        digest: &Digest,
        size: u64,
        span: Span,
    ) -> Result<BlobInfo, BuildError> {
        let store = self.workshop.store();
        let note = format!("{}/pulled/{}-{}", self.request.project, digest.algorithm().name(), digest.hex());
        if self.workshop.recall::<Pulled>(&note)?.is_some_and(|known| known.size == size) && store.touch(digest)? {
            return Ok(BlobInfo { digest: *digest, size });
        }
        let most = self.workshop.registries().blob_bytes;
        if size > most {
            return Err(bad(span, &format!("a blob of it has {size} bytes, of at most {most}")));
        }
        remote.left.store(size.saturating_mul(2).saturating_add(BESIDE), Ordering::Relaxed);
        let name = remote.reference.whole();
        let text = digest.to_string();
        let stream = self.wait(remote, remote.client.pull_blob_stream(&remote.reference, text.as_str()))?;
        let mut stream = stream.map_err(|error| failed(span, &name, &error))?.stream;
        let mut writer = store.writer_of(digest.algorithm())?;
        let mut written = 0_u64;
        while let Some(piece) = self.wait(remote, stream.next())? {
            let piece = piece.map_err(|error| failed(span, &name, &error))?;
            written = written.saturating_add(piece.len() as u64);
            if written > size {
                break;
            }
            writer.write_all(&piece).map_err(StoreError::Write)?;
        }
        if written != size {
            return Err(bad(span, "a blob of it has another length than it says"));
        }
        let blob = match writer.commit(Some(digest)) {
            Err(StoreError::Mismatch { .. }) => return Err(bad(span, "a blob of it is not what its digest says")),
            other => other?,
        };
        self.workshop.note(&note, &Pulled { digest: text, size })?;
        Ok(blob)
    }

    /// Waits for what a registry does, and for the end of the build.
    fn wait<T>(&self, remote: &Remote, what: impl Future<Output = T>) -> Result<T, BuildError> {
        remote.runtime.block_on(async {
            tokio::pin!(what);
            loop {
                tokio::select! {
                    done = &mut what => return Ok(done),
                    () = tokio::time::sleep(TICK) => self.check_time()?,
                }
            }
        })
    }
}

fn failed(span: Span, name: &str, error: &(dyn std::error::Error + 'static)) -> BuildError {
    // oci-client knows it by its own digester, too.
    if let Some(OciDistributionError::DigestError(_)) = error.downcast_ref() {
        return bad(span, "a blob of it is not what its digest says");
    }
    let text = form_service::run::chain(error);
    let hint = "check its name. One that needs a login comes by `form pack pull`; one at an address that is not public \
                has to be in form-pack-manager's `registries`";
    BuildError::at(span, format!("`{name}` cannot be had: {text}"), hint)
}

/// The only way out of a pull.
struct Door {
    /// Whether it leads to addresses that are not public, too.
    is_any: bool,
    /// Bytes that may still come in.
    left: Arc<AtomicU64>,
}

impl Door {
    /// Opens it on the loopback, for as long as the runtime lives.
    async fn open(self) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, door) = (listener.local_addr()?, Arc::new(self));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let door = Arc::clone(&door);
                tokio::spawn(async move {
                    // The client hears of it by the end of its connection.
                    let _ = door.pass(stream).await;
                });
            }
        });
        Ok(address)
    }

    async fn pass(&self, mut client: TcpStream) -> io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > 8 << 10 {
                return Ok(());
            }
            head.push(client.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head);
        // Never without TLS: what is asked for by GET is a redirect to it.
        let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split_once(' ')).map(|(target, _)| target);
        let mut server = None;
        for address in tokio::net::lookup_host(target.unwrap_or_default()).await.into_iter().flatten() {
            if self.is_any || is_public(address.ip()) {
                server = TcpStream::connect(address).await.ok();
            }
            if server.is_some() {
                break;
            }
        }
        let Some(mut server) = server else {
            return client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
        };
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let out = tokio::io::copy(&mut from_client, &mut to_server);
        let back = async {
            let mut piece = vec![0; 64 << 10];
            loop {
                let read = from_server.read(&mut piece).await?;
                let left = self.left.load(Ordering::Relaxed).checked_sub(read as u64);
                let (Some(left), true) = (left, read > 0) else { return Ok(()) };
                self.left.store(left, Ordering::Relaxed);
                to_client.write_all(piece.get(..read).unwrap_or_default()).await?;
            }
        };
        tokio::select! {
            done = out => done.map(drop),
            done = back => done,
        }
    }
}

/// Whether an address is of the Internet, and of nobody's own network.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            let is_own = address.is_private() || address.is_loopback() || address.is_link_local();
            let is_special = address.is_documentation() || address.is_multicast() || a == 0 || a >= 240;
            // Carriers, protocols, benchmarks.
            let is_shared = (a == 100 && b & 0xc0 == 64) || (a, b, c) == (192, 0, 0) || (a == 198 && b & 0xfe == 18);
            !(is_own || is_special || is_shared)
        }
        // Global unicast, without documentation and what has an IPv4 address inside (Teredo, 6to4).
        IpAddr::V6(address) => match (address.to_ipv4_mapped(), address.segments()) {
            (Some(address), _) => is_public(address.into()),
            (None, [0x2001, 0 | 0xdb8, ..] | [0x2002, ..]) => false,
            (None, [first, ..]) => first & 0xe000 == 0x2000,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes back through a door for `asked`, `{}` being a server that says much.
    async fn through(is_any: bool, left: u64, asked: &str) -> String {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let asked = asked.replace("{}", &server.local_addr().unwrap().to_string());
        tokio::spawn(async move {
            let (mut stream, _) = server.accept().await.unwrap();
            let _ = stream.write_all(&[b'x'; 200_000]).await;
        });
        let door = Door { is_any, left: Arc::new(AtomicU64::new(left)) };
        let mut client = TcpStream::connect(door.open().await.unwrap()).await.unwrap();
        client.write_all(asked.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn a_door_leads_where_it_may_and_lets_in_what_it_may() {
        let connect = "CONNECT {} HTTP/1.1\r\nHost: {}\r\n\r\n";
        assert!(through(false, 1 << 20, connect).await.starts_with("HTTP/1.1 403 "));
        assert!(through(true, 1 << 20, "GET http://{}/ HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 403 "));
        let all = through(true, 1 << 20, connect).await;
        assert!(all.starts_with("HTTP/1.1 200 ") && all.matches('x').count() == 200_000);
        assert!(through(true, 100_000, connect).await.matches('x').count() <= 100_000);
    }

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for own in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "198.18.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "2001:db8::1",
        ] {
            assert!(!is_public(own.parse().unwrap()), "{own}");
        }
        for public in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
