//! A workload that fails: why is told, the restart policy holds, and its name does not answer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use formation_tests::{eventually, program, story};

const FORMFILE: &str = "FROM scratch\nCOPY fail /fail\nENTRYPOINT [\"/fail\"]\nVCPU 1\nMEMORY 128\nDISK 16\n";

#[test]
fn a_workload_that_fails_is_told_with_its_exit_code_and_restarted_as_its_policy_says() {
    story(|cloud| {
        let dir = cloud.package("fail", FORMFILE, &[("fail", &program("I cannot go on\n", 3))]);

        // Never: it fails, once, and the command that started it says so.
        let said = cloud.form(&["run", &dir, "--restart", "never"]).refused(1);
        assert!(said.contains("the workload exited with 3"), "{said}");
        assert!(said.contains("`form logs fail`"), "{said}");
        let found = cloud.get("instance", "fail");
        assert_eq!(found["status"]["phase"], "Failed", "{found:#}");
        assert_eq!(
            (&found["status"]["exit_code"], &found["status"]["restarts"]),
            (&3.into(), &formation_tests::Value::Null)
        );
        assert!(cloud.form(&["logs", "fail"]).done().contains("I cannot go on"));
        assert!(cloud.machines().is_empty());
        let name = "fail.default.formation.internal";
        eventually("its name is gone", || cloud.dig(&[name, "A"]).is_no_such_name().then_some(()));

        // On failure: again and again, with a growing pause.
        let said = cloud.form(&["run", &dir, "--restart", "on-failure", "--no-wait"]).done();
        assert!(said.contains("wanted"), "{said}");
        for restarts in 1..=2 {
            let found = cloud.eventually("instance", "fail", |instance| {
                instance["status"]["phase"] == "BackOff" && instance["status"]["restarts"].as_u64() >= Some(restarts)
            });
            assert_eq!(found["status"]["exit_code"], 3, "{found:#}");
            assert_eq!(found["status"]["message"], "the workload exited with 3", "{found:#}");
            eventually("its name is gone", || cloud.dig(&[name, "A"]).is_no_such_name().then_some(()));
        }
        let events = cloud.form(&["get", "events"]).done();
        assert!(events.contains("Warning") && events.contains("the workload exited with 3"), "{events}");

        // While it waits to be started again, to stop the machines stops it, and does not start it first.
        let started = |cloud: &formation_tests::Cloud| {
            let dirs = std::fs::read_dir(cloud.data().join("machines/instances")).unwrap().flatten();
            let logs = dirs.map(|dir| std::fs::read_to_string(dir.path().join("console.log")).unwrap());
            logs.map(|log| log.matches("Linux version").count()).sum::<usize>()
        };
        cloud.eventually("instance", "fail", |instance| {
            instance["status"]["phase"] == "BackOff" && instance["status"]["restarts"].as_u64() >= Some(4)
        });
        let before = started(cloud);
        let said = cloud.form_here(&["down", "--machines"]).done();
        assert!(said.contains("machines stopped: 0"), "{said}");
        assert_eq!(started(cloud), before);
        cloud.ended();
        cloud.start();
        cloud.eventually("instance", "fail", |instance| instance["status"]["restarts"].as_u64() >= Some(5));

        // A person who looks is told at once, and does not wait for a run that never comes.
        let said = cloud.form(&["run", &dir, "--restart", "on-failure"]).refused(1);
        assert!(said.contains("the workload exited with 3") && said.contains("`form logs fail`"), "{said}");

        cloud.form(&["instance", "delete", "fail"]).done();
        assert!(cloud.machines().is_empty());
    });
}

#[test]
fn a_workload_that_has_done_its_work_has_not_failed() {
    story(|cloud| {
        let dir = cloud.package("job", &FORMFILE.replace("fail", "job"), &[("job", &program("done\n", 0))]);
        let said = cloud.form(&["run", &dir, "--restart", "on-failure"]).done();
        assert!(said.contains("job has ended"), "{said}");
        let found = cloud.get("instance", "job");
        assert_eq!((&found["status"]["phase"], &found["status"]["exit_code"]), (&"Stopped".into(), &0.into()));
        assert!(cloud.form(&["logs", "job"]).done().contains("done"));

        // And its work is not done again because the cloud went down and came up.
        cloud.form_here(&["down", "--machines"]).done();
        cloud.ended();
        cloud.start();
        cloud.form(&["status"]).done();
        assert_eq!(cloud.get("instance", "job")["status"], found["status"]);
        assert!(cloud.machines().is_empty());
    });
}
