//! Images of another registry as bases: apt's docker-registry, on the loopback.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Cloud, IMAGE, INDEX, descriptor};
use form_rootfs::Digest;
use form_types::v1::BuildSpec;
use form_types::v1::build_status::Phase;
use form_types::{Object, kinds};
use serde_json::{Value, json};

/// A docker-registry of its own, gone with this.
struct Registry {
    address: SocketAddr,
    files: PathBuf,
    http: reqwest::Client,
    url: String,
    _child: tokio::process::Child,
}

impl Registry {
    /// With `tls`, the directory of a certificate and its key.
    async fn start(dir: &Path, address: SocketAddr, tls: Option<&Path>, http: &reqwest::Client) -> Self {
        let files = dir.join(format!("registry-{}", address.port()));
        let pem = |name: &str| tls.map(|dir| dir.join(name).display().to_string());
        let config = json!({"version": "0.1", "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": files}},
            "http": {"addr": address.to_string(), "tls": {"certificate": pem("cert.pem"), "key": pem("key.pem")}}});
        let path = files.with_extension("yml");
        std::fs::write(&path, config.to_string()).unwrap();
        let mut command = tokio::process::Command::new("docker-registry");
        let quiet = std::process::Stdio::null;
        let child = command.arg("serve").arg(&path).stdout(quiet()).stderr(quiet()).kill_on_drop(true).spawn().unwrap();
        let url = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
        while !http.get(format!("{url}/v2/")).send().await.is_ok_and(|answer| answer.status() == 200) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self { address, files, http: http.clone(), url, _child: child }
    }

    async fn push(&self, contents: &[u8]) -> (Digest, usize) {
        let digest = Digest::of(contents);
        let begun = self.http.post(format!("{}/v2/team/base/blobs/uploads/", self.url)).send().await.unwrap();
        let to = begun.headers()["location"].to_str().unwrap();
        let to = if to.starts_with('/') { format!("{}{to}", self.url) } else { to.to_owned() };
        let put = self.http.put(to).query(&[("digest", digest.to_string())]).body(contents.to_vec()).send().await;
        assert_eq!(put.unwrap().status(), 201);
        (digest, contents.len())
    }

    async fn tag(&self, tag: &str, kind: &str, manifest: &Value) -> (Digest, usize) {
        let text = manifest.to_string();
        let to = format!("{}/v2/team/base/manifests/{tag}", self.url);
        let put = self.http.put(to).header("content-type", kind).body(text.clone()).send().await.unwrap();
        assert_eq!(put.status(), 201, "{}", put.text().await.unwrap());
        (Digest::of(text.as_bytes()), text.len())
    }

    /// An image of one program, which says `word`; its digest and its layer's.
    async fn image(&self, tag: &str, word: &str) -> ((Digest, usize), Digest) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(word.len() as u64);
        tar.append_data(&mut header, "hello", word.as_bytes()).unwrap();
        let layer = self.push(&tar.into_inner().unwrap()).await;
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/hello", word]},
            "rootfs": {"type": "layers", "diff_ids": [layer.0.to_string()]}});
        let config = self.push(config.to_string().as_bytes()).await;
        let manifest = json!({"schemaVersion": 2, "mediaType": IMAGE,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config.0, config.1),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer.0, layer.1)]});
        (self.tag(tag, IMAGE, &manifest).await, layer.0)
    }
}

async fn built(client: &form_client::Client, name: &str, image: &str) -> Object<kinds::Build> {
    let spec = BuildSpec { package: "base".to_owned(), image: image.to_owned(), ..Default::default() };
    client.apply(Object::<kinds::Build>::new("default", name, spec)).await.unwrap();
    loop {
        let build = client.get::<kinds::Build>("default", name).await.unwrap();
        if matches!(build.status.phase(), Phase::Succeeded | Phase::Failed) {
            return build;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_another_registry_is_a_base_and_what_is_not_public_is_not_asked() {
    if std::process::Command::new("docker-registry").arg("--version").output().is_err() {
        return println!("skipped: docker-registry is not installed; run: apt-get install docker-registry");
    }
    let free = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let (with_tls, plain) = (free(), free());
    let cloud = Cloud::start(&format!("registries = [\"{with_tls}\"]\ninsecure_registries = [\"{plain}\"]")).await;
    let client = cloud.client("form-pack-manager");
    let certificate = cloud.dir.path().join("registry-tls");
    let local = [Ipv4Addr::LOCALHOST.into()];
    cloud.authority.issue("registry", "one", &["localhost".to_owned()], &local).unwrap().save(&certificate).unwrap();
    let with_tls = Registry::start(cloud.dir.path(), with_tls, Some(&certificate), &cloud.http).await;
    let plain = Registry::start(cloud.dir.path(), plain, None, &reqwest::Client::new()).await;

    for (number, registry) in [&with_tls, &plain].into_iter().enumerate() {
        let ((ours, size), _) = registry.image("ours", "for us").await;
        let ((other, other_size), _) = registry.image("other", "for others").await;
        let of = |digest, size, arch| {
            let mut entry = descriptor(IMAGE, digest, size);
            entry["platform"] = json!({"os": "linux", "architecture": arch});
            entry
        };
        let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let manifests = [of(other, other_size, "riscv64"), of(ours, size, arch)];
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        let (index, _) = registry.tag("v1", INDEX, &index).await;
        for (kind, image) in [("tag", ":v1".to_owned()), ("digest", format!("@{index}")), ("one", ":ours".to_owned())] {
            let image = format!("{}/team/base{image}", registry.address);
            let build = built(&client, &format!("base-{number}-{kind}"), &image).await;
            assert_eq!(build.status.phase(), Phase::Succeeded, "{image}: {}", build.status.message);
            let package = client.get::<kinds::Package>("default", "base").await.unwrap();
            assert_eq!(package.spec.entrypoint, ["/hello", "for us"]);
        }

        // Bytes of the same number, and not those of the digest.
        let (_, layer) = registry.image("lies", "for thieves").await;
        let hex = layer.hex();
        let blob = registry.files.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
        let mut bytes = std::fs::read(&blob).unwrap();
        bytes[600] ^= 1;
        std::fs::write(&blob, bytes).unwrap();
        let image = format!("{}/team/base:lies", registry.address);
        let message = built(&client, &format!("base-{number}-lies"), &image).await.status.message;
        assert!(message.to_lowercase().contains("digest") && message.contains("image:1:6"), "{message}");
        assert!(!cloud.blobs().contains(&hex));
        let image = format!("{}/team/base:none", registry.address);
        let message = built(&client, &format!("base-{number}-none"), &image).await.status.message;
        assert!(message.contains("cannot be had"), "{message}");
    }

    // By a name that is not listed, the same registry is nobody's to reach; nor are the cluster's own services.
    for (number, port) in [with_tls.address.port(), cloud.state.port()].into_iter().enumerate() {
        let image = format!("localhost:{port}/team/base:v1");
        let message = built(&client, &format!("base-refused-{number}"), &image).await.status.message;
        assert!(message.contains("cannot be had") && message.contains("`registries`"), "{message}");
    }
    let left = std::fs::read_dir(cloud.store().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "what was pulled in part is gone");
}
