//! The cloud is killed while a machine runs. The machine does not notice, and the next cloud takes it up.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use formation_tests::{eventually, story};

const NAME: &str = "hello.default.formation.internal";

#[test]
fn a_killed_cloud_finds_its_machines_again() {
    story(|cloud| {
        cloud.form(&["run", &cloud.hello(), "--name", "hello"]).done();
        cloud.apply("{kind: Record, name: alias, spec: {name: alias, type: CNAME, data: [hello]}}");
        let machines = cloud.machines();
        let address = cloud.dig(&[NAME, "A"]).data[0].parse().unwrap();
        let (instance, token) = (cloud.get("instance", "hello"), std::fs::read(cloud.context_file()).unwrap());

        cloud.kill();
        assert_eq!(cloud.page_at(address).unwrap(), "Hello from hello!\n", "the machine runs on");
        assert_eq!(cloud.form(&["get", "instances"]).refused(6).lines().count(), 1);

        cloud.start();
        assert_eq!(eventually("its page by its name", || cloud.page(NAME)), "Hello from hello!\n");
        assert_eq!(cloud.machines(), machines, "adopted, not started again");
        let found = cloud.eventually("instance", "hello", |instance| instance["status"]["phase"] == "Running");
        assert_eq!((&found["uid"], &found["status"]), (&instance["uid"], &instance["status"]));
        assert_eq!(std::fs::read(cloud.context_file()).unwrap(), token, "who was known is known");
        assert_eq!(eventually("the alias", || cloud.page("alias.default.formation.internal")), "Hello from hello!\n");

        // And it is the new cloud's to command; whose command is not forgotten when it is killed in turn.
        cloud.form(&["instance", "delete", "hello", "--no-wait"]).done();
        cloud.kill();
        cloud.start();
        eventually("the instance is gone", || cloud.list("instances").is_empty().then_some(()));
        assert!(cloud.machines().is_empty() && cloud.taps().is_empty());
    });
}

#[test]
fn a_machine_that_ends_while_no_cloud_is_up_is_found_ended_and_started_again() {
    story(|cloud| {
        cloud.form(&["run", &cloud.hello(), "--name", "hello"]).done();
        let machine = cloud.machines()[0];
        cloud.kill();
        cloud.kill_machine(machine);

        cloud.start();
        let found = cloud.eventually("instance", "hello", |instance| instance["status"]["phase"] == "Running");
        assert_eq!(found["status"]["restarts"], 1, "{found:#}");
        assert_eq!(eventually("its page by its name", || cloud.page(NAME)), "Hello from hello!\n");
        assert_ne!(cloud.machines(), [machine]);
    });
}
