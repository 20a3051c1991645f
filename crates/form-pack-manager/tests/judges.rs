//! Other people's programs push to the registry and pull from it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::path::Path;

use common::{Cloud, run};
use reqwest::Method;
use serde_json::Value;

/// An image layout of one file, made by umoci; `None` where that is not installed.
fn layout(dir: &Path, contents: &str) -> Option<String> {
    let layout = dir.join("layout").display().to_string();
    let file = dir.join("file");
    std::fs::write(&file, contents).unwrap();
    let image = format!("{layout}:v1");
    for arguments in [
        &["init", "--layout", &layout][..],
        &["new", "--image", &image],
        &["insert", "--rootless", "--image", &image, file.to_str().unwrap(), "/file"],
    ] {
        run("umoci", arguments)?.unwrap();
    }
    Some(image)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_copies_inspects_lists_syncs_and_deletes() {
    let cloud = Cloud::start("").await;
    let Some(image) = layout(cloud.dir.path(), "skopeo was here") else { return };
    let certs = cloud.dir.path().join("certs").display().to_string();
    let auth = cloud.dir.path().join("auth.json").display().to_string();
    let registry = cloud.pack.to_string();
    let skopeo = |arguments: &[&str]| {
        let mut all = vec!["--insecure-policy"];
        all.extend(arguments);
        run("skopeo", &all)
    };
    let login = ["login", "--authfile", &auth, "--cert-dir", &certs, "-u", "me", "-p"];
    let Some(logged_in) = skopeo(&[&login[..], &[&cloud.admin, &registry]].concat()) else { return };
    logged_in.unwrap();
    assert!(skopeo(&[&login[..], &["wrong", &registry]].concat()).unwrap().is_err());

    let remote = format!("docker://{registry}/default/hello");
    let to = ["copy", "--authfile", &auth, "--dest-cert-dir", &certs];
    for tag in ["v1", "v2"] {
        skopeo(&[&to[..], &[&format!("oci:{image}"), &format!("{remote}:{tag}")]].concat()).unwrap().unwrap();
    }
    // Docker's own media types.
    let docker = ["--format", "v2s2", &format!("oci:{image}"), &format!("{remote}:docker")];
    skopeo(&[&to[..], &docker].concat()).unwrap().unwrap();
    let asked = ["--authfile", &auth, "--cert-dir", &certs];
    let inspected = skopeo(&[&["inspect"], &asked[..], &[&format!("{remote}:v1")]].concat()).unwrap().unwrap();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["RepoTags"], serde_json::json!(["docker", "v1", "v2"]));
    let raw = skopeo(&[&["inspect", "--raw"], &asked[..], &[&format!("{remote}:docker")]].concat()).unwrap().unwrap();
    assert!(raw.contains("application/vnd.docker.distribution.manifest.v2+json"), "{raw}");
    let listed = skopeo(&[&["list-tags"], &asked[..], &[&remote]].concat()).unwrap().unwrap();
    assert!(listed.contains("v2"), "{listed}");

    // Another repository of the same registry: its blobs are mounted.
    let both = ["copy", "--authfile", &auth, "--src-cert-dir", &certs, "--dest-cert-dir", &certs];
    let copy = format!("docker://{registry}/default/copy:v1");
    skopeo(&[&both[..], &[&format!("{remote}:v1"), &copy]].concat()).unwrap().unwrap();
    let back = cloud.dir.path().join("back").display().to_string();
    let from = ["copy", "--authfile", &auth, "--src-cert-dir", &certs];
    skopeo(&[&from[..], &[&copy, &format!("oci:{back}:v1")]].concat()).unwrap().unwrap();
    let index = |layout: &str| -> Value {
        serde_json::from_slice(&std::fs::read(Path::new(layout).join("index.json")).unwrap()).unwrap()
    };
    let wanted = index(image.strip_suffix(":v1").unwrap())["manifests"][0]["digest"].clone();
    assert_eq!(index(&back)["manifests"][0]["digest"], wanted, "what comes back is what went in");

    let synced = cloud.dir.path().join("synced").display().to_string();
    let source = format!("{registry}/default/hello");
    let sync =
        ["sync", "--authfile", &auth, "--src-cert-dir", &certs, "--src", "docker", "--dest", "dir", &source, &synced];
    skopeo(&sync).unwrap().unwrap();
    assert_eq!(std::fs::read_dir(&synced).unwrap().count(), 3);
    skopeo(&[&["delete"], &asked[..], &[&format!("{remote}:v1")]].concat()).unwrap().unwrap();
    assert_eq!(cloud.status(Method::GET, "/v2/default/hello/manifests/v1").await, 404);
    assert_eq!(cloud.status(Method::GET, "/v2/default/copy/manifests/v1").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_and_buildah_log_in_push_and_pull() {
    let cloud = Cloud::start("").await;
    // Podman makes a name of the path, which has to be in lower case.
    let name = format!("form-judges-{}", std::process::id());
    let lower = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().unwrap();
    let Some(image) = layout(lower.path(), "podman was here") else { return };
    let dir = |name: &str| cloud.dir.path().join(name).display().to_string();
    let (root, runroot, certs, auth) = (dir("root"), dir("runroot"), dir("certs"), dir("auth.json"));
    let registry = cloud.pack.to_string();
    for program in ["podman", "buildah"] {
        let storage = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs"];
        let tool = |arguments: &[&str]| run(program, &[&storage[..], arguments].concat());
        let access = ["--authfile", &auth, "--cert-dir", &certs];
        let login = ["-u", "me", "-p", &cloud.admin, &registry];
        let Some(logged_in) = tool(&[&["login"], &access[..], &login].concat()) else { continue };
        logged_in.unwrap();
        let remote = format!("{registry}/default/{program}:v1");
        let local = tool(&["pull", "-q", &format!("oci:{image}")]).unwrap().unwrap();
        let pushed = tool(&[&["push"], &access[..], &[local.trim(), &format!("docker://{remote}")]].concat());
        pushed.unwrap().unwrap();
        tool(&["rmi", "-f", local.trim()]).unwrap().unwrap();
        tool(&[&["pull", "-q"], &access[..], &[&remote]].concat()).unwrap().unwrap();
        assert_eq!(cloud.status(Method::GET, &format!("/v2/default/{program}/manifests/v1")).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oras_pushes_an_artifact_and_pulls_it() {
    let cloud = Cloud::start("").await;
    let program = r#"
import os, sys
import oras.client
registry, token, out = sys.argv[1:]
client = oras.client.OrasClient(hostname=registry, auth_backend="token")
client.login(hostname=registry, username="me", password=token, tls_verify=True, config_path=out + "/docker.json")
open("artifact.txt", "w").write("oras was here")
client.push(target=registry + "/default/artifact:v1", files=["artifact.txt"])
os.remove("artifact.txt")
client.pull(target=registry + "/default/artifact:v1", outdir=out)
print(open(out + "/artifact.txt").read())
"#;
    let has = std::process::Command::new("python3").args(["-c", "import oras.client"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        return println!("skipped: oras is not installed; run: pip install oras");
    }
    let work = tempfile::tempdir().unwrap();
    let output = std::process::Command::new("python3")
        .args(["-c", program, &cloud.pack.to_string(), &cloud.admin, work.path().to_str().unwrap()])
        .current_dir(work.path())
        .env("REQUESTS_CA_BUNDLE", cloud.dir.path().join("certs/ca.crt"))
        .env("HOME", work.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("oras was here"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `OCI_CONFORMANCE`: the distribution-spec's own program, which no package has; it is built with `go build` in its
/// repository's directory `conformance`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_specifications_own_program_finds_nothing_wrong() {
    let Some(program) = std::env::var_os("OCI_CONFORMANCE") else {
        return println!("skipped: OCI_CONFORMANCE names no program; CONTRIBUTING.md tells how it is built");
    };
    // One of its images names layers that it does not push.
    let cloud = Cloud::start("sparse_manifests = true").await;
    let work = tempfile::tempdir().unwrap();
    let everything = ["BLOBS_DIGEST_HEADER", "BLOBS_UPLOAD_CANCEL", "MANIFESTS_DIGEST_HEADER", "MANIFESTS_TAG_PARAM"];
    let output = tokio::process::Command::new(program)
        .env_clear()
        .envs(everything.map(|workflow| (format!("OCI_API_{workflow}"), "true")))
        .env("OCI_DATA_SPARSE", "true")
        .env("OCI_REGISTRY", cloud.pack.to_string())
        .env("OCI_TLS", "enabled")
        .env("SSL_CERT_FILE", cloud.dir.path().join("certs/ca.crt"))
        .env("OCI_REPO1", "default/one")
        .env("OCI_REPO2", "default/two")
        .env("OCI_USERNAME", "me")
        .env("OCI_PASSWORD", &cloud.admin)
        .env("OCI_RESULTS_DIR", work.path())
        .current_dir(work.path())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let count = |what: &str| {
        let line = said.lines().map(str::trim).find(|line| line.starts_with(what)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()
    };
    let (passed, failed, broken) = (count("Pass.."), count("FAIL.."), count("Error.."));
    println!("{passed} passed, {failed} failed, {broken} broke off");
    assert!(passed > 900 && failed == 0 && broken == 0 && output.status.success(), "{said}");
}
