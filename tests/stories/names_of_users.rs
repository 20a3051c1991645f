//! Names that users give: records in the project's part of the cluster's zone, and zones of their own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use std::time::Duration;

use formation_tests::{Cloud, story, within};

fn record(cloud: &Cloud, name: &str, spec: &str) {
    cloud.apply(&format!("{{kind: Record, name: {name}, spec: {{{spec}}}}}"));
    cloud.eventually("record", name, |record| record["status"]["ready"] == true);
}

#[test]
fn records_are_served_as_they_are_written() {
    story(|cloud| {
        let under = |name: &str| format!("{name}.default.formation.internal");
        record(cloud, "a", "name: www, type: A, data: [192.0.2.1, 192.0.2.2]");
        record(cloud, "aaaa", "name: www, type: AAAA, data: ['2001:db8::1']");
        record(cloud, "alias", "name: alias, type: CNAME, data: [www]");
        record(cloud, "mail", "name: '@', type: MX, data: [10 mail.example.org.]");
        record(cloud, "wild", "name: '*.wild', type: A, data: [192.0.2.9]");
        record(cloud, "deep", "name: a.b, type: A, data: [192.0.2.5]");

        assert_eq!(cloud.dig(&[&under("www"), "A"]).data, ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(cloud.dig(&[&under("www"), "AAAA"]).data, ["2001:db8::1"]);
        assert_eq!(cloud.dig(&["+tcp", &under("www"), "AAAA"]).data, ["2001:db8::1"]);
        let alias = cloud.dig(&[&under("alias"), "A"]).data;
        assert_eq!(alias, ["192.0.2.1", "192.0.2.2", "www.default.formation.internal."]);
        assert_eq!(cloud.dig(&["default.formation.internal", "MX"]).data, ["10 mail.example.org."]);
        assert_eq!(cloud.dig(&[&under("any.wild"), "A"]).data, ["192.0.2.9"]);
        assert_eq!(cloud.dig(&[&under("www").to_uppercase(), "AAAA"]).data, ["2001:db8::1"]);

        // No such name, and no such data: two things.
        assert!(cloud.dig(&[&under("nobody"), "A"]).is_no_such_name());
        assert!(cloud.dig(&[&under("www"), "TXT"]).is_no_data());
        assert!(cloud.dig(&[&under("any.wild"), "TXT"]).is_no_data());
        assert!(cloud.dig(&[&under("b"), "A"]).is_no_data(), "an empty non-terminal (RFC 8020)");
        assert_eq!(cloud.dig(&["www.example.org", "A"]).status, "REFUSED");

        // What does not fit says so, and comes by TCP.
        let words: Vec<String> = (0..12).map(|n| format!("'\"{}\"'", n.to_string().repeat(120))).collect();
        record(cloud, "long", &format!("name: long, type: TXT, data: [{}]", words.join(", ")));
        let cut = cloud.dig(&["+ignore", "+bufsize=512", &under("long"), "TXT"]);
        assert!(cut.truncated && cut.data.len() < 12, "{cut:?}");
        let whole = cloud.dig(&["+bufsize=512", &under("long"), "TXT"]);
        assert!(!whole.truncated && whole.data.len() == 12, "{whole:?}");

        // A change is served at once; the bound is for two processes' starts on a busy machine, the aim is 50 ms.
        record(cloud, "a", "name: www, type: A, data: [192.0.2.7]");
        assert_eq!(cloud.dig(&[&under("www"), "A"]).data, ["192.0.2.7"], "ready means served");
        cloud.form(&["delete", "record", "a", "aaaa"]).done();
        within(Duration::from_secs(2), "the name is gone", || {
            cloud.dig(&[&under("www"), "A"]).is_no_such_name().then_some(())
        });

        // What cannot be served says why, and takes nothing else along.
        cloud.apply("{kind: Record, name: bad, spec: {name: bad, type: A, data: [not-an-address]}}");
        let bad = cloud.eventually("record", "bad", |record| !record["status"]["message"].is_null());
        let message = bad["status"]["message"].as_str().unwrap();
        assert!(message.contains("spec.data[0]") && message.contains("not-an-address"), "{message}");
        assert!(cloud.dig(&[&under("bad"), "A"]).is_no_such_name());
        assert_eq!(cloud.dig(&[&under("any.wild"), "A"]).data, ["192.0.2.9"]);
    });
}

#[test]
fn a_zone_is_its_projects_and_never_the_clusters() {
    story(|cloud| {
        cloud.apply(
            "{kind: Project, name: red}\n---\n{kind: Project, name: blue}\n---\n\
             {kind: Zone, project: red, name: shop, spec: {domain: shop.example, ttl: 30}}\n---\n\
             {kind: Record, project: red, name: www, spec: {zone: shop, name: www, type: A, data: [192.0.2.1]}}\n---\n\
             {kind: Record, project: blue, name: www, spec: {zone: shop, name: www, type: A, data: [192.0.2.66]}}",
        );
        let www = || cloud.dig(&["www.shop.example", "A"]);
        within(Duration::from_secs(5), "the zone is served", || (www().data == ["192.0.2.1"]).then_some(()));
        assert!(cloud.dig(&["nobody.shop.example", "A"]).is_no_such_name());
        assert_eq!(cloud.dig(&["shop.example", "NS"]).data, ["ns.formation.internal."]);
        assert_eq!(cloud.dig(&["shop.example", "SOA"]).data.len(), 1);

        // Another project has no such zone, and can have none that overlaps it.
        let in_blue = |kind: &str, name: &str| {
            let said = || cloud.form(&["get", kind, name, "--project", "blue", "-o", "json"]).done();
            within(Duration::from_secs(5), "it is told why not", || {
                let found: formation_tests::Value = serde_json::from_str(&said()).unwrap();
                found["status"]["message"].as_str().map(str::to_owned)
            })
        };
        assert!(in_blue("record", "www").contains("there is no zone \"shop\" in project blue"));
        for (name, domain) in [("sub", "sub.shop.example"), ("over", "example")] {
            cloud.apply(&format!("{{kind: Zone, project: blue, name: {name}, spec: {{domain: {domain}}}}}"));
            let message = in_blue("zone", name);
            assert!(message.contains("overlaps shop.example.") && message.contains("project red"), "{message}");
        }
        // The very same domain is refused where it is asked for.
        let same = "{kind: Zone, project: blue, name: same, spec: {domain: shop.example}}";
        let said = cloud.form_with(&[], &["apply", "-f", "-"], same).refused(4);
        assert!(said.contains("shop.example"), "{said}");

        // The cluster's own zone is nobody's.
        for (name, domain) in
            [("own", "formation.internal"), ("part", "evil.formation.internal"), ("above", "internal")]
        {
            cloud.apply(&format!("{{kind: Zone, project: blue, name: {name}, spec: {{domain: {domain}}}}}"));
            let message = in_blue("zone", name);
            assert!(message.contains("overlaps the cluster's own zone"), "{message}");
        }
        assert_eq!(cloud.dig(&["formation.internal", "SOA"]).data.len(), 1);

        // With the zone go its records; it comes back with them.
        cloud.form(&["delete", "zone", "shop", "--project", "red"]).done();
        within(Duration::from_secs(5), "the zone is gone", || (www().status == "REFUSED").then_some(()));
        cloud.apply("{kind: Zone, project: red, name: shop, spec: {domain: shop.example}}");
        within(Duration::from_secs(5), "the zone is back", || (www().data == ["192.0.2.1"]).then_some(()));
    });
}

#[test]
fn the_clusters_zone_is_what_the_configuration_says() {
    story(|cloud| {
        cloud.kill();
        cloud.set("zone=lab.example");
        cloud.start();
        let said = cloud.form(&["run", &cloud.hello(), "--name", "hello"]).done();
        assert!(said.contains("http://hello.default.lab.example:8080/"), "{said}");
        assert_eq!(cloud.page("hello.default.lab.example").unwrap(), "Hello from hello!\n");
        assert_eq!(cloud.dig(&["hello.default.formation.internal", "A"]).status, "REFUSED");
    });
}
