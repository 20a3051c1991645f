//! What happens when the daemon does not get to finish.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests may; clippy only knows those that are in a #[test]"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{PATIENCE, Stage, greeting, lives, reaches, story};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use vmm_service::{Error, Phase, Vm, VmSpec};

/// Not a story: the daemon of the stories below, which run it in a process of its own, so that it can be killed.
#[test]
#[ignore = "is run by the other tests"]
fn the_daemon() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let directory = std::env::var_os("STORY").map(PathBuf::from).expect("STORY");
        let spec: VmSpec = serde_json::from_slice(&std::fs::read(directory.join("spec.json")).unwrap()).unwrap();
        let guest = std::env::var_os("FORMATION_GUEST").map(PathBuf::from).expect("FORMATION_GUEST");
        let host = common::host(&directory, &guest);
        let vm = Vm::ensure(&host, spec, true).unwrap();
        let mut status = vm.watch();
        // The test harness has left its own line unfinished.
        println!();
        loop {
            println!("{:?}", status.borrow_and_update().phase);
            status.changed().await.unwrap();
        }
    });
}

fn daemon(stage: &Stage, spec: &VmSpec) -> Child {
    std::fs::write(stage.directory.path().join("spec.json"), serde_json::to_vec(spec).unwrap()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "the_daemon", "--ignored", "--nocapture"]);
    command.env("STORY", stage.directory.path()).env("FORMATION_GUEST", &stage.guest);
    command.stdout(Stdio::piped()).spawn().unwrap()
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
        killed_at(daemon(&stage, &stage.hello()), "Running").await;
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
        let daemon = daemon(&stage, &stage.hello());
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
        std::fs::create_dir(stage.instance()).unwrap();
        // In the order in which they are made; each daemon gets one step further than the one before.
        for step in ["lock", "wanted.json", "root.qcow2", "config.raw", "reports.jsonl", "state.json", "qmp.sock"] {
            let mut daemon = daemon(&stage, &stage.hello());
            appears(&stage.instance(), step);
            daemon.kill().await.unwrap();
        }
        let vm = Vm::open(&stage.host, "story").unwrap();
        reaches(&vm, Phase::Running).await;
        assert!(greeting(&stage, 1).await.ends_with("Hello from greeter!\n"));
        let files = std::fs::read_dir(stage.instance()).unwrap().flatten().map(|entry| entry.file_name());
        let half_done: Vec<_> = files.filter(|name| name.to_string_lossy().starts_with('.')).collect();
        assert!(half_done.is_empty(), "{half_done:?}");

        vm.delete().await.unwrap();
        reaches(&vm, Phase::Deleted).await;
    });
}

/// Waits until a file is there, without missing its first moment.
fn appears(directory: &Path, name: &str) {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, directory, WatchFlags::CREATE | WatchFlags::MOVED_TO).unwrap();
    while !directory.join(name).exists() {
        let limit = PATIENCE.try_into().unwrap();
        let events = poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&limit)).unwrap();
        assert!(events > 0, "{name} did not appear");
        while rustix::io::read(&watch, &mut [0; 4096]).is_ok() {}
    }
}

#[test]
fn two_daemons_do_not_drive_one_machine() {
    story(|stage| async move {
        let vm = Vm::ensure(&stage.host, stage.hello(), true).unwrap();
        assert!(matches!(Vm::open(&stage.host, "story"), Err(Error::Locked { .. })));
        vm.delete().await.unwrap();
        reaches(&vm, Phase::Deleted).await;
    });
}
