//! A Formfile in, a running machine that answers by its name out; and at its end nothing is left of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use formation_tests::{eventually, story};

const NAME: &str = "hello.default.formation.internal";

#[test]
fn a_formfile_becomes_a_machine_with_a_name_and_leaves_nothing_when_it_goes() {
    story(|cloud| {
        let said = cloud.form(&["run", &cloud.hello(), "--name", "hello"]).done();
        assert!(said.contains("http://hello.default.formation.internal:8080/"), "{said}");

        // Its names, forwards and backwards.
        let (v4, v6) = (cloud.dig(&[NAME, "A"]).data, cloud.dig(&[NAME, "AAAA"]).data);
        assert_eq!((v4.len(), v6.len()), (1, 1));
        assert!(said.contains(&v4[0]) && said.contains(&v6[0]), "{said}");
        for address in [&v4[0], &v6[0]] {
            assert_eq!(cloud.dig(&["-x", address]).data, [format!("{NAME}.")]);
            assert_eq!(cloud.page_at(address.parse().unwrap()).unwrap(), "Hello from hello!\n");
        }
        let service = format!("_8080._tcp.{NAME}");
        assert_eq!(cloud.dig(&[&service, "SRV"]).data, [format!("0 0 8080 {NAME}.")]);
        let console = cloud.form(&["logs", "hello"]).done();
        assert!(console.contains("hello: listening on"), "{console}");
        assert_eq!((cloud.machines().len(), cloud.taps().len()), (1, 1));

        // Stopped, it has no name; started again, it has the same one and the same address.
        cloud.form(&["instance", "stop", "hello"]).done();
        eventually("its name is gone", || cloud.dig(&[NAME, "A"]).is_no_such_name().then_some(()));
        assert!(cloud.machines().is_empty());
        cloud.form(&["instance", "start", "hello"]).done();
        assert_eq!(eventually("its page", || cloud.page(NAME)), "Hello from hello!\n");
        assert_eq!(cloud.dig(&[NAME, "A"]).data, v4);

        let before = cloud.machines();
        cloud.form(&["instance", "restart", "hello"]).done();
        assert_eq!(eventually("its page", || cloud.page(NAME)), "Hello from hello!\n");
        assert_ne!(cloud.machines(), before);

        // Deleted, nothing is left.
        cloud.form(&["instance", "delete", "hello"]).done();
        cloud.form(&["get", "instance", "hello"]).refused(3);
        eventually("its name is gone", || cloud.dig(&[NAME, "A"]).is_no_such_name().then_some(()));
        assert!(cloud.dig(&["-x", &v4[0]]).is_no_such_name());
        assert!(cloud.machines().is_empty());
        // formnet hears of it as everybody does.
        eventually("their taps are gone", || cloud.taps().is_empty().then_some(()));
        for left in ["machines/instances", "machines/images"] {
            assert_eq!(std::fs::read_dir(cloud.data().join(left)).unwrap().count(), 0, "{left}");
        }
    });
}
