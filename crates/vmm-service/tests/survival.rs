//! What happens when the daemon does not get to finish.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests may; clippy only knows those that are in a #[test]")]

mod common;

use std::process::Stdio;

use common::{PATIENCE, Stage, greeting, lives, reaches, story};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use vmm_service::{Error, Phase, Vm, VmSpec};

/// A daemon in a process of its own, which can be killed.
async fn daemon(stage: &Stage, spec: &VmSpec) -> Child {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/solo");
    let file = stage.directory.path().join("spec.json");
    std::fs::write(&file, serde_json::to_vec(spec).unwrap()).unwrap();
    let mut command = Command::new(program);
    command.arg(&stage.host.instances).arg(&stage.guest).arg(file).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Lets the daemon come as far as `phase`, and kills it there.
async fn killed_at(mut daemon: Child, phase: &str) {
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines();
    let seen = async { while lines.next_line().await.unwrap().is_some_and(|line| line != phase) {} };
    tokio::time::timeout(PATIENCE, seen).await.expect(phase);
    daemon.kill().await.unwrap();
}

#[test]
fn a_machine_outlives_its_daemon_and_the_next_one_takes_it_up() {
    story(|stage| async move {
        killed_at(daemon(&stage, &stage.hello()).await, "Running").await;
        assert!(greeting(&stage, 1).await.ends_with("Hello from greeter!\n"), "nobody watches, and it answers");

        let vm = Vm::open(&stage.host, "story").unwrap();
        let pid = reaches(&vm, Phase::Running).await.pid.unwrap();
        assert!(lives(pid));

        // It is driven like one that was never left alone.
        vm.stop().await.unwrap();
        let status = reaches(&vm, Phase::Stopped).await;
        assert_eq!(status.last_exit.unwrap().signal, Some(15));
        assert_eq!(status.restarts, 0);
        assert!(!lives(pid));
    });
}

#[test]
fn an_exit_that_nobody_saw_is_not_lost() {
    story(|stage| async move {
        let daemon = daemon(&stage, &stage.hello()).await;
        killed_at(daemon, "Running").await;
        let vm = Vm::open(&stage.host, "story").unwrap();
        let pid = reaches(&vm, Phase::Running).await.pid.unwrap();
        let mut watch = vm.watch();
        drop(vm);
        while watch.changed().await.is_ok() {}
        // As a host that loses a process: the guest never came to say anything.
        let machine = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(machine, rustix::process::Signal::KILL).unwrap();

        let vm = Vm::open(&stage.host, "story").unwrap();
        let exit = reaches(&vm, Phase::Failed).await.last_exit.unwrap();
        assert!(exit.reason.unwrap().contains("did not say why"));
    });
}

#[test]
fn a_daemon_that_is_killed_at_any_step_of_a_start_leaves_one_machine() {
    story(|stage| async move {
        // Killed as early as can be seen from outside, again and again; each daemon finds what the one before left.
        for _ in 0..4 {
            killed_at(daemon(&stage, &stage.hello()).await, "Starting").await;
        }
        let vm = Vm::open(&stage.host, "story").unwrap();
        reaches(&vm, Phase::Running).await;
        assert!(greeting(&stage, 1).await.ends_with("Hello from greeter!\n"));
        assert_eq!(stage.host.network.taps().await.unwrap().len(), 1);
        vm.delete().await.unwrap();
        reaches(&vm, Phase::Deleted).await;
    });
}

#[test]
fn two_daemons_do_not_drive_one_machine() {
    story(|stage| async move {
        let vm = Vm::ensure(&stage.host, stage.hello()).unwrap();
        assert!(matches!(Vm::open(&stage.host, "story"), Err(Error::Locked { .. })));
        vm.delete().await.unwrap();
        reaches(&vm, Phase::Deleted).await;
    });
}
