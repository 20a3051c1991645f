//! The registry, over TLS, by hand: each workflow of the distribution-spec, and each thing that may be wrong with it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

mod common;

use common::{Cloud, IMAGE, INDEX, code, descriptor, image};
use form_rootfs::{Algorithm, Digest};
use form_types::v1::build_status::Phase;
use form_types::v1::{BuildSpec, NodeSpec};
use form_types::{Object, kinds};
use reqwest::Method;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const UPLOADS: &str = "/v2/default/a/blobs/uploads/";

fn header<'a>(answer: &'a reqwest::Response, name: &str) -> &'a str {
    answer.headers().get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
}

async fn begin(cloud: &Cloud) -> String {
    let answer = cloud.ask(Method::POST, UPLOADS).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    header(&answer, "location").to_owned()
}

async fn chunk(cloud: &Cloud, at: &str, range: &str, bytes: &str) -> reqwest::Response {
    cloud.ask(Method::PATCH, at).header("content-range", range).body(bytes.to_owned()).send().await.unwrap()
}

#[tokio::test]
async fn a_blob_is_pushed_whole_in_one_request_in_two_and_in_chunks_and_pulled_back() {
    let cloud = Cloud::start("").await;
    for (contents, algorithm) in [("one", Algorithm::Sha256), ("two", Algorithm::Sha512), ("", Algorithm::Sha256)] {
        let digest = algorithm.digest(contents.as_bytes());
        let path = format!("{UPLOADS}?digest={digest}");
        let single = cloud.ask(Method::POST, &path).body(contents).send().await.unwrap();
        assert_eq!(
            (single.status().as_u16(), header(&single, "location")),
            (201, &*format!("/v2/default/a/blobs/{digest}"))
        );
    }

    let whole = Digest::of(b"whole");
    let at = begin(&cloud).await;
    let put = cloud.ask(Method::PUT, &format!("{at}?digest={whole}")).body("whole").send().await.unwrap();
    assert_eq!((put.status().as_u16(), header(&put, "docker-content-digest")), (201, &*whole.to_string()));

    let parts = Algorithm::Sha512.digest(b"in three parts");
    let at = begin(&cloud).await;
    let first = chunk(&cloud, &at, "0-2", "in ").await;
    assert_eq!((first.status().as_u16(), header(&first, "range")), (202, "0-2"));
    for wrong in ["0-5", "4-9", "x-y", "9-3", "3"] {
        let refused = chunk(&cloud, &at, wrong, "three ").await;
        assert_eq!((refused.status().as_u16(), header(&refused, "range")), (416, "0-2"), "{wrong}");
    }
    let status = cloud.get(&at).await;
    assert_eq!((status.status().as_u16(), header(&status, "range")), (204, "0-2"));
    assert_eq!(chunk(&cloud, &at, "3-8", "three ").await.status(), 202);
    let put = cloud.ask(Method::PUT, &format!("{at}?digest={parts}")).header("content-range", "9-13").body("parts");
    assert_eq!(put.send().await.unwrap().status(), 201);
    assert_eq!(cloud.get(&at).await.status(), 404, "it is over");

    let blob = cloud.get(&format!("/v2/default/a/blobs/{parts}")).await;
    assert_eq!((blob.status().as_u16(), header(&blob, "docker-content-digest")), (200, &*parts.to_string()));
    assert_eq!(blob.text().await.unwrap(), "in three parts");
    let head = cloud.ask(Method::HEAD, &format!("/v2/default/a/blobs/{whole}")).send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "5"));
}

#[tokio::test]
async fn a_part_of_a_blob_is_pulled_by_its_range() {
    let cloud = Cloud::start("").await;
    let digest = cloud.push("default/a", b"0123456789").await;
    let path = format!("/v2/default/a/blobs/{digest}");
    for (range, status, part) in [
        ("bytes=2-4", 206, "234"),
        ("bytes=7-", 206, "789"),
        ("bytes=-2", 206, "89"),
        ("bytes=8-99", 206, "89"),
        ("bytes=10-", 416, ""),
        ("bytes=99-100", 416, ""),
        ("lines=1-2", 200, "0123456789"),
        ("bytes=nonsense", 200, "0123456789"),
    ] {
        let answer = cloud.ask(Method::GET, &path).header("range", range).send().await.unwrap();
        assert_eq!(answer.status(), status, "{range}");
        if status == 416 {
            assert_eq!(header(&answer, "content-range"), "bytes */10");
        } else {
            if status == 206 {
                assert!(header(&answer, "content-range").ends_with("/10"));
            }
            assert_eq!(answer.text().await.unwrap(), part, "{range}");
        }
    }
}

#[tokio::test]
async fn a_manifest_is_pushed_by_tag_and_by_digest_listed_pulled_and_deleted() {
    let cloud = Cloud::start("").await;
    let digest = cloud.image("default/a", "v2", b"layer").await;
    for tag in ["v10", "v1", "Z"] {
        assert_eq!(cloud.image("default/a", tag, b"layer").await, digest);
    }
    let list = cloud.get("/v2/default/a/tags/list").await.json::<Value>().await.unwrap();
    assert_eq!(list, json!({"name": "default/a", "tags": ["Z", "v1", "v10", "v2"]}));
    let mut seen = Vec::new();
    let mut next = Some("/v2/default/a/tags/list?n=3".to_owned());
    while let Some(path) = next {
        let page = cloud.get(&path).await;
        next =
            page.headers().get("link").map(|link| link.to_str().unwrap().split(['<', '>']).nth(1).unwrap().to_owned());
        seen.extend(page.json::<Value>().await.unwrap()["tags"].as_array().unwrap().clone());
    }
    assert_eq!(seen, ["Z", "v1", "v10", "v2"]);
    let none = cloud.get("/v2/default/a/tags/list?n=0").await;
    assert!(none.headers().get("link").is_none());
    assert_eq!(none.json::<Value>().await.unwrap()["tags"], json!([]));

    for reference in ["v1".to_owned(), digest.to_string()] {
        let path = format!("/v2/default/a/manifests/{reference}");
        let (got, head) = (cloud.get(&path).await, cloud.ask(Method::HEAD, &path).send().await.unwrap());
        for answer in [&got, &head] {
            assert_eq!(answer.status(), 200);
            assert_eq!(header(answer, "docker-content-digest"), digest.to_string());
            assert_eq!(header(answer, "content-type"), IMAGE);
        }
        assert_eq!(header(&head, "content-length"), got.bytes().await.unwrap().len().to_string());
    }

    // By a digest of the other kind, and several tags at once.
    let manifest = image(Digest::of(b"{}"), &[(Digest::of(b"layer"), 5)]);
    let other = Algorithm::Sha512.digest(manifest.to_string().as_bytes());
    let put = cloud.put("default/a", &format!("{other}?tag=x&tag=y"), IMAGE, &manifest).await;
    assert_eq!((put.status().as_u16(), header(&put, "oci-tag")), (201, "x, y"));
    assert_eq!(header(&cloud.get("/v2/default/a/manifests/x").await, "docker-content-digest"), other.to_string());

    assert_eq!(cloud.status(Method::DELETE, "/v2/default/a/manifests/v1").await, 202);
    assert_eq!(cloud.status(Method::GET, "/v2/default/a/manifests/v1").await, 404);
    assert_eq!(cloud.status(Method::DELETE, "/v2/default/a/manifests/v1").await, 404);
    assert_eq!(cloud.status(Method::DELETE, &format!("/v2/default/a/manifests/{digest}")).await, 202);
    for gone in ["v2".to_owned(), "Z".to_owned(), digest.to_string()] {
        assert_eq!(cloud.status(Method::GET, &format!("/v2/default/a/manifests/{gone}")).await, 404, "{gone}");
    }
    let layer = format!("/v2/default/a/blobs/{}", Digest::of(b"layer"));
    assert_eq!(cloud.status(Method::DELETE, &layer).await, 202);
    assert_eq!(cloud.status(Method::GET, &layer).await, 404);
}

#[tokio::test]
async fn referrers_are_listed_by_their_subject_and_filtered_by_their_type() {
    let cloud = Cloud::start("").await;
    let subject = Digest::of(b"not pushed yet");
    let path = format!("/v2/default/a/referrers/{subject}");
    let empty = cloud.get(&path).await;
    assert_eq!((empty.status().as_u16(), header(&empty, "content-type")), (200, INDEX));
    assert_eq!(empty.json::<Value>().await.unwrap()["manifests"], json!([]));

    let config = cloud.push("default/a", b"{}").await;
    for kind in ["a/sbom", "a/signature"] {
        let mut manifest = image(config, &[]);
        manifest["artifactType"] = kind.into();
        manifest["subject"] = descriptor(IMAGE, subject, 3);
        manifest["annotations"] = json!({"kind": kind});
        let digest = Digest::of(manifest.to_string().as_bytes());
        let put = cloud.put("default/a", &digest.to_string(), IMAGE, &manifest).await;
        assert_eq!((put.status().as_u16(), header(&put, "oci-subject")), (201, &*subject.to_string()));
    }
    let all = cloud.get(&path).await.json::<Value>().await.unwrap();
    assert_eq!(all["manifests"].as_array().unwrap().len(), 2);
    let filtered = cloud.get(&format!("{path}?artifactType=a/sbom")).await;
    assert_eq!(header(&filtered, "oci-filters-applied"), "artifactType");
    let found = filtered.json::<Value>().await.unwrap()["manifests"].as_array().unwrap().clone();
    assert_eq!(
        (found.len(), &found[0]["artifactType"], &found[0]["annotations"]["kind"]),
        (1, &json!("a/sbom"), &json!("a/sbom"))
    );
    let gone = format!("/v2/default/a/manifests/{}", found[0]["digest"].as_str().unwrap());
    assert_eq!(cloud.status(Method::DELETE, &gone).await, 202);
    assert_eq!(cloud.get(&path).await.json::<Value>().await.unwrap()["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(cloud.status(Method::GET, "/v2/default/a/referrers/sha256:x").await, 400);
}

#[tokio::test]
async fn bad_input_is_refused_with_the_specifications_code_and_leaves_nothing() {
    let cloud = Cloud::start("max_blob_mib = 1\nmax_uploads = 3").await;
    let (right, wrong) = (Digest::of(b"right"), Digest::of(b"wrong"));
    let lying = cloud.ask(Method::POST, &format!("{UPLOADS}?digest={wrong}")).body("right").send().await.unwrap();
    assert_eq!((lying.status().as_u16(), &*code(lying).await), (400, "DIGEST_INVALID"));
    let at = begin(&cloud).await;
    let lying = cloud.ask(Method::PUT, &format!("{at}?digest={wrong}")).body("right").send().await.unwrap();
    assert_eq!((lying.status().as_u16(), &*code(lying).await), (400, "DIGEST_INVALID"));
    assert_eq!(cloud.get(&at).await.status(), 404, "such an upload is over");
    for digest in ["", "md5:00", "sha256:XX", "sha256:../../etc/passwd"] {
        let at = begin(&cloud).await;
        let refused = cloud.ask(Method::PUT, &format!("{at}?digest={digest}")).body("right").send().await.unwrap();
        assert_eq!((refused.status().as_u16(), &*code(refused).await), (400, "DIGEST_INVALID"), "{digest}");
        assert_eq!(cloud.status(Method::DELETE, &at).await, 204);
        assert_eq!(cloud.status(Method::DELETE, &at).await, 404);
    }
    let at = begin(&cloud).await;
    let short = chunk(&cloud, &at, "0-9", "right").await;
    assert_eq!((short.status().as_u16(), &*code(short).await), (400, "SIZE_INVALID"));
    let large = cloud.ask(Method::PATCH, &at).body(vec![0; (1 << 20) + 1]).send().await.unwrap();
    assert_eq!((large.status().as_u16(), &*code(large).await), (413, "SIZE_INVALID"));

    for bad in ["default/A", "default/..", "default", "default//a", "default/a/../../../etc", "default/%2e%2e/b"] {
        let answer =
            cloud.http.get(cloud.url(&format!("/v2/{bad}/tags/list"))).bearer_auth(&cloud.admin).send().await.unwrap();
        assert!(matches!(answer.status().as_u16(), 400 | 404), "{bad}: {}", answer.status());
    }
    for bad in ["-x", ".x", "a b", &"x".repeat(129)] {
        assert_eq!(cloud.put("default/a", bad, IMAGE, &json!({})).await.status(), 400, "{bad}");
    }
    let missing = cloud.put("default/a", "v1", IMAGE, &image(right, &[])).await;
    assert_eq!((missing.status().as_u16(), &*code(missing).await), (404, "MANIFEST_BLOB_UNKNOWN"));
    let absent = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(IMAGE, right, 5)]});
    assert_eq!(code(cloud.put("default/a", "v1", INDEX, &absent).await).await, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(code(cloud.put("default/a", "v1", IMAGE, &json!({"schemaVersion": 2})).await).await, "MANIFEST_INVALID");
    assert_eq!(cloud.put("default/a", "v1", "text/plain", &json!({"schemaVersion": 2})).await.status(), 415);
    assert_eq!(
        code(cloud.put("default/a", &wrong.to_string(), IMAGE, &image(right, &[])).await).await,
        "DIGEST_INVALID"
    );
    let huge = json!({"schemaVersion": 2, "annotations": {"x": "x".repeat(4 << 20)}});
    assert_eq!(cloud.put("default/a", "v1", IMAGE, &huge).await.status(), 413);
    assert_eq!(code(cloud.get("/v2/default/a/manifests/v1").await).await, "MANIFEST_UNKNOWN");
    assert_eq!(code(cloud.get("/v2/default/a/tags/list").await).await, "NAME_UNKNOWN");
    assert_eq!(code(cloud.get(&format!("/v2/default/a/blobs/{right}")).await).await, "BLOB_UNKNOWN");
    assert_eq!(cloud.status(Method::POST, "/v2/nowhere/a/blobs/uploads/").await, 404);
    assert_eq!(cloud.status(Method::PUT, "/v2/default/a/tags/list").await, 405);

    // Each of the three is still there to be gone on with, and a fourth has to wait.
    for _ in 0..3 {
        begin(&cloud).await;
    }
    let many = cloud.ask(Method::POST, UPLOADS).send().await.unwrap();
    assert_eq!((many.status().as_u16(), &*code(many).await), (429, "TOOMANYREQUESTS"));
    assert!(cloud.blobs().is_empty());
    assert_eq!(std::fs::read_dir(cloud.store().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_mirror_takes_manifests_that_name_what_it_has_not() {
    let cloud = Cloud::start("sparse_manifests = true").await;
    let (here, elsewhere) = (cloud.push("default/a", b"here").await, Digest::of(b"elsewhere"));
    let hidden = cloud.push("default/b", b"hidden").await;
    assert_eq!(cloud.put("default/a", "v1", IMAGE, &image(here, &[(elsewhere, 9), (hidden, 6)])).await.status(), 201);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(IMAGE, elsewhere, 9)]});
    assert_eq!(cloud.put("default/a", "all", INDEX, &index).await.status(), 201);
    assert_eq!(cloud.status(Method::GET, "/v2/default/a/manifests/v1").await, 200);
    let blob = |digest| format!("/v2/default/a/blobs/{digest}");
    assert_eq!(cloud.status(Method::GET, &blob(here)).await, 200);
    assert_eq!(cloud.status(Method::GET, &blob(elsewhere)).await, 404);
    assert_eq!(cloud.status(Method::GET, &blob(hidden)).await, 404, "to be named gives nobody access");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_blob_and_is_gone_on_from_where_it_broke() {
    let cloud = Cloud::start("").await;
    let at = begin(&cloud).await;
    let tcp = tokio::net::TcpStream::connect(cloud.pack).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(cloud.dir.path().join("certs/ca.crt")).unwrap();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut tls = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await.unwrap();
    let head = format!(
        "PATCH {at} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: 100\r\n\r\n0123",
        cloud.admin
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    tls.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = tls.read_to_end(&mut rest).await;
    drop(tls);
    while header(&cloud.get(&at).await, "range") != "0-3" {
        tokio::task::yield_now().await;
    }
    assert!(cloud.blobs().is_empty());
    assert_eq!(chunk(&cloud, &at, "4-5", "45").await.status(), 202);
    let digest = Digest::of(b"012345");
    assert_eq!(cloud.ask(Method::PUT, &format!("{at}?digest={digest}")).send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn a_hundred_pushes_at_once_take_little_memory() {
    const BYTES: usize = 4 << 20;
    let cloud = Cloud::start("").await;
    let digest = Digest::of(&vec![7; BYTES]);
    // All are in the middle at one moment.
    let middle = std::sync::Arc::new(tokio::sync::Barrier::new(100));
    let push = |middle: std::sync::Arc<tokio::sync::Barrier>| {
        let pieces = futures::stream::unfold(0, move |sent: usize| {
            let middle = std::sync::Arc::clone(&middle);
            async move {
                if sent == BYTES / 2 {
                    middle.wait().await;
                }
                (sent < BYTES).then(|| (Ok::<_, std::io::Error>(vec![7; 64 << 10]), sent + (64 << 10)))
            }
        });
        // A connection of its own.
        let ca = std::fs::read(cloud.dir.path().join("certs/ca.crt")).unwrap();
        let ca = reqwest::Certificate::from_pem(&ca).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
        let post = http.post(cloud.url(&format!("{UPLOADS}?digest={digest}"))).bearer_auth(&cloud.admin);
        let sent = post.body(reqwest::Body::wrap_stream(pieces)).send();
        async move { sent.await.unwrap().status().as_u16() }
    };
    let resident = |what: &str| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", cloud.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() >> 10
    };
    let before = resident("VmRSS:");
    let statuses = futures::future::join_all((0..100).map(|_| push(std::sync::Arc::clone(&middle)))).await;
    assert_eq!(statuses, [201; 100]);
    let most = resident("VmHWM:");
    println!("{most} MiB at most, {before} before");
    // The released program goes from 24 to 61.
    assert!(most - before < 49, "{before} MiB became {most}");
}

#[tokio::test]
async fn viewers_pull_editors_push_and_nobody_sees_another_project() {
    let cloud = Cloud::start("").await;
    cloud.make("projects", "other", json!({})).await;
    let digest = cloud.push("default/a", b"secret of default").await;
    cloud.push("default/b", b"{}").await;
    let token = async |name: &str, project: &str, role: &str| {
        cloud.token(name, json!({"project": project, "role": role})).await
    };
    let (viewer, editor) = (token("v", "default", "viewer").await, token("e", "other", "editor").await);
    let over = json!({"project": "default", "role": "editor", "expiresAt": "2020-01-01T00:00:00Z"});
    let expired = cloud.token("old", over).await;
    let blob = format!("/v2/default/a/blobs/{digest}");
    let mount = format!("/v2/other/a/blobs/uploads/?mount={digest}&from=default/a");
    let guess = format!("/v2/other/a/blobs/{digest}");
    for (who, token, method, path, status) in [
        ("viewer", &viewer, Method::GET, &blob, 200),
        ("viewer", &viewer, Method::POST, &UPLOADS.to_owned(), 403),
        ("viewer", &viewer, Method::DELETE, &blob, 403),
        ("another's editor", &editor, Method::GET, &blob, 403),
        ("another's editor", &editor, Method::GET, &"/v2/default/nothing/tags/list".to_owned(), 403),
        ("another's editor", &editor, Method::POST, &mount, 202),
        ("another's editor", &editor, Method::GET, &guess, 404),
        ("expired", &expired, Method::GET, &blob, 401),
        ("made up", &"form_x_y".to_owned(), Method::GET, &blob, 401),
    ] {
        let answer = cloud.http.request(method, cloud.url(path)).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), status, "{who} {path}");
    }
    // The admin of all may mount across; without a source, the upload begins.
    let mounted = cloud.ask(Method::POST, &mount).send().await.unwrap();
    assert_eq!(mounted.status(), 201);
    assert_eq!(cloud.get(&guess).await.text().await.unwrap(), "secret of default");
    let nowhere = cloud.ask(Method::POST, &format!("/v2/other/b/blobs/uploads/?mount={digest}")).send().await.unwrap();
    assert_eq!(nowhere.status(), 202);

    // The way of Docker's clients: nothing, a challenge, a password, a token.
    let nobody = cloud.http.get(cloud.url("/v2/")).send().await.unwrap();
    assert_eq!(nobody.status(), 401);
    let realm = header(&nobody, "www-authenticate").split('"').nth(1).unwrap().to_owned();
    assert_eq!(realm, cloud.url("/v2/token"));
    let given = cloud.http.get(&realm).basic_auth("anybody", Some(&viewer)).send().await.unwrap();
    let given = given.json::<Value>().await.unwrap()["token"].as_str().unwrap().to_owned();
    assert_eq!(cloud.http.get(cloud.url("/v2/")).bearer_auth(given).send().await.unwrap().status(), 200);
    assert_eq!(cloud.http.get(&realm).basic_auth("anybody", Some("wrong")).send().await.unwrap().status(), 401);

    // A service shows its certificate, and needs no token to pull.
    let mut config = cloud.identity("vmm-service").client().unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let service = reqwest::Client::builder().tls_backend_preconfigured(config).build().unwrap();
    assert_eq!(service.get(cloud.url(&blob)).send().await.unwrap().status(), 403, "its node is not in the cluster");
    let node = Object::<kinds::Node>::new("", "one", NodeSpec::default());
    cloud.client("vmm-service").apply(node).await.unwrap();
    assert_eq!(service.get(cloud.url(&blob)).send().await.unwrap().status(), 200);
    assert_eq!(service.post(cloud.url(UPLOADS)).send().await.unwrap().status(), 403);

    let log = std::fs::read_to_string(cloud.dir.path().join("log")).unwrap();
    for token in [&cloud.admin, &viewer, &editor, &expired] {
        assert!(!log.contains(token.as_str()), "a token is in the log");
    }
}

#[tokio::test]
async fn of_two_pushes_of_one_tag_at_once_one_wins_whole() {
    let cloud = Cloud::start("").await;
    let config = cloud.push("default/a", b"{}").await;
    let manifests: Vec<Value> = (0..8)
        .map(|number| {
            let mut manifest = image(config, &[]);
            manifest["annotations"] = json!({"number": "x".repeat(number * 10_000)});
            manifest
        })
        .collect();
    for _ in 0..5 {
        let all = manifests.iter().map(|manifest| cloud.put("default/a", "v1", IMAGE, manifest));
        for answer in futures::future::join_all(all).await {
            assert_eq!(answer.status(), 201);
        }
        let got = cloud.get("/v2/default/a/manifests/v1").await;
        let said = header(&got, "docker-content-digest").to_owned();
        let bytes = got.bytes().await.unwrap();
        assert_eq!(Digest::of(&bytes).to_string(), said);
        assert!(manifests.iter().any(|manifest| manifest.to_string().as_bytes() == bytes));
    }
}

#[tokio::test]
async fn what_was_built_is_an_image_and_image_and_package_go_together() {
    // Nothing is kept for the next build.
    let cloud = Cloud::start("grace_seconds = 4\nsweep_seconds = 86400\ncache_mib = 0").await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("Formfile"), "FROM scratch\nCOPY a /a\nENTRYPOINT [\"/a\"]\n").unwrap();
    std::fs::write(dir.path().join("a"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(dir.path().join("a"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let client = cloud.client("form-pack-manager");
    let tar = form_pack_manager::context::pack_context(dir.path(), Vec::new()).unwrap();
    let built = async |name: &str| {
        let context = cloud.ask(Method::POST, "/v1/projects/default/contexts").body(tar.clone()).send().await.unwrap();
        let context = context.json::<Value>().await.unwrap()["digest"].as_str().unwrap().to_owned();
        let spec = BuildSpec { context, package: "hello".into(), ..Default::default() };
        let mut build = client.apply(Object::<kinds::Build>::new("default", name, spec)).await.unwrap();
        while build.status.phase() != Phase::Succeeded {
            assert_ne!(build.status.phase(), Phase::Failed, "{}", build.status.message);
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            build = client.get::<kinds::Build>("default", name).await.unwrap();
        }
        build
    };
    let package = async || client.get::<kinds::Package>("default", "hello").await;
    let build = built("one").await;
    let image = cloud.get("/v2/default/hello/manifests/latest").await;
    assert_eq!(header(&image, "docker-content-digest"), build.status.digest);
    let image = image.json::<Value>().await.unwrap();
    for blob in image["layers"].as_array().unwrap().iter().chain([&image["config"]]) {
        let digest = blob["digest"].as_str().unwrap();
        let pulled = cloud.get(&format!("/v2/default/hello/blobs/{digest}")).await.bytes().await.unwrap();
        assert_eq!(Digest::of(&pulled).to_string(), digest);
    }
    assert_eq!(package().await.unwrap().spec.digest, build.status.digest);
    assert_eq!(cloud.status(Method::DELETE, "/v2/default/hello/manifests/latest").await, 202);
    assert!(matches!(package().await, Err(form_client::Error::NotFound(_))));

    built("two").await;
    cloud.sweep_until_nothing_is_young().await;
    assert_eq!(cloud.status(Method::GET, "/v2/default/hello/manifests/latest").await, 200);
    client.delete::<kinds::Package>(&package().await.unwrap().meta).await.unwrap();
    cloud.sweep_until_nothing_is_young().await;
    assert_eq!(cloud.status(Method::GET, "/v2/default/hello/manifests/latest").await, 404);
    assert!(cloud.blobs().is_empty(), "{:?}", cloud.blobs());
}

#[tokio::test]
async fn a_build_context_that_is_too_large_is_refused_whether_it_says_its_length_or_not() {
    let cloud = Cloud::start("max_context_mib = 1").await;
    let large = vec![0_u8; (1 << 20) + 1];
    let chunks = futures::stream::iter(large.chunks(64 << 10).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())));
    let chunks: Vec<_> = futures::StreamExt::collect(chunks).await;
    for body in [reqwest::Body::from(large), reqwest::Body::wrap_stream(futures::stream::iter(chunks))] {
        let answer = cloud.ask(Method::POST, "/v1/projects/default/contexts").body(body).send().await.unwrap();
        assert_eq!(answer.status(), 413);
        assert_eq!(answer.json::<Value>().await.unwrap()["type"], "/problems/too-large");
    }
    assert!(cloud.blobs().is_empty());
}

#[tokio::test]
async fn pushes_pulls_bytes_and_sweeps_are_counted() {
    let cloud = Cloud::start("").await;
    let digest = cloud.push("default/a", b"0123456789").await;
    cloud.get(&format!("/v2/default/a/blobs/{digest}")).await.bytes().await.unwrap();
    cloud.sweep().await;
    let metrics = cloud.http.get(cloud.url("/metrics")).send().await.unwrap().text().await.unwrap();
    for line in [
        "form_registry_pushes_total{what=\"blob\"} 1",
        "form_registry_pulls_total{what=\"blob\"} 1",
        "form_registry_bytes_total{direction=\"in\"} 10",
        "form_registry_bytes_total{direction=\"out\"} 10",
        "form_registry_sweeps_total",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}
