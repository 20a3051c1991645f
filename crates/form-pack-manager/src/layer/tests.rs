use std::io::Read;

use super::*;
use crate::testing::{context, formfile};

const FILES: &[(&str, &str)] = &[("hello*", "x"), ("conf/a", "a"), ("sh -> /bin/sh", ""), ("conf-d/b", "b")];

fn layer(files: &[(&str, &str)]) -> (Vec<u8>, Digest) {
    let context = context(files);
    let tree = Tree::assemble(&formfile("COPY . /srv").steps, &context).unwrap();
    let mut blob = Vec::new();
    let diff_id = write_layer(&tree, &context, &mut blob, &mut |_| {}).unwrap();
    (blob, diff_id)
}

#[test]
fn a_layer_is_the_same_bytes_whatever_the_order_on_disk() {
    let mut shuffled = FILES.to_vec();
    shuffled.reverse();
    assert!(layer(FILES) == layer(&shuffled));
}

#[test]
fn the_diff_id_is_the_digest_of_the_tar_and_entries_belong_to_root_at_time_zero() {
    let (blob, diff_id) = layer(FILES);
    let mut tar = Vec::new();
    zstd::Decoder::new(&blob[..]).unwrap().read_to_end(&mut tar).unwrap();
    assert_eq!(Digest::of(&tar), diff_id);
    let mut archive = tar::Archive::new(&tar[..]);
    let entries: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0, 0, 0));
            format!("{:o} {}", header.mode().unwrap(), entry.path().unwrap().display())
        })
        .collect();
    let expected = [
        "755 srv/",
        "755 srv/conf/",
        "755 srv/conf-d/",
        "644 srv/conf-d/b",
        "644 srv/conf/a",
        "755 srv/hello",
        "777 srv/sh",
    ];
    assert_eq!(entries, expected);
}

#[test]
fn configuration_and_manifest_are_the_same_bytes_each_time_and_say_what_the_formfile_says() {
    let formfile = formfile("WORKDIR /srv\nENV A=1 B=2\nUSER 7:8\nEXPOSE 9 8/udp 7 6 5 4 3 2 1\nVCPU 3");
    let blob = BlobInfo { digest: Digest::of(b"x"), size: 1 };
    let config = config_json(&formfile, blob.digest).unwrap();
    let manifest = manifest_json(&formfile, &blob, &blob).unwrap();
    // Hash maps have another order each time they are made.
    for _ in 0..20 {
        assert!(config_json(&formfile, blob.digest).unwrap() == config);
        assert!(manifest_json(&formfile, &blob, &blob).unwrap() == manifest);
    }
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["config"]["Env"], serde_json::json!(["A=1", "B=2"]));
    assert_eq!(config["config"]["User"], "7:8");
    assert_eq!(config["config"]["ExposedPorts"]["8/udp"], serde_json::json!({}));
    assert_eq!(config["rootfs"]["diff_ids"][0], blob.digest.to_string());
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
    assert_eq!(manifest["annotations"][VCPU_ANNOTATION], "3");
}
