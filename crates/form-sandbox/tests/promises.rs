//! What a sandbox promises, by commands that try to break it. The root is one static busybox.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use form_sandbox::{Limits, Mount, Network, Outcome, Run, Sandbox, Stop};
use tempfile::TempDir;

const BUSYBOX: &str = "/bin/busybox";
const PROGRAM: &str = env!("CARGO_BIN_EXE_form-sandbox");

struct Bench {
    dir: TempDir,
    sandbox: Sandbox,
}

/// A sandbox with busybox in its lower directory; nothing where this machine cannot have one.
fn bench() -> Option<Bench> {
    let is_static = fs::read(BUSYBOX).is_ok_and(|program| !program.windows(7).any(|word| word == b"/ld-lin"));
    if !is_static {
        println!("skipped: there is no static {BUSYBOX}; apt-get install busybox-static");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let sandbox = match Sandbox::with_program(dir.path().join("sandbox"), 1_000_000, PROGRAM) {
        Ok(sandbox) => sandbox,
        Err(error) => {
            println!("skipped: {error}");
            return None;
        }
    };
    let program = fs::read(BUSYBOX).unwrap();
    let unpacked = sandbox.unpack("lower", |out| {
        let mut tar = tar::Builder::new(out);
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        for directory in ["./", "bin/", "etc/", "tmp/"] {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(if directory == "tmp/" { 0o1777 } else { 0o755 });
            header.set_size(0);
            tar.append_data(&mut header, directory, std::io::empty())?;
        }
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o755);
        header.set_size(program.len() as u64);
        tar.append_data(&mut header, "bin/busybox", &program[..])?;
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, "bin/sh", "busybox")?;
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        header.set_size(3);
        tar.append_data(&mut header, "etc/owned", &b"abc"[..])?;
        tar.finish()
    });
    unpacked.unwrap();
    Some(Bench { dir, sandbox })
}

fn script(text: &str) -> Run {
    Run {
        lowers: vec!["lower".to_owned()],
        work: "run".to_owned(),
        command: vec!["/bin/busybox".to_owned(), "sh".to_owned(), "-c".to_owned(), text.to_owned()],
        env: vec![("PATH".to_owned(), "/bin".to_owned())],
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        workdir: "/".to_owned(),
        mounts: Vec::new(),
        network: Network::None,
        limits: Limits::default(),
    }
}

impl Bench {
    fn run(&self, run: Run) -> (Outcome, String) {
        self.sandbox.remove(vec![run.work.clone()]).unwrap();
        let mut output = Vec::new();
        let outcome =
            self.sandbox.run(run, &Stop::default(), None, &mut |bytes| output.extend_from_slice(bytes)).unwrap();
        (outcome, String::from_utf8_lossy(&output).into_owned())
    }

    /// The output of a script that must end well.
    fn says(&self, text: &str) -> String {
        let (outcome, output) = self.run(script(text));
        assert_eq!(outcome, Outcome::Exited(0), "{output}");
        output
    }

    fn changes(&self) -> Vec<String> {
        let tar = self.sandbox.pack("run/upper", |tar| {
            let mut bytes = Vec::new();
            tar.read_to_end(&mut bytes).map(|_| bytes)
        });
        let tar = tar.unwrap().unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            format!(
                "{:o} {}:{} {}",
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
                entry.path().unwrap().display()
            )
        });
        entries.collect()
    }
}

macro_rules! bench {
    () => {
        match bench() {
            Some(bench) => bench,
            None => return,
        }
    };
}

#[test]
fn a_command_sees_its_root_and_what_it_changes_is_packed_as_a_layer() {
    let bench = bench!();
    assert_eq!(
        bench.says("busybox cat /etc/owned; busybox stat -c %u:%g:%a /etc/owned; busybox id -u"),
        "abc7:8:640\n0\n"
    );
    bench.says(
        "busybox rm /etc/owned; busybox mkdir -p /new/deep; echo x > /new/deep/file; busybox chown 5:6 /new/deep/file
         busybox ln /new/deep/file /new/hard; busybox ln -s nowhere /new/soft; busybox chmod 4755 /new/hard",
    );
    let changes = bench.changes();
    let expected = [
        "755 0:0 .",
        "755 0:0 dev",
        "755 0:0 etc",
        "644 0:0 etc/.wh.owned",
        "755 0:0 new",
        "755 0:0 new/deep",
        "4755 5:6 new/deep/file",
        "4755 5:6 new/hard",
        "777 0:0 new/soft",
        "755 0:0 proc",
    ];
    assert_eq!(changes, expected);
    bench.says("busybox rm -r /etc; busybox mkdir /etc; echo y > /etc/other");
    assert!(bench.changes().contains(&"644 0:0 etc/.wh..wh..opq".to_owned()), "{:?}", bench.changes());
}

#[test]
fn nothing_of_the_host_is_seen() {
    let bench = bench!();
    let here = std::env::current_dir().unwrap();
    assert_eq!(bench.says("for name in /*; do echo -n \"$name \"; done"), "/bin /dev /etc /proc /tmp ");
    let (outcome, output) = bench.run(script(&format!("busybox ls {}", here.display())));
    assert_eq!(outcome, Outcome::Exited(1), "{output}");
    // All mounts are those that were made for it.
    let mounts = bench.says("busybox cut -d' ' -f2 /proc/self/mounts");
    let known = |line: &str| line == "/" || line.starts_with("/dev") || line.starts_with("/proc");
    assert!(mounts.lines().all(known), "{mounts}");
    assert_eq!(bench.says("busybox hostname"), "build\n");
    // The inner process, the shell and ls, and nothing else.
    assert!(bench.says("busybox ls /proc | busybox grep -c '^[0-9]'").trim().parse::<u32>().unwrap() <= 4);
    assert_eq!(bench.says("busybox env | busybox sort"), "PATH=/bin\nPWD=/\nSHLVL=1\n");
    let (outcome, _) = bench.run(script("busybox cat /proc/1/environ /proc/1/root/etc/passwd"));
    assert_ne!(outcome, Outcome::Exited(0));
    assert_eq!(bench.says("busybox cat /proc/keys /proc/timer_list 2>&1 | busybox wc -c").trim(), "0");
    let (outcome, _) = bench.run(script("echo 1 > /proc/sys/kernel/panic || echo b > /proc/sysrq-trigger"));
    assert_ne!(outcome, Outcome::Exited(0));
}

#[test]
fn root_inside_is_nobody_outside() {
    let bench = bench!();
    bench.says("busybox cp /bin/busybox /tmp/su; busybox chown 0:0 /tmp/su; busybox chmod 4755 /tmp/su");
    let left = fs::metadata(bench.sandbox.directory().join("run/upper/tmp/su")).unwrap();
    assert_ne!(left.uid(), 0, "a set-uid program of the host's root");
    assert_eq!(left.mode() & 0o7777, 0o4755);
    let map = bench.says("busybox cat /proc/self/uid_map");
    assert_ne!(map.split_whitespace().nth(1), Some("0"), "{map}");
    // Nor does set-uid give anything back inside.
    let (outcome, output) =
        bench.run(Run { uid: 1000, gid: 1000, ..script("busybox id -u; busybox cat /proc/self/status") });
    assert_eq!(outcome, Outcome::Exited(0));
    assert!(
        output.starts_with("1000\n")
            && output.contains("NoNewPrivs:\t1")
            && output.contains("CapEff:\t0000000000000000"),
        "{output}"
    );
    assert!(output.contains("Seccomp:\t2"), "{output}");
}

#[test]
fn there_is_no_network_unless_it_is_asked_for() {
    let bench = bench!();
    let interfaces = "busybox tail -n +3 /proc/net/dev | busybox cut -d: -f1";
    assert_eq!(bench.says(interfaces).trim(), "lo");
    // Its own loopback works.
    assert!(bench.says("busybox ping -c1 127.0.0.1 2>&1 || busybox cat /proc/net/fib_trie").contains("127.0.0.1"));
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = format!("busybox nc -w1 127.0.0.1 {} </dev/null", host.local_addr().unwrap().port());
    assert_ne!(bench.run(script(&connect)).0, Outcome::Exited(0));
    let waiting = std::thread::spawn(move || drop(host.accept()));
    assert_eq!(bench.run(Run { network: Network::Host, ..script(&connect) }).0, Outcome::Exited(0));
    waiting.join().unwrap();
}

#[test]
fn devices_mounts_and_namespaces_are_not_to_be_had() {
    let bench = bench!();
    for attempt in [
        "busybox mknod /tmp/sda b 8 0",
        "busybox mknod /tmp/mem c 1 1",
        "busybox mount -t tmpfs none /tmp",
        "busybox mount -o remount,rw /proc/sys",
        "busybox umount /proc/kcore",
        "busybox unshare -m true",
        "busybox unshare -U true",
        "busybox nsenter -t 1 -m true",
        "busybox pivot_root /tmp /tmp",
        "busybox swapon /tmp/x",
        "busybox insmod /tmp/x",
        "case $(busybox date -s 2001-01-01 2>&1) in *not?permitted*) exit 1;; esac",
        "busybox hostname other",
        "echo x > /dev/new",
        "busybox rm /dev/null",
    ] {
        let (outcome, output) = bench.run(script(attempt));
        assert!(!matches!(outcome, Outcome::Exited(0)), "{attempt}: {output}");
    }
    assert_eq!(
        bench.says("for name in /dev/*; do echo -n \"$name \"; done"),
        "/dev/fd /dev/full /dev/null /dev/random /dev/shm /dev/stderr /dev/stdin /dev/stdout /dev/tty /dev/urandom /dev/zero "
    );
}

/// A program that makes each system call that it is told the number of, and says what the kernel did.
const CALLS: &str = "#include <stdio.h>\n#include <stdlib.h>\n#include <errno.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
int main(void) {\n  static char none[256];\n  struct { const char *name; long number, a, b, c, d; } calls[] = {\n\
    {\"ptrace\", SYS_ptrace, 16, 1, 0, 0}, {\"process_vm_readv\", SYS_process_vm_readv, 1, (long)none, 1, (long)none},\n\
    {\"keyctl\", SYS_keyctl, 0, -3, 1, 0}, {\"add_key\", SYS_add_key, (long)\"user\", (long)\"x\", (long)\"y\", 1},\n\
    {\"bpf\", SYS_bpf, 0, (long)none, 128, 0}, {\"perf_event_open\", SYS_perf_event_open, (long)none, 0, -1, -1},\n\
    {\"mount\", SYS_mount, (long)\"none\", (long)\"/tmp\", (long)\"tmpfs\", 0}, {\"umount2\", SYS_umount2, (long)\"/proc\", 2, 0, 0},\n\
    {\"unshare\", SYS_unshare, 0x10000000, 0, 0, 0}, {\"setns\", SYS_setns, 0, 0, 0, 0}, {\"clone3\", SYS_clone3, (long)none, 64, 0, 0},\n\
    {\"userfaultfd\", SYS_userfaultfd, 1, 0, 0, 0}, {\"io_uring_setup\", SYS_io_uring_setup, 1, (long)none, 0, 0},\n\
    {\"open_by_handle_at\", SYS_open_by_handle_at, 0, (long)none, 0, 0}, {\"init_module\", SYS_init_module, (long)none, 1, (long)\"\", 0}};\n\
  for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {\n    long r = syscall(calls[i].number, calls[i].a, calls[i].b, calls[i].c, calls[i].d);\n\
    printf(\"%s %s\\n\", calls[i].name, r == -1 && (errno == EPERM || errno == ENOSYS) ? \"refused\" : \"LET THROUGH\"); }\n  return 0;\n}\n";

#[test]
fn calls_that_open_the_kernel_or_look_into_others_are_refused() {
    let bench = bench!();
    let (source, program) = (bench.dir.path().join("calls.c"), bench.dir.path().join("calls"));
    fs::write(&source, CALLS).unwrap();
    let compiled = Command::new("cc").arg("-static").arg("-o").arg(&program).arg(&source).output();
    match compiled {
        Ok(compiled) if compiled.status.success() => {}
        other => return println!("skipped: no static program is compiled here: {other:?}"),
    }
    let contents = fs::read(&program).unwrap();
    let target = "/calls".to_owned();
    let file = Mount::File { target, contents, mode: 0o755, uid: 0, gid: 0 };
    let run = Run { command: vec!["/calls".to_owned()], mounts: vec![file], ..script("") };
    let (outcome, output) = bench.run(run);
    assert_eq!(outcome, Outcome::Exited(0), "{output}");
    assert!(output.lines().count() == 15 && output.lines().all(|line| line.ends_with(" refused")), "{output}");
}

#[test]
fn a_fork_bomb_is_bounded_and_dies_with_its_sandbox() {
    let bench = bench!();
    let limits = Limits { processes: 50, ..Limits::default() };
    let bomb = Run { limits, ..script("bomb() { bomb 7654320 | bomb & }; bomb; busybox sleep 1; exit 3") };
    let (outcome, _) = bench.run(bomb);
    assert!(matches!(outcome, Outcome::Exited(_)), "{outcome:?}");
    until(|| processes("7654320") == 0);
}

/// Processes of the host that have `mark` in their arguments.
fn processes(mark: &str) -> usize {
    let commands = fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    commands.filter(|command| command.windows(mark.len()).any(|word| word == mark.as_bytes())).count()
}

#[test]
fn stopped_or_late_a_command_dies_with_all_that_it_started() {
    let bench = bench!();
    let text = "busybox setsid busybox sleep 7654321 & busybox sleep 7654321 & echo begun; busybox sleep 7654321";
    for is_late in [false, true] {
        bench.sandbox.remove(vec!["run".to_owned()]).unwrap();
        let stop = Stop::default();
        let deadline = is_late.then(|| Instant::now() + Duration::from_millis(700));
        let on_output = stop.clone();
        let outcome = bench.sandbox.run(script(text), &stop, deadline, &mut |_| {
            if !is_late {
                on_output.stop();
            }
        });
        assert_eq!(outcome.unwrap(), if is_late { Outcome::TimedOut } else { Outcome::Stopped });
        until(|| processes("7654321") == 0);
    }
}

fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        std::thread::yield_now();
    }
}

#[test]
fn a_builder_that_is_killed_takes_its_sandbox_with_it() {
    // This test as a process of its own is the builder.
    if std::env::var_os("FORM_SANDBOX_BUILDER").is_some() {
        let bench = bench!();
        bench.run(script("busybox setsid busybox sleep 7654329 & busybox sleep 7654329"));
        return;
    }
    let bench = bench!();
    let mut builder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_builder_that_is_killed_takes_its_sandbox_with_it", "--nocapture"])
        .env("FORM_SANDBOX_BUILDER", "1")
        .env("TMPDIR", bench.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while processes("7654329") < 2 {
        assert_eq!(builder.try_wait().unwrap(), None, "the builder ended before it was killed");
        std::thread::yield_now();
    }
    builder.kill().unwrap();
    builder.wait().unwrap();
    until(|| processes("7654329") == 0);
    drop(bench);
}

#[test]
fn secrets_are_there_for_the_command_and_nowhere_else() {
    let bench = bench!();
    let secret = Mount::File {
        target: "/run/secrets/key".to_owned(),
        contents: b"hunter-two".to_vec(),
        mode: 0o400,
        uid: 0,
        gid: 0,
    };
    assert!(!format!("{secret:?}").contains("hunter"));
    let run = Run {
        mounts: vec![secret],
        ..script("busybox cat /run/secrets/key; busybox stat -c %a /run/secrets/key; echo x > /run/secrets/key")
    };
    let (outcome, output) = bench.run(run);
    assert_eq!(outcome, Outcome::Exited(1));
    assert!(output.starts_with("hunter-two400\n"), "{output}");
    let found = Command::new("grep").args(["-rl", "hunter-two"]).arg(bench.sandbox.directory()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn a_link_of_the_image_does_not_lead_a_mount_out_of_it() {
    let bench = bench!();
    bench.says("true");
    let outside = tempfile::tempdir().unwrap();
    let lower = bench.sandbox.directory().join("lower");
    std::os::unix::fs::symlink(outside.path(), lower.join("way")).unwrap();
    let tmpfs = Mount::Tmpfs { target: "/way/in".to_owned(), bytes: 1 << 20 };
    let mut output = Vec::new();
    bench.sandbox.remove(vec!["run".to_owned()]).unwrap();
    let run = Run { mounts: vec![tmpfs], ..script("true") };
    // It cannot be followed inside, where there is no such directory.
    assert!(bench.sandbox.run(run, &Stop::default(), None, &mut |bytes| output.extend_from_slice(bytes)).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_tmpfs_and_a_directory_that_stays_are_mounted() {
    let bench = bench!();
    let mounts = || {
        vec![
            Mount::Tmpfs { target: "/scratch".to_owned(), bytes: 1 << 20 },
            Mount::Directory {
                source: "cache".to_owned(),
                target: "/var/kept".to_owned(),
                mode: 0o755,
                uid: 3,
                gid: 4,
            },
        ]
    };
    let text =
        "busybox stat -c %u /var/kept; echo kept > /var/kept/a; busybox dd if=/dev/zero of=/scratch/x bs=1M count=4";
    let (outcome, output) = bench.run(Run { mounts: mounts(), ..script(text) });
    assert_eq!(outcome, Outcome::Exited(1), "{output}");
    assert!(output.starts_with("3\n") && output.contains("No space"), "{output}");
    let (_, output) = bench.run(Run { mounts: mounts(), ..script("busybox cat /var/kept/a; busybox ls /scratch") });
    assert_eq!(output, "kept\n");
    assert!(
        bench.changes().iter().all(|name| !name.contains("scratch/") && !name.contains("kept/")),
        "{:?}",
        bench.changes()
    );
}

#[test]
fn a_command_that_is_not_there_is_told_from_one_that_fails() {
    let bench = bench!();
    let run = Run { command: vec!["/bin/nothing".to_owned()], ..script("") };
    assert!(matches!(bench.run(run).0, Outcome::NotStarted(_)));
    assert_eq!(bench.run(script("exit 42")).0, Outcome::Exited(42));
    assert_eq!(bench.run(script("busybox kill -TERM $$")).0, Outcome::Killed(15));
}
