use std::io::Read;

use form_rootfs::{Digest, expand_rootfs};

use super::*;
use crate::store::DirStore;
use crate::testing::{context, formfile};

const FILES: &[(&str, &str)] = &[("hello*", "#!"), ("conf/a", "a")];

fn read(store: &DirStore, digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.get(digest).unwrap().unwrap().reader.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_build_puts_an_image_and_a_disk_into_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path().join("store")).unwrap();
    let mut phases = Vec::new();
    let mut progress = |progress: Progress| {
        assert!(progress.done <= progress.total);
        if progress.done == progress.total {
            phases.push(progress.phase);
        }
    };
    let formfile = formfile("COPY . /\nDISK 16\nMEMORY 64\nEXPOSE 80");
    let package = build(&formfile, &context(FILES), &store, dir.path(), &mut progress).unwrap();
    assert_eq!(phases, [Phase::Rootfs, Phase::Compress, Phase::Layer]);

    let manifest: serde_json::Value = serde_json::from_slice(&read(&store, &package.manifest.digest)).unwrap();
    assert_eq!(manifest["layers"][0]["digest"], package.layer.digest.to_string());
    assert_eq!(manifest["layers"][0]["size"], package.layer.size);
    assert_eq!(manifest["config"]["digest"], package.config.digest.to_string());
    assert_eq!(read(&store, &package.layer.digest).len() as u64, package.layer.size);

    let disk = dir.path().join("disk.img");
    expand_rootfs(store.get(&package.rootfs.digest).unwrap().unwrap().reader, &disk, &package.rootfs_raw).unwrap();
    assert_eq!(package.rootfs_raw.size, 16 << 20);
    assert_eq!(store.list().unwrap().count(), 4);
}

#[test]
fn building_twice_gives_the_same_package_and_no_new_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let formfile = formfile("COPY . /\nDISK 16\nEXPOSE 1 2 3 4 5 6 7 8");
    let build = |files| super::build(&formfile, &context(files), &store, dir.path(), &mut |_| {}).unwrap();
    let mut shuffled = FILES.to_vec();
    shuffled.reverse();
    assert_eq!(build(FILES), build(&shuffled));
    assert_eq!(store.list().unwrap().count(), 4);
}

#[test]
fn an_entrypoint_that_could_not_start_fails_the_build() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let error = |lines: &str, files| {
        build(&formfile(lines), &context(files), &store, dir.path(), &mut |_| {}).unwrap_err().to_string()
    };
    assert!(error("COPY . /bin", FILES).contains("`/hello` is not in the package"));
    assert!(error("COPY . /", &[("hello", "x")]).contains("`/hello` is not executable"));
    assert!(error("COPY . /hello", FILES).contains("`/hello` is a directory"));
    assert_eq!(store.list().unwrap().count(), 0);
}

#[test]
fn an_entrypoint_behind_a_link_is_left_to_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path()).unwrap();
    let text = b"FROM scratch\nCOPY . /\nDISK 16\nENTRYPOINT [\"/sbin/init\"]";
    let formfile = Formfile::parse("Formfile", text).unwrap();
    let files = [("bin/init*", "x"), ("sbin -> bin", "")];
    build(&formfile, &context(&files), &store, dir.path(), &mut |_| {}).unwrap();
}

#[test]
fn skopeo_takes_the_image_and_finds_the_layer_to_be_what_the_configuration_says() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::open(dir.path().join("store")).unwrap();
    let package =
        build(&formfile("COPY . /\nDISK 16\nEXPOSE 80"), &context(FILES), &store, dir.path(), &mut |_| {}).unwrap();
    let layout = dir.path().join("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    for blob in [package.manifest, package.config, package.layer] {
        std::fs::write(layout.join("blobs/sha256").join(blob.digest.hex()), read(&store, &blob.digest)).unwrap();
    }
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": package.manifest.digest.to_string(), "size": package.manifest.size,
        "annotations": { "org.opencontainers.image.ref.name": "latest" } }] });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();

    let copy = dir.path().join("copy");
    let source = format!("oci:{}:latest", layout.display());
    let mut skopeo = std::process::Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--dest-decompress", &source, &format!("dir:{}", copy.display())]);
    let output = match skopeo.output() {
        Ok(output) => output,
        Err(e) => return eprintln!("skipped: skopeo does not run ({e}); apt-get install skopeo"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let config: serde_json::Value = serde_json::from_slice(&read(&store, &package.config.digest)).unwrap();
    let diff_id: Digest = config["rootfs"]["diff_ids"][0].as_str().unwrap().parse().unwrap();
    let layer = std::fs::read(copy.join(diff_id.hex())).unwrap();
    assert_eq!(Digest::of(&layer), diff_id);
}
