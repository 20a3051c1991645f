//! The REST API as those who use it see it, against the real thing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::time::{Duration, SystemTime};

use common::{Cloud, Http, instance, network};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

const NETWORKS: &str = "/v1/projects/default/networks";

fn names(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_resource_is_made_read_changed_and_deleted() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let made = admin.post(NETWORKS, network("blue")).await;
    assert_eq!((made.status, made.headers["location"].to_str().unwrap()), (201, "/v1/projects/default/networks/blue"));
    assert_eq!(made.etag(), format!("\"{}\"", made.revision()));
    assert_eq!((&made.body["generation"], &made.body["kind"]), (&json!(1), &json!("Network")));

    let address = format!("{NETWORKS}/blue");
    let read = admin.get(&address).await;
    assert_eq!((read.status, &read.body, read.etag()), (200, &made.body, made.etag()));
    assert_eq!(names(&admin.get(NETWORKS).await.body), ["blue", "default"]);
    assert_eq!(admin.post(NETWORKS, network("blue")).await.problem().1, "already-exists");

    let spec = json!({"spec": {"description": "another"}});
    let changed = admin.put_if(&address, ("if-match", &made.etag()), spec.clone()).await.ok();
    assert_eq!((changed.status, &changed.body["generation"]), (200, &json!(2)));
    assert_eq!(changed.body["uid"], made.body["uid"]);
    let same = admin.put(&address, spec.clone()).await;
    assert_eq!(same.etag(), changed.etag(), "nothing changed, so nothing was written");

    let stale = admin.put_if(&address, ("if-match", &made.etag()), spec.clone()).await.problem();
    assert_eq!((stale.0, stale.1.as_str()), (412, "revision-conflict"));
    let stale = admin.send(admin.request(Method::DELETE, &address).header("if-match", made.etag())).await.unwrap();
    assert_eq!(stale.problem().0, 412);
    assert_eq!(admin.put_if(&address, ("if-match", "never"), spec.clone()).await.problem().0, 400);

    assert_eq!(admin.delete(&address).await.status, 200);
    assert_eq!(admin.get(&address).await.problem().1, "not-found");
    assert_eq!(admin.delete(&address).await.problem().0, 404);
    assert_eq!(admin.put_if(&address, ("if-match", "*"), spec.clone()).await.problem().0, 404);
    let again = admin.put_if(&address, ("if-none-match", "*"), spec.clone()).await;
    assert_eq!(again.status, 201);
    assert_ne!(again.body["uid"], made.body["uid"], "another of the same name");
    assert_eq!(admin.put_if(&address, ("if-none-match", "*"), spec.clone()).await.problem().0, 412);
    assert_eq!(admin.put_if(&address, ("if-match", "*"), spec).await.status, 200);
    assert_eq!(admin.put(&format!("{NETWORKS}/green"), network("green")).await.status, 201);
}

#[tokio::test]
async fn a_creation_that_is_repeated_with_its_key_is_one_creation() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let create = |key: &str, body: Value| {
        let request = admin.request(Method::POST, NETWORKS).header("idempotency-key", key).json(&body);
        let admin = admin.clone();
        async move { admin.send(request).await.unwrap() }
    };
    for round in 0..30 {
        let name = format!("n{round}");
        let answers = join_all((0..8).map(|_| create(&name, network(&name)))).await;
        assert!(answers.iter().all(|answer| answer.status == 201 && answer.body == answers[0].body), "{answers:?}");
    }
    assert_eq!(create("n1", network("green")).await.bad_fields(), ["Idempotency-Key"]);
    assert_eq!(create("other", network("n1")).await.problem().1, "already-exists");
}

#[tokio::test]
async fn every_bad_field_is_named_at_once() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let at = "/v1/projects/default/instances";
    let spec = json!({"package": "A b", "vcpu": 0, "env": {"1A": "x"}, "grace_seconds": 9999});
    let body = json!({"name": "Web", "labels": {"a b": "c"}, "spec": spec});
    let fields = admin.post(at, body).await.bad_fields();
    let wanted = ["name", "labels.a b", "spec.package", "spec.vcpu", "spec.env.1A", "spec.grace_seconds"];
    assert_eq!(fields, wanted);
    for (body, at_path, field) in [
        (json!({"name": "web", "spec": {"package": "a", "cpu": 1}}), "spec.cpu", "spec.cpu"),
        (json!({"name": "web", "spek": {}}), "spek", "spek"),
        (json!({"name": "web", "spec": {"package": "a", "vcpu": "many"}}), "spec.vcpu", "invalid digit"),
    ] {
        let refused = admin.post(at, body).await;
        assert_eq!(refused.bad_fields(), [at_path]);
        assert!(refused.problem().2.contains(field), "{refused:?}");
    }
    let other = admin.post(at, json!({"name": "web", "kind": "Network", "project": "p"})).await;
    assert_eq!(other.bad_fields(), ["kind"]);
    let network = json!({"name": "web", "spec": {"package": "a", "network": "none"}});
    assert_eq!(admin.post(at, network).await.bad_fields(), ["spec.network"]);
    assert_eq!(admin.post("/v1/projects/nowhere/instances", instance("web")).await.problem().1, "not-found");
    let big = json!({"name": "web", "spec": {"package": "a", "env":
        (0..20).map(|n| (format!("V{n}"), json!("x".repeat(32_000)))).collect::<serde_json::Map<_, _>>()}});
    assert_eq!(admin.post(at, big).await.bad_fields(), [""], "more than a resource may take");
    assert_eq!(names(&admin.get(at).await.body), [""; 0], "and nothing was changed");
}

#[tokio::test]
async fn what_is_no_request_of_ours_is_told_so() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    for body in ["", "{", "nonsense", "{\"name\": \"\u{0}\"", "\u{feff}{}"] {
        let request = admin.request(Method::POST, NETWORKS).body(body);
        assert_eq!(admin.send(request).await.unwrap().problem().1, "bad-request", "{body:?}");
    }
    assert_eq!(admin.post(NETWORKS, json!([1])).await.bad_fields(), [""]);
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(admin.send(admin.request(Method::POST, NETWORKS).body(deep)).await.unwrap().problem().0, 400);
    let large = admin.request(Method::POST, NETWORKS).body(vec![b' '; 5 << 20]);
    assert_eq!(admin.send(large).await.unwrap().problem().1, "too-large");
    let head = admin.send(admin.request(Method::GET, NETWORKS).header("x-large", "x".repeat(32 << 10))).await;
    assert!(head.map_or(true, |answer| answer.status == 431));

    for path in ["/v1/pods", "/v1/instances", "/v1/projects/default/nodes", "/v2/nodes", "/", "/v1/nodes/one/two/three"]
    {
        assert_eq!(admin.get(path).await.problem().0, 404, "{path}");
    }
    assert_eq!(admin.get("/v1/projects/%ff/networks").await.problem().0, 400);
    let method = admin.send(admin.request(Method::PATCH, NETWORKS)).await.unwrap();
    assert_eq!(method.problem().1, "method-not-allowed");
    assert!(method.headers.contains_key("allow"));
    for query in ["?limit=x", "?colour=red", "?limit=-1"] {
        assert_eq!(admin.get(&format!("{NETWORKS}{query}")).await.problem().0, 400, "{query}");
    }
    assert_eq!(admin.get(&format!("{NETWORKS}?label_selector=a%3D,,")).await.bad_fields(), ["label_selector"]);
}

#[tokio::test]
async fn a_list_is_chosen_by_labels_and_comes_in_pages() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    for n in 0..7 {
        let body = json!({"name": format!("n{n}"), "labels": {"odd": (n % 2 == 1).to_string()}, "spec": {}});
        admin.post(NETWORKS, body).await.ok();
    }
    let chosen = admin.get(&format!("{NETWORKS}?label_selector=odd%3Dtrue")).await.body;
    assert_eq!(names(&chosen), ["n1", "n3", "n5"]);
    let others = admin.get(&format!("{NETWORKS}?label_selector=odd,odd!%3Dtrue")).await.body;
    assert_eq!(names(&others), ["n0", "n2", "n4", "n6"]);

    let mut page = String::new();
    let mut all = Vec::new();
    loop {
        let list = admin.get(&format!("{NETWORKS}?limit=3&page={page}")).await.ok().body;
        all.extend(names(&list));
        page = list["next"].as_str().unwrap().to_owned();
        if page.is_empty() {
            break;
        }
    }
    assert_eq!(all, ["default", "n0", "n1", "n2", "n3", "n4", "n5", "n6"]);
}

#[tokio::test]
async fn a_project_goes_only_when_it_is_empty() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    admin.post("/v1/projects", json!({"name": "team", "spec": {}})).await.ok();
    assert_eq!(
        names(&admin.get("/v1/projects/team/networks").await.body),
        ["default"],
        "it has a network from the start"
    );
    assert_eq!(admin.delete("/v1/projects/team/networks/default").await.problem().0, 403);
    admin.post("/v1/projects/team/networks", network("blue")).await.ok();
    let token = admin.token("theirs", json!({"project": "team", "role": "editor"})).await;
    let refused = admin.delete("/v1/projects/team").await.problem();
    assert_eq!((refused.0, refused.1.as_str()), (409, "not-empty"));
    assert!(refused.2.contains("1 Network") && refused.2.contains("1 Token"), "{}", refused.2);
    cloud.person(&token).put("/v1/projects/team/networks/blue", json!({"spec": {}})).await.ok();

    admin.delete("/v1/projects/team/networks/blue").await.ok();
    admin.delete("/v1/tokens/theirs").await.ok();
    assert_eq!(admin.delete("/v1/projects/team").await.status, 200);
    assert_eq!(admin.get("/v1/projects/team").await.status, 404);
    assert_eq!(names(&admin.get("/v1/projects/team/networks").await.body), [""; 0]);
    let (status, _, text) = admin.get("/v1/projects/team/networks/blue").await.problem();
    assert_eq!((status, text.as_str()), (404, "there is no Project team"));
    let home = json!({"name": "late", "spec": {"project": "team", "role": "viewer"}});
    assert_eq!(admin.post("/v1/tokens", home).await.problem().0, 404);
}

#[tokio::test]
async fn a_creation_that_races_a_projects_deletion_leaves_no_orphan() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let (mut gone, mut kept) = (0, 0);
    for round in 0..30 {
        let project = format!("/v1/projects/p{round}");
        admin.put(&project, json!({"spec": {}})).await.ok();
        let networks = format!("{project}/networks");
        let creations = (0..round % 4).map(|n| admin.post(&networks, network(["a", "b", "c"][n])));
        let deletions = (0..2).map(|_| admin.delete(&project));
        let (made, deleted) = tokio::join!(join_all(creations), join_all(deletions));
        let made = made.iter().filter(|answer| answer.status == 201).count();
        if deleted.iter().any(|answer| answer.status == 200) {
            assert_eq!((admin.get(&project).await.status, made), (404, 0), "round {round}");
            assert_eq!(names(&admin.get(&networks).await.body), [""; 0], "round {round}");
            gone += 1;
        } else {
            admin.post(&networks, network("after")).await.ok();
            kept += 1;
        }
    }
    assert!(gone > 0 && kept > 0, "{gone} {kept}");
}

#[tokio::test]
async fn nobody_gets_in_without_a_token_that_counts() {
    let cloud = Cloud::start().await;
    let nobody = cloud.nobody();
    let refused = nobody.get(NETWORKS).await;
    assert!(refused.headers.contains_key("www-authenticate"));
    assert_eq!(refused.problem().1, "unauthenticated");
    for token in ["", "x", "form_admin_AAAA", "form__", "form_../../x_y"] {
        assert_eq!(cloud.person(token).get(NETWORKS).await.problem().0, 401, "{token:?}");
    }
    let basic = nobody.request(Method::GET, NETWORKS).basic_auth("admin", Some("admin"));
    assert_eq!(nobody.send(basic).await.unwrap().problem().0, 401);
    assert_eq!(nobody.post(NETWORKS, network("x")).await.problem().0, 401);
    for open in ["/healthz", "/readyz", "/openapi.yaml"] {
        assert_eq!(nobody.get(open).await.status, 200, "{open}");
    }
}

#[tokio::test]
async fn a_tokens_secret_is_shown_once_and_is_nowhere_on_the_disk() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let secret = admin.token("mine", json!({"role": "viewer"})).await;
    assert_eq!(cloud.person(&secret).get(NETWORKS).await.status, 200);
    for path in ["/v1/tokens/mine", "/v1/tokens"] {
        let said = admin.get(path).await.body.to_string();
        assert!(said.contains("mine") && !said.contains(&secret), "{said}");
    }
    // The secret itself may have underscores; the name has none.
    let bare = secret.strip_prefix("form_mine_").unwrap();
    let bytes = |text: &str| text.as_bytes().to_vec();
    for entry in std::fs::read_dir(cloud.data_dir()).unwrap() {
        let path = entry.unwrap().path();
        let content = std::fs::read(&path).unwrap();
        let holds = |needle: &[u8]| content.windows(needle.len()).any(|window| window == needle);
        assert!(!holds(&bytes(bare)), "{}", path.display());
        assert_eq!(holds(b"resource/Token//mine"), path.extension().is_some_and(|kind| kind == "db-wal"), "{path:?}");
    }
}

#[tokio::test]
async fn a_token_that_is_revoked_or_over_opens_nothing_not_even_a_watch_that_was_open() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let secret = admin.token("short", json!({"role": "editor"})).await;
    let person = cloud.person(&secret);
    let mut watch = person.watch(&format!("{NETWORKS}?watch"), None).await;
    watch.progress().await;
    admin.delete("/v1/tokens/short").await.ok();
    assert_eq!(person.get(NETWORKS).await.problem().0, 401);
    let (event, problem) = watch.change().await;
    assert_eq!((event.as_str(), &problem["type"]), ("error", &json!("/problems/unauthenticated")));
    assert!(watch.next().await.is_none());

    admin.token("short", json!({"role": "editor"})).await;
    assert_eq!(person.get(NETWORKS).await.problem().0, 401, "the same name, another secret");

    let over = admin.token("over", json!({"role": "viewer", "expires_at": "2020-01-01T00:00:00Z"})).await;
    assert!(cloud.person(&over).get(NETWORKS).await.problem().2.contains("expired"));
    let soon = form_types::timestamp(SystemTime::now() + Duration::from_secs(1)).to_string();
    let soon = cloud.person(&admin.token("soon", json!({"role": "viewer", "expires_at": soon})).await);
    let mut watch = soon.watch(&format!("{NETWORKS}?watch"), None).await;
    assert_eq!(watch.change().await.0, "error");
    assert_eq!(soon.get(NETWORKS).await.problem().0, 401);
}

#[tokio::test]
async fn a_role_is_good_for_what_it_says_and_in_its_project_only() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    admin.post("/v1/projects", json!({"name": "team", "spec": {}})).await.ok();
    let mut people = Vec::new();
    for role in ["viewer", "editor", "admin"] {
        people.push(cloud.person(&admin.token(&format!("a-{role}"), json!({"role": role, "project": "team"})).await));
    }
    let [viewer, editor, boss]: [Http; 3] = people.try_into().ok().unwrap();
    let theirs = "/v1/projects/team/networks";

    assert_eq!(viewer.get(theirs).await.status, 200);
    assert_eq!(viewer.post(theirs, network("v")).await.problem().0, 403);
    assert_eq!(viewer.delete("/v1/projects/team/networks/default").await.problem().0, 403);
    editor.post(theirs, network("e")).await.ok();
    for who in [&viewer, &editor, &boss] {
        assert_eq!(who.get(NETWORKS).await.problem().0, 403);
        assert_eq!(who.post(NETWORKS, network("x")).await.problem().0, 403);
        assert_eq!(names(&who.get("/v1/projects").await.body), ["team"]);
        assert_eq!(who.get("/v1/projects/default").await.problem().0, 403);
        assert_eq!(who.post("/v1/projects", json!({"name": "more", "spec": {}})).await.problem().0, 403);
        assert_eq!(who.put("/v1/nodes/one", json!({"spec": {}})).await.problem().0, 403);
        let status = json!({"status": {"phase": "Running"}});
        assert_eq!(who.put("/v1/projects/team/instances/x/status", status).await.problem().0, 403);
    }
    assert_eq!(editor.get("/v1/tokens").await.problem().0, 403);
    let token = |role: &str, project: &str| json!({"name": "new", "spec": {"role": role, "project": project}});
    assert_eq!(editor.post("/v1/tokens", token("viewer", "team")).await.problem().0, 403);
    assert_eq!(boss.post("/v1/tokens", token("viewer", "default")).await.problem().0, 403);
    assert_eq!(boss.post("/v1/tokens", json!({"name": "new", "spec": {"role": "viewer"}})).await.problem().0, 403);
    boss.post("/v1/tokens", token("editor", "team")).await.ok();
    assert_eq!(names(&boss.get("/v1/tokens").await.body), ["a-admin", "a-editor", "a-viewer", "new"]);
    let wider = json!({"spec": {"role": "editor"}});
    assert_eq!(boss.put("/v1/tokens/new", wider).await.problem().0, 403, "nor is one made wider");

    let everywhere = cloud.person(&admin.token("all-edit", json!({"role": "editor"})).await);
    everywhere.post(NETWORKS, network("ok")).await.ok();
    assert_eq!(everywhere.post("/v1/projects", json!({"name": "more", "spec": {}})).await.problem().0, 403);
    let package = json!({"name": "p", "spec": {}});
    assert_ne!(admin.post("/v1/projects/default/packages", package).await.status, 201, "packages come from builds");
}

#[tokio::test]
async fn a_watch_replays_follows_and_goes_on_where_it_was_cut() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let list = admin.get(NETWORKS).await.body["revision"].as_u64().unwrap();
    let one = admin.post(NETWORKS, network("one")).await.revision();
    let mut watch = admin.watch(&format!("{NETWORKS}?watch&after_revision={list}"), None).await;
    assert_eq!(watch.answer.headers()["content-type"], "text/event-stream");
    let (event, data) = watch.change().await;
    assert_eq!((event.as_str(), &data["name"], &data["revision"]), ("put", &json!("one"), &json!(one)));
    admin.post("/v1/projects/default/zones", json!({"name": "z", "spec": {"domain": "example.org"}})).await.ok();
    let deleted = admin.delete(&format!("{NETWORKS}/one")).await.revision();
    let (event, data) = watch.change().await;
    assert_eq!((event.as_str(), &data["name"]), ("deleted", &json!("one")));
    assert_eq!(watch.progress().await, deleted);

    // A browser that lost the connection asks at the same address, with the last id that it saw.
    let mut again = admin.watch(&format!("{NETWORKS}?watch&after_revision={list}"), Some(one)).await;
    assert_eq!(again.change().await.0, "deleted");

    // Before anything has happened there is a place to go on from.
    let mut quiet = admin.watch(&format!("{NETWORKS}?watch"), None).await;
    let place = quiet.progress().await;
    drop(quiet);
    admin.post(NETWORKS, network("meanwhile")).await.ok();
    let mut quiet = admin.watch(&format!("{NETWORKS}?watch"), Some(place)).await;
    assert_eq!(quiet.change().await.1["name"], "meanwhile");

    assert_eq!(admin.get(&format!("{NETWORKS}?watch&after_revision=999999")).await.bad_fields(), ["after_revision"]);
}

#[tokio::test]
async fn a_watch_with_a_selector_tells_what_stops_matching_as_deleted() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let mut watch = admin.watch(&format!("{NETWORKS}?watch&label_selector=app%3Dweb"), None).await;
    watch.progress().await;
    let with = |app: &str| json!({"labels": {"app": app}, "spec": {}});
    let address = format!("{NETWORKS}/one");
    admin.put(&address, with("web")).await.ok();
    assert_eq!(watch.change().await.0, "put");
    admin.put(&address, with("db")).await.ok();
    assert_eq!(watch.change().await.0, "deleted");
    admin.put(&address, with("web")).await.ok();
    assert_eq!(watch.change().await.0, "put");
    admin.delete(&address).await.ok();
    assert_eq!(watch.change().await.0, "deleted");
}

#[tokio::test]
async fn a_watch_with_a_selector_says_nothing_of_what_never_matched() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let with = |app: &str, about: &str| json!({"labels": {"app": app}, "spec": {"description": about}});
    let (other, address) = (format!("{NETWORKS}/other"), format!("{NETWORKS}/one"));
    let before = admin.put(&other, with("db", "")).await.ok().revision();
    let mut live = admin.watch(&format!("{NETWORKS}?watch&label_selector=app%3Dweb"), None).await;
    live.progress().await;
    // Its spec changes, its labels change, it goes; and then one comes that the watch is about.
    admin.put(&other, with("db", "changed")).await.ok();
    admin.put(&other, with("cache", "changed")).await.ok();
    admin.delete(&other).await.ok();
    admin.put(&address, with("web", "")).await.ok();
    admin.put(&address, with("web", "changed")).await.ok();
    admin.put(&address, with("db", "changed")).await.ok();
    admin.put(&address, with("cache", "changed")).await.ok();
    admin.delete(&address).await.ok();
    let last = admin.put(&address, with("web", "again")).await.ok().revision();

    let wanted = ["put", "put", "deleted", "put"];
    let path = format!("{NETWORKS}?watch&label_selector=app%3Dweb&after_revision={before}");
    for mut watch in [live, admin.watch(&path, None).await] {
        for kind in wanted {
            let (told, resource) = watch.change().await;
            assert_eq!((told.as_str(), resource["name"].as_str().unwrap()), (kind, "one"), "{resource}");
        }
    }
    let request = form_types::v1::WatchRequest {
        kind: "Network".into(),
        project: "default".into(),
        label_selector: "app=web".into(),
        after_revision: before,
    };
    let mut watch = cloud.grpc("form-dns", "one").watch(request).await.unwrap().into_inner();
    let (mut told, mut revision) = (Vec::new(), 0);
    while revision < last {
        let response = watch.message().await.unwrap().unwrap();
        revision = response.revision;
        told.extend(response.changes);
    }
    let named = told.iter().all(|change| change.resource.as_ref().unwrap().name == "one");
    use form_types::v1::change::Type::{Deleted, Put};
    let told: Vec<_> = told.iter().map(|change| change.r#type()).collect();
    assert!(named && told == [Put, Put, Deleted, Put], "{told:?}");
}

#[tokio::test]
async fn a_watch_from_before_the_log_is_told_to_list_again() {
    let place = Cloud::start().await.stop().await;
    let cloud = Cloud::start_in(place, |config| config.history = 1000).await;
    let admin = cloud.admin();
    let mut revision = 0;
    for round in 0..13 {
        let writes = (0..100)
            .map(|n| admin.put(&format!("{NETWORKS}/n{n}"), json!({"spec": {"description": format!("{round}")}})));
        revision = join_all(writes).await.into_iter().map(|answer| answer.ok().revision()).max().unwrap();
    }
    let gone = admin.get(&format!("{NETWORKS}?watch&after_revision=1")).await.problem();
    assert_eq!((gone.0, gone.1.as_str()), (410, "compacted"));
    let list = admin.get(NETWORKS).await.body;
    assert!(list["revision"].as_u64().unwrap() >= revision);
    let mut watch = admin.watch(&format!("{NETWORKS}?watch&after_revision={}", list["revision"]), None).await;
    watch.progress().await;
}

#[tokio::test]
async fn two_zones_never_have_one_domain() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let zones = "/v1/projects/default/zones";
    let zone = |n: usize| json!({"name": format!("z{n}"), "spec": {"domain": "example.org"}});
    let answers = join_all((0..8).map(|n| admin.post(zones, zone(n)))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    let refused = answers.iter().find(|answer| answer.status != 201).unwrap().problem();
    assert_eq!((refused.0, refused.1.as_str()), (409, "taken"));
    let owner = names(&admin.get(zones).await.body).remove(0);
    admin.put(&format!("{zones}/{owner}"), json!({"spec": {"domain": "example.net"}})).await.ok();
    admin.post(zones, json!({"name": "next", "spec": {"domain": "example.org"}})).await.ok();
    admin.delete(&format!("{zones}/next")).await.ok();
    admin.post(zones, json!({"name": "last", "spec": {"domain": "example.org"}})).await.ok();
}

#[tokio::test]
async fn all_of_it_is_there_after_a_restart() {
    let cloud = Cloud::start().await;
    let token = cloud.admin().token("kept", json!({"role": "editor"})).await;
    let made = cloud.person(&token).post(NETWORKS, network("kept")).await.ok();
    let cloud = Cloud::start_in(cloud.stop().await, |_| {}).await;
    let person = cloud.person(&token);
    assert_eq!(person.get(&format!("{NETWORKS}/kept")).await.body, made.body);
    let next = person.post(NETWORKS, network("next")).await;
    assert!(next.revision() > made.revision());
}
