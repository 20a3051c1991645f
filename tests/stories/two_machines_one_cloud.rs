//! A second machine joins; what runs on one is reached from the other, by name and by address.

use formation_tests::{Cloud, Value, eventually, story_of};

/// Starts the cloud on the first, and has the second join it.
fn join(first: &mut Cloud, second: &mut Cloud) {
    first.set(&format!("address=\"{}\"", first.address()));
    first.set("node=\"one\"");
    first.start();
    let token = first.form(&["node", "invite", "--name", "two"]).done();
    second.form_here(&["node", "join", token.trim()]).done();
    second.set(&format!("address=\"{}\"", second.address()));
    second.start();
    for node in ["one", "two"] {
        let is = |node: &Value, what| node.pointer(what) == Some(&Value::Bool(true));
        first.eventually("node", node, |node| is(node, "/status/ready") && is(node, "/status/mesh/ready"));
    }
    // A second use of the token, by whomever, is refused.
    let again = second.form(&["node", "join", token.trim(), "--data-dir", "/tmp/another-machine"]);
    assert_ne!(again.code, Some(0), "{again:?}");
}

#[test]
fn an_instance_on_one_is_reached_from_the_other_by_its_name() {
    story_of(2, |clouds| {
        let [first, second] = clouds else { panic!("two machines") };
        join(first, second);
        first.form(&["node", "cordon", "one"]).done();
        first.form(&["run", &first.hello(), "--name", "far"]).done();
        let far = first.get("instance", "far");
        assert_eq!(far["status"]["node"], "two", "{far:#}");
        assert_eq!(second.taps().len(), 1);
        assert!(first.taps().is_empty());

        let name = "far.default.formation.internal";
        for cloud in [&*first, &*second] {
            let page = eventually("its page, by its name", || cloud.page(name));
            assert!(page.contains("Hello from far!"), "{page}");
        }
        // IPv6 has the same way.
        let six = first.dig(&[name, "AAAA"]).data[0].parse().unwrap();
        assert!(first.page_at(six).unwrap().contains("Hello from far!"));
        assert!(first.form(&["net", "doctor"]).done().contains("the mesh is whole"));

        // Two instances on two machines, in one network: they are each other's neighbours, as the rules see it.
        first.form(&["node", "uncordon", "one"]).done();
        first.form(&["node", "cordon", "two"]).done();
        first.form(&["run", &first.hello(), "--name", "near", "--publish", "18080:8080"]).done();
        // What is published is at its node's own address, for those who are in no mesh.
        let published = format!("http://{}:18080/", first.address());
        let page = second.run(&["curl", "--silent", "--fail", "--max-time", "10", &published]).done();
        assert!(page.contains("Hello from near!"), "{page}");
        let taken = first.form(&["run", &first.hello(), "--name", "other", "--publish", "18080:8080", "--no-wait"]);
        assert!(taken.code == Some(0), "{taken:?}");
        let other = first.eventually("instance", "other", |other| other["status"]["reason"] == "PortTaken");
        println!("{}", other["status"]["message"]);
        let told = first.form(&["net", "trace", "near", "far"]).done();
        assert!(told.contains("same network") && told.contains("through the mesh by Node two"), "{told}");

        // And gone is gone, on both.
        first.form(&["delete", "instance", "far"]).done();
        eventually("its tap is gone", || second.taps().is_empty().then_some(()));
        assert!(first.dig(&[name, "A"]).is_no_such_name());
    });
}
