//! What a guest would have that broke out of its QEMU.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests may; clippy only knows those that are in a #[test]"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{Stage, reaches, story};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use vmm_service::users::Users;
use vmm_service::{Host, MACHINE_UIDS, Phase, Vm, VmSpec};

/// The fields of /proc/PID/status.
fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(field).collect()
}

/// The user of a process, which is its only one, and its only group.
fn user(pid: u32) -> u32 {
    let status = status(pid);
    let ids: Vec<u32> = status["Uid"].split_whitespace().map(|id| id.parse().unwrap()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]) && ids.len() == 4, "{ids:?}");
    assert_eq!(status["Gid"], status["Uid"]);
    assert_eq!(status["Groups"], "", "under TCG it needs none");
    ids[0]
}

/// A second machine beside the first.
fn neighbour(stage: &Stage) -> VmSpec {
    let mut spec = stage.hello();
    spec.uid = "neighbour".into();
    spec.nics.clear();
    spec.guest.interfaces.clear();
    spec
}

/// Whether a program that a user runs does what it is told.
fn may(user: u32, program: &str, words: &[&Path]) -> bool {
    let mut command = Command::new(program);
    command.args(words).uid(user).gid(user).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap().success()
}

#[test]
fn a_machine_runs_as_a_user_of_its_own_who_may_nothing() {
    story(|stage| async move {
        let vm = Vm::ensure(&stage.host, stage.hello(), true).unwrap();
        let other = Vm::ensure(&stage.host, neighbour(&stage), true).unwrap();
        let pid = reaches(&vm, Phase::Running).await.pid.unwrap();
        let other_pid = reaches(&other, Phase::Running).await.pid.unwrap();

        let [first, last] = MACHINE_UIDS;
        let (mine, others) = (user(pid), user(other_pid));
        assert!((first..=last).contains(&mine) && (first..=last).contains(&others));
        assert_ne!(mine, others);
        let status = status(pid);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set}");
        }
        assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("1", "2"));
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(limit("Max core file size").split_whitespace().nth(4), Some("0"));
        assert_eq!(limit("Max open files").split_whitespace().nth(3), Some("1024"));

        // It keeps its user.
        vm.stop().await.unwrap();
        reaches(&vm, Phase::Stopped).await;
        vm.start().await.unwrap();
        assert_eq!(user(reaches(&vm, Phase::Running).await.pid.unwrap()), mine);

        for vm in [vm, other] {
            vm.delete().await.unwrap();
            reaches(&vm, Phase::Deleted).await;
        }
        let left = fs::read_dir(stage.directory.path().join("users")).unwrap().count();
        assert_eq!(left, 0, "users are given back");
    });
}

#[test]
fn a_machines_user_finds_no_file_of_ours_and_can_leave_none() {
    story(|stage| async move {
        // As open as a data directory can be.
        fs::set_permissions(stage.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&stage.host.instances, fs::Permissions::from_mode(0o755)).unwrap();
        let vm = Vm::ensure(&stage.host, stage.hello(), true).unwrap();
        let user = user(reaches(&vm, Phase::Running).await.pid.unwrap());
        let instance = stage.instance();
        assert!(may(user, "ls", &[&stage.host.instances]), "so far it comes");

        let names: Vec<_> = fs::read_dir(&instance).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(names.len() > 8, "{names:?}");
        for path in &names {
            assert!(!may(user, "cat", &[path]), "{} can be read", path.display());
            assert!(!may(user, "ln", &[Path::new("-sfT"), Path::new("/etc/passwd"), path]), "{}", path.display());
            // Nor where the directory would let it.
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
        }
        assert!(!may(user, "touch", &[&instance.join("new")]));
        assert!(!may(user, "ls", &[&stage.directory.path().join("users")]));
    });
}

#[test]
fn a_machine_has_its_files_open_with_just_the_rights_that_it_needs() {
    story(|stage| async move {
        let spec = stage.hello();
        let base = spec.base.clone();
        let vm = Vm::ensure(&stage.host, spec, true).unwrap();
        let pid = reaches(&vm, Phase::Running).await.pid.unwrap();
        let proc = Path::new("/proc").join(pid.to_string());
        let mut open: BTreeMap<_, Vec<bool>> = BTreeMap::new();
        for entry in fs::read_dir(proc.join("fd")).unwrap().flatten() {
            let target = fs::read_link(entry.path()).unwrap();
            let info = fs::read_to_string(proc.join("fdinfo").join(entry.file_name())).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            let writes = u32::from_str_radix(flags, 8).unwrap() & 0o3 != 0;
            if target.starts_with(stage.directory.path()) || target.starts_with(&stage.guest) {
                open.entry(target).or_default().push(writes);
            }
        }
        let rights = |path: &Path| {
            let mut rights = open.get(path).cloned().unwrap_or_default();
            rights.dedup();
            rights
        };
        let file = |name: &str| stage.instance().join(name);
        let expected: BTreeMap<_, _> = [
            (base, false),
            (stage.host.kernel.clone(), false),
            (stage.host.initramfs.clone(), false),
            (file("alive"), false),
            (file("config.raw"), false),
            (file("root.qcow2"), true),
            (file("console.log"), true),
            (file("reports.jsonl"), true),
            (file("qemu.log"), true),
        ]
        .into();
        for (path, writes) in &expected {
            assert_eq!(rights(path), [*writes], "{}", path.display());
        }
        assert_eq!(open.len(), expected.len(), "and nothing else: {open:?}");
    });
}

#[test]
fn a_kernel_that_machines_may_not_read_is_told_with_what_to_do() {
    story(|stage| async move {
        let kernel = stage.directory.path().join("vmlinuz");
        fs::copy(&stage.host.kernel, &kernel).unwrap();
        fs::set_permissions(&kernel, fs::Permissions::from_mode(0o600)).unwrap();
        let spec = stage.hello();
        let host = Arc::into_inner(stage.host).unwrap();
        let host = Arc::new(Host { kernel, ..host });
        let vm = Vm::ensure(&host, spec, true).unwrap();
        let mut watch = vm.watch();
        let status = watch.wait_for(|status| status.problem.is_some()).await.unwrap().clone();
        assert!(status.problem.unwrap().contains("chmod a+r"));
    });
}

#[test]
fn where_users_cannot_be_changed_a_machine_has_ours_and_still_no_capability() {
    story(|stage| async move {
        // Of this thread, which is the story's own.
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
        let less = capabilities(None).unwrap().permitted.difference(needed);
        let sets = CapabilitySets { effective: less, permitted: less, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).unwrap();
        let spec = stage.hello();
        let users = Users::open(stage.directory.path(), MACHINE_UIDS).unwrap();
        assert_eq!(users.claim("story").unwrap(), None);
        let host = Arc::into_inner(stage.host).unwrap();
        let host = Arc::new(Host { users, ..host });
        let vm = Vm::ensure(&host, spec, true).unwrap();
        let pid = reaches(&vm, Phase::Running).await.pid.unwrap();
        let status = status(pid);
        let ours = rustix::process::geteuid().as_raw().to_string();
        assert!(status["Uid"].split_whitespace().all(|id| id == ours));
        assert_eq!((&*status["CapPrm"], &*status["CapEff"]), ("0000000000000000", "0000000000000000"));
        assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("1", "2"));
        vm.delete().await.unwrap();
        reaches(&vm, Phase::Deleted).await;
    });
}
