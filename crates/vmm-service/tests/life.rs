//! The life of a virtual machine, as its owner sees it.

#![allow(clippy::unwrap_used, reason = "tests may; clippy only knows those that are in a #[test]")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use form_guest::HealthCheck;

use common::{ADDRESS_V6, console, get, greeting, lives, reaches, story};
use vmm_service::{Phase, RestartPolicy, Vm};

#[test]
fn a_machine_boots_answers_stops_in_good_order_and_leaves_nothing() {
    story(|stage| async move {
        let vm = Vm::ensure(&stage.host, stage.hello(), true).unwrap();
        let pid = reaches(&vm, Phase::Running).await.pid.unwrap();
        assert!(greeting(&stage, 1).await.ends_with("Hello from greeter!\n"));
        assert!(get(ADDRESS_V6).await.ends_with("Hello from greeter!\n"), "IPv6, without waiting for DAD");
        let said = console(&vm).await;
        assert!(said.contains("hello: listening on"), "{said}");
        assert!(said.contains("the root file system has grown to the size of its disk"), "{said}");

        vm.stop().await.unwrap();
        let status = reaches(&vm, Phase::Stopped).await;
        assert_eq!(status.last_exit.unwrap().signal, Some(15), "it was asked, not switched off");
        assert!(!lives(pid));

        // Stopped is not gone: it keeps its disk, its address and its log.
        vm.start().await.unwrap();
        reaches(&vm, Phase::Running).await;
        assert!(greeting(&stage, 2).await.ends_with("Hello from greeter!\n"));

        vm.delete().await.unwrap();
        reaches(&vm, Phase::Deleted).await;
        assert!(!stage.instance().exists());
        assert!(vm.start().await.is_err(), "deleted is for ever");
    });
}

#[test]
fn a_workload_that_fails_is_told_with_its_exit_code_and_tried_again_while_the_policy_says_so() {
    story(|stage| async move {
        let mut spec = stage.hello();
        spec.guest.env.insert("PORT".into(), "none".into());
        spec.restart = RestartPolicy::OnFailure;
        let vm = Vm::ensure(&stage.host, spec, true).unwrap();

        let status = reaches(&vm, Phase::BackOff).await;
        assert_eq!(status.last_exit.unwrap().code, Some(1));
        assert!(console(&vm).await.contains("PORT=\"none\" is no port"));
        // To be told again what is wanted already does not shorten the pause.
        vm.set_power(true).await.unwrap();
        vm.set_power(true).await.unwrap();
        assert_eq!(vm.status().phase, Phase::BackOff);
        reaches(&vm, Phase::Starting).await;
        assert_eq!(vm.status().restarts, 1);

        vm.delete().await.unwrap();
        reaches(&vm, Phase::Deleted).await;
    });
}

#[test]
fn a_machine_whose_workload_cannot_start_says_why() {
    story(|stage| async move {
        let mut spec = stage.hello();
        spec.guest.user = "nobody".into();
        let vm = Vm::ensure(&stage.host, spec, true).unwrap();
        let reason = reaches(&vm, Phase::Failed).await.last_exit.unwrap().reason.unwrap();
        assert!(reason.contains("/etc/passwd has no user \"nobody\""), "{reason}");
    });
}

#[test]
fn a_machine_that_does_not_listen_is_switched_off_after_its_grace() {
    story(|stage| async move {
        let mut spec = stage.hello();
        spec.guest.grace_seconds = 0;
        let vm = Vm::ensure(&stage.host, spec, true).unwrap();
        let pid = reaches(&vm, Phase::Running).await.pid.unwrap();
        // Deaf: neither the guest nor QEMU itself can hear anything any more.
        let process = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
        vm.stop().await.unwrap();
        let status = reaches(&vm, Phase::Stopped).await;
        assert!(status.last_exit.unwrap().reason.unwrap().contains("did not say why"));
        assert!(!lives(pid));
    });
}

#[test]
fn a_machine_that_cannot_be_made_yet_says_why_and_is_made_once_it_can() {
    story(|stage| async move {
        let mut spec = stage.hello();
        spec.nics[0].tap = "tap-late".into();
        let vm = Vm::ensure(&stage.host, spec, true).unwrap();
        let mut watch = vm.watch();
        let status = watch.wait_for(|status| status.problem.is_some()).await.unwrap().clone();
        assert_eq!(status.phase, Phase::BackOff);
        assert_eq!(status.problem.unwrap(), "there is no tap tap-late; formnet makes it");

        common::add_tap("tap-late");
        reaches(&vm, Phase::Running).await;
        vm.delete().await.unwrap();
        reaches(&vm, Phase::Deleted).await;
    });
}

#[test]
fn a_health_check_a_volume_and_a_stop_signal_are_the_guests_affair_and_are_told() {
    story(|stage| async move {
        let mut spec = stage.hello();
        // The program itself, once more: the port is taken, so the check fails and says why.
        spec.guest.health = Some(HealthCheck {
            command: vec!["/hello".into()],
            interval_seconds: 1,
            timeout_seconds: 10,
            start_period_seconds: 0,
            retries: 2,
        });
        // Nothing could be started in a directory that nobody made.
        spec.guest.volumes = vec!["/srv/data".into()];
        spec.guest.workdir = "/srv/data".into();
        spec.guest.stop_signal = 1;
        let vm = Vm::ensure(&stage.host, spec, true).unwrap();
        let mut watch = vm.watch();
        let ill = watch.wait_for(|status| status.health.is_some());
        let Ok(status) = tokio::time::timeout(common::PATIENCE, ill).await else {
            panic!("not judged; console:\n{}", console(&vm).await)
        };
        let health = status.unwrap().health.clone().unwrap();
        assert!(!health.healthy && health.output.contains("in use"), "{health:?}");
        assert!(greeting(&stage, 1).await.ends_with("Hello from greeter!\n"), "it is ill, and runs on");

        vm.stop().await.unwrap();
        let status = reaches(&vm, Phase::Stopped).await;
        assert_eq!(status.last_exit.unwrap().signal, Some(1), "SIGHUP");
        assert_eq!(status.health, None);
        vm.delete().await.unwrap();
        reaches(&vm, Phase::Deleted).await;
    });
}

#[test]
fn a_machine_becomes_healthy_once_its_check_succeeds_and_a_check_that_does_not_end_is_ended() {
    story(|stage| async move {
        shell(&stage);
        let mut spec = stage.hello();
        let check = |script: &str, retries| HealthCheck {
            command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            interval_seconds: 1,
            timeout_seconds: 2,
            start_period_seconds: 0,
            retries,
        };
        // The first time it fails; and then it would stay ill if what it left were not there.
        spec.guest.health =
            Some(check("test -e /state/seen && echo warm && exit; echo cold; : >/state/seen; exit 1", 1));
        let vm = Vm::ensure(&stage.host, spec.clone(), true).unwrap();
        let mut watch = vm.watch();
        for (healthy, says) in [(false, "cold"), (true, "warm")] {
            let judged =
                watch.wait_for(|status| status.health.as_ref().is_some_and(|health| health.healthy == healthy));
            let Ok(status) = tokio::time::timeout(common::PATIENCE, judged).await else {
                panic!("not judged; console:\n{}", console(&vm).await)
            };
            let status = status.unwrap().clone();
            assert_eq!(status.phase, Phase::Running);
            assert!(status.health.clone().unwrap().output.contains(says), "{status:?}");
        }

        // One that would run for ever, were it not ended: its second run is after the first one's end.
        spec.generation = 2;
        spec.guest.health = Some(check("echo again >>/state/runs; while :; do :; done", 2));
        vm.update(spec, true).await.unwrap();
        let judged = watch.wait_for(|status| status.generation == 2 && status.health.is_some());
        let Ok(status) = tokio::time::timeout(common::PATIENCE, judged).await else {
            panic!("not judged; console:\n{}", console(&vm).await)
        };
        let health = status.unwrap().health.clone().unwrap();
        assert!(!health.healthy && health.output.contains("longer than 2 s"), "{health:?}");
        vm.delete().await.unwrap();
        reaches(&vm, Phase::Deleted).await;
    });
}

/// Puts this machine's shell on the root disk, with its libraries, and a directory that everybody can write to.
fn shell(stage: &common::Stage) {
    let root = stage.directory.path().join("root");
    let libraries = std::process::Command::new("ldd").arg("/bin/sh").output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    let files = libraries.split_whitespace().filter(|word| word.starts_with('/')).chain(["/bin/sh"]);
    for file in files {
        let copy = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(file, copy).unwrap();
    }
    fs::create_dir(root.join("state")).unwrap();
    fs::set_permissions(root.join("state"), fs::Permissions::from_mode(0o777)).unwrap();
}
