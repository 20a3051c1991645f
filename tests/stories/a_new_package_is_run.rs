//! `form run` again: what changed in the directory is what runs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use formation_tests::{eventually, guest, story};

const NAME: &str = "web.default.formation.internal";
const FORMFILE: &str = "FROM scratch\nCOPY hello /hello\nEXPOSE 8080\nENTRYPOINT [\"/hello\"]\nMEMORY 128\nDISK 16\n";

#[test]
fn a_changed_directory_is_run_and_an_unchanged_one_is_left_alone() {
    story(|cloud| {
        let hello = std::fs::read(guest().join("examples/hello/hello")).unwrap();
        let dir = cloud.package("web", FORMFILE, &[("hello", &hello)]);
        cloud.form(&["run", &dir]).done();
        let (first, machines) = (cloud.get("instance", "web"), cloud.machines());
        let address = cloud.dig(&[NAME, "A"]).data;

        // Nothing changed: nothing happens.
        cloud.form(&["run", &dir]).done();
        assert_eq!(cloud.get("instance", "web")["generation"], first["generation"]);
        assert_eq!(cloud.machines(), machines);

        // A file more, and another port: another package, and the machine is made from it.
        let formfile = FORMFILE.replace("EXPOSE 8080", "EXPOSE 8080 9090/udp\nCOPY more /more");
        cloud.package("web", &formfile, &[("more", b"more")]);
        cloud.form(&["run", &dir]).done();
        let second = cloud.get("instance", "web");
        let (old, new) = (&first["status"]["package_digest"], &second["status"]["package_digest"]);
        assert_ne!(old, new);
        assert_eq!(new, &cloud.get("package", "web")["spec"]["digest"]);
        assert_eq!(second["uid"], first["uid"], "the same instance");
        assert_ne!(cloud.machines(), machines);
        assert_eq!(eventually("its page", || cloud.page(NAME)), "Hello from web!\n");
        assert_eq!(cloud.dig(&[NAME, "A"]).data, address, "at its old address");
        assert_eq!(cloud.dig(&[&format!("_9090._udp.{NAME}"), "SRV"]).data, [format!("0 0 9090 {NAME}.")]);

        // What was stopped is started, though nothing changed.
        cloud.form(&["instance", "stop", "web"]).done();
        cloud.form(&["run", &dir]).done();
        assert_eq!(eventually("its page", || cloud.page(NAME)), "Hello from web!\n");
    });
}
