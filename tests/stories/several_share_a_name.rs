//! Several instances of one package share a name; there are more or fewer of them when it is run again.
#![allow(clippy::unwrap_used, reason = "a story may")]

use formation_tests::{eventually, story};

const NAME: &str = "web.default.formation.internal";

#[test]
fn replicas_share_a_name_and_go_when_they_are_too_many() {
    story(|cloud| {
        let hello = cloud.hello();
        cloud.form(&["run", &hello, "--name", "web", "--replicas", "2"]).done();
        let both = eventually("both answer", || {
            let found = cloud.dig(&[NAME, "A"]).data;
            (found.len() == 2).then_some(found)
        });
        assert_eq!(cloud.dig(&[NAME, "AAAA"]).data.len(), 2);
        let mut services = cloud.dig(&[&format!("_8080._tcp.{NAME}"), "SRV"]).data;
        services.sort();
        assert_eq!(services, ["1", "2"].map(|number| format!("0 0 8080 web-{number}.default.formation.internal.")));
        let own = cloud.dig(&["web-1.default.formation.internal", "A"]).data;
        assert!(own.len() == 1 && both.contains(own.first().unwrap()), "{own:?}");

        cloud.form(&["run", &hello, "--name", "web", "--replicas", "1"]).done();
        eventually("the first is left", || (cloud.dig(&[NAME, "A"]).data == own).then_some(()));
        cloud.form(&["get", "instance", "web-1"]).done();
        eventually("the second is gone", || (cloud.form(&["get", "instance", "web-2"]).code == Some(3)).then_some(()));
        cloud.form(&["instance", "delete", "web-1"]).done();
        eventually("its name is gone", || cloud.dig(&[NAME, "A"]).is_no_such_name().then_some(()));
    });
}
