//! What nothing holds any more is freed, and nothing else: also while pushes go on, and through kills.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;
#[path = "common/random.rs"]
mod random;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::{Cloud, IMAGE, INDEX, descriptor, image};
use form_rootfs::Digest;
use form_types::v1::build_status::Phase;
use form_types::v1::{BuildSpec, PackageSpec, RootDisk, Sizes};
use form_types::{Object, kinds, timestamp};
use random::Random;
use reqwest::Method;
use serde_json::json;

/// The grace time that `Cloud::sweep_until_nothing_is_young` knows, and no sweep but those that a test asks for.
const GRACE: &str = "grace_seconds = 4\nsweep_seconds = 86400";

#[tokio::test]
async fn a_deleted_tag_frees_what_only_it_reached_and_what_an_index_or_a_subject_holds_stays() {
    let cloud = Cloud::start(GRACE).await;
    let alone = cloud.image("default/a", "alone", b"alone").await;
    let inside = cloud.image("default/a", "inside", b"inside").await;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(IMAGE, inside, 1)]});
    assert_eq!(cloud.put("default/a", "index", INDEX, &index).await.status(), 201);
    let sbom = cloud.push("default/a", b"sbom").await;
    let mut referrer = image(Digest::of(b"{}"), &[(sbom, 4)]);
    referrer["subject"] = descriptor(IMAGE, inside, 1);
    let referrer_digest = Digest::of(referrer.to_string().as_bytes());
    assert_eq!(cloud.put("default/a", &referrer_digest.to_string(), IMAGE, &referrer).await.status(), 201);
    cloud.push("default/a", b"never named").await;
    let mount = format!("/v2/default/b/blobs/uploads/?mount={}&from=default/a", Digest::of(b"alone"));
    assert_eq!(cloud.status(Method::POST, &mount).await, 201);
    cloud.image("default/b", "v1", b"alone").await;

    assert_eq!(cloud.sweep().await["blobs"], 0, "all of it is young");
    for tag in ["alone", "inside"] {
        assert_eq!(cloud.status(Method::DELETE, &format!("/v2/default/a/manifests/{tag}")).await, 202);
    }
    cloud.sweep_until_nothing_is_young().await;
    let status = async |path: String| cloud.status(Method::GET, &path).await;
    assert_eq!(status(format!("/v2/default/a/manifests/{alone}")).await, 404);
    assert_eq!(status(format!("/v2/default/a/blobs/{}", Digest::of(b"alone"))).await, 404);
    assert_eq!(status(format!("/v2/default/b/blobs/{}", Digest::of(b"alone"))).await, 200, "another repository has it");
    for held in [inside, referrer_digest] {
        assert_eq!(status(format!("/v2/default/a/manifests/{held}")).await, 200);
    }
    let mut wanted: Vec<String> = [&b"{}"[..], b"alone", b"inside", b"sbom"].map(|blob| Digest::of(blob).hex()).into();
    wanted.sort();
    assert_eq!(cloud.blobs(), wanted);

    assert_eq!(cloud.status(Method::DELETE, "/v2/default/a/manifests/index").await, 202);
    cloud.sweep_until_nothing_is_young().await;
    let mut wanted = [&b"{}"[..], b"alone"].map(|blob| Digest::of(blob).hex());
    wanted.sort();
    assert_eq!(cloud.blobs(), wanted);
}

#[tokio::test]
async fn what_a_package_is_made_of_stays_until_the_package_goes_and_old_builds_are_dropped() {
    let cloud = Cloud::start(&format!("{GRACE}\nkeep_builds = 2")).await;
    let (client, disk) = (cloud.client("form-pack-manager"), cloud.push("default/a", b"a root disk").await);
    let spec = PackageSpec {
        digest: Digest::of(b"manifest").to_string(),
        root_disk: Some(RootDisk { digest: disk.to_string(), image_digest: disk.to_string(), size: 11 }),
        sizes: Some(Sizes { vcpu: 1, memory_mib: 64, disk_mib: 16 }),
        entrypoint: vec!["/a".into()],
        ..Default::default()
    };
    let package = client.apply(Object::<kinds::Package>::new("default", "a", spec)).await.unwrap();
    for number in 0..4_u64 {
        let name = format!("b{number}");
        // No context is there, so each of them fails at once.
        let spec = BuildSpec { context: Digest::of(b"none").to_string(), package: "b".into(), ..Default::default() };
        let mut build = client.apply(Object::<kinds::Build>::new("default", &name, spec)).await.unwrap();
        while build.status.phase() != Phase::Failed {
            tokio::time::sleep(Duration::from_millis(10)).await;
            build = client.get::<kinds::Build>("default", &name).await.unwrap();
        }
        build.status.finished_at = Some(timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(number)));
        build.meta.revision = 0;
        client.update_status(build).await.unwrap();
    }
    cloud.sweep_until_nothing_is_young().await;
    assert_eq!(cloud.blobs(), [disk.hex()]);
    let left = client.list::<kinds::Build>("default").await.unwrap().items;
    let mut left: Vec<_> = left.into_iter().map(|build| build.meta.name).collect();
    left.sort();
    assert_eq!(left, ["b2", "b3"]);
    client.delete::<kinds::Package>(&package.meta).await.unwrap();
    cloud.sweep_until_nothing_is_young().await;
    assert!(cloud.blobs().is_empty());
}

#[tokio::test]
async fn an_upload_that_nobody_comes_back_for_is_dropped() {
    let cloud = Cloud::start("upload_seconds = 1").await;
    let answer = cloud.ask(Method::POST, "/v2/default/a/blobs/uploads/").send().await.unwrap();
    let at = answer.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(cloud.ask(Method::PATCH, &at).body("half").send().await.unwrap().status(), 202);
    assert_eq!(std::fs::read_dir(cloud.store().join("tmp")).unwrap().count(), 1);
    while cloud.sweep().await["uploads"] != 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(std::fs::read_dir(cloud.store().join("tmp")).unwrap().count(), 0);
    assert_eq!(cloud.get(&at).await.status(), 404);
}

/// Pushes images for ever, each under a tag that changes, while others sweep; what was acknowledged goes into `tags`.
/// Every step may be cut by a kill.
async fn push_for_ever(http: reqwest::Client, base: String, token: String, who: usize, tags: Tags, seed: u64) {
    let mut random = Random(seed);
    loop {
        let number = random.next() % 4;
        let (repository, tag) = (format!("default/r{}", who % 2), format!("t{who}-{number}"));
        let layer = vec![b'a' + (random.next() % 26) as u8; 1 + (random.next() % 200_000) as usize];
        let pushed = async {
            for blob in [&b"{}"[..], &layer] {
                let url = format!("{base}/v2/{repository}/blobs/uploads/?digest={}", Digest::of(blob));
                let answer = http.post(url).bearer_auth(&token).body(blob.to_vec()).send().await.ok()?;
                (answer.status() == 201).then_some(())?;
            }
            let manifest = image(Digest::of(b"{}"), &[(Digest::of(&layer), layer.len())]).to_string();
            let url = format!("{base}/v2/{repository}/manifests/{tag}");
            // From here until the answer, either image may be the tag's.
            tags.lock().unwrap().entry((repository.clone(), tag.clone())).or_default().possible.push(manifest.clone());
            let put = http.put(url).bearer_auth(&token).header("content-type", IMAGE).body(manifest.clone());
            let answer = put.send().await.ok()?;
            assert_eq!(answer.status(), 201, "a push lost its blobs to a sweep");
            let mut tags = tags.lock().unwrap();
            let known = tags.get_mut(&(repository.clone(), tag.clone())).unwrap();
            let place = known.possible.iter().rposition(|known| *known == manifest).unwrap();
            known.possible.drain(..place);
            known.is_acknowledged = true;
            Some(())
        };
        if pushed.await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

type Tags = Arc<Mutex<HashMap<(String, String), Tag>>>;

#[derive(Clone, Default)]
struct Tag {
    /// What it may stand for: the last that was acknowledged, and those whose answer was cut off after it.
    possible: Vec<String>,
    is_acknowledged: bool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_amid_pushes_and_sweeps_lose_no_blob_that_a_tag_reaches_and_leave_none_over() {
    let mut cloud = Cloud::start(GRACE).await;
    let tags = Tags::default();
    let mut pushers = Vec::new();
    for who in 0..4 {
        let (http, base, token) = (cloud.http.clone(), cloud.url(""), cloud.admin.clone());
        pushers.push(tokio::spawn(push_for_ever(http, base, token, who, Arc::clone(&tags), 7 + who as u64)));
    }
    let sweeper = tokio::spawn({
        let (http, url, token) = (cloud.http.clone(), cloud.url("/v1/sweeps"), cloud.admin.clone());
        async move {
            loop {
                let _ = http.post(&url).bearer_auth(&token).send().await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    let mut random = Random(42);
    for _ in 0..100 {
        cloud.is_ready().await;
        tokio::time::sleep(Duration::from_millis(random.next() % 300)).await;
        cloud.kill().await;
    }
    cloud.is_ready().await;
    sweeper.abort();
    for pusher in pushers {
        pusher.abort();
        assert!(!pusher.await.is_err_and(|error| error.is_panic()), "a pusher saw something wrong");
    }
    cloud.sweep_until_nothing_is_young().await;

    let known = tags.lock().unwrap().clone();
    assert!(known.len() >= 8, "the pushers got to {} tags", known.len());
    let mut reached = std::collections::BTreeSet::new();
    for ((repository, tag), Tag { possible, is_acknowledged }) in &known {
        let answer = cloud.get(&format!("/v2/{repository}/manifests/{tag}")).await;
        if answer.status() == 404 {
            assert!(!is_acknowledged, "{repository}:{tag} is lost");
            continue;
        }
        let text = answer.text().await.unwrap();
        assert!(possible.contains(&text), "{repository}:{tag} is an image that it may not be any more");
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
            let digest: Digest = blob["digest"].as_str().unwrap().parse().unwrap();
            let blob = cloud.get(&format!("/v2/{repository}/blobs/{digest}")).await;
            assert_eq!(blob.status(), 200);
            assert_eq!(Digest::of(&blob.bytes().await.unwrap()), digest);
            reached.insert(digest.hex());
        }
    }
    assert_eq!(cloud.blobs(), reached.into_iter().collect::<Vec<_>>(), "exactly what a tag reaches is left");
    assert_eq!(std::fs::read_dir(cloud.store().join("tmp")).unwrap().count(), 0);
}
