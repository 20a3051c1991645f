//! What the stories share: namespaces of their own, and what an operator would type in them.
#![allow(dead_code, reason = "each file uses its part")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests may; clippy only knows those that are in a #[test]"
)]

use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// The program that is run again as a tunnel.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_formnet");
const INSIDE: &str = "FORMNET_STORY_INSIDE";
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells a story in namespaces of its own, with a /run of its own; or says why it cannot be told here.
pub(crate) fn story<F: FnOnce()>(tools: &[&str], tell: F) {
    if std::env::var_os(INSIDE).is_some() {
        return tell();
    }
    if let Some(reason) = lacks(tools) {
        return println!("skipped: {reason}");
    }
    // Of the closure, which is named after the test that it is in: `file::test::{{closure}}`.
    let name = std::any::type_name::<F>();
    let name = name.split("::").skip(1).take_while(|part| *part != "{{closure}}").collect::<Vec<_>>().join("::");
    let told = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        // The shell is process 1: it takes the orphans.
        .args(["sh", "-c", "mount -t tmpfs none /run && ip link set lo up && \"$@\"; exit $?", "sh"])
        .arg(std::env::current_exe().expect("this test's binary"))
        .args(["--exact", &name, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .expect("unshare");
    let (out, err) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

fn lacks(tools: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("namespaces and taps need root".to_owned());
    }
    for program in ["unshare", "ip", "ping", "nft"].iter().chain(tools) {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&paths).any(|dir| dir.join(program).is_file()) {
            return Some(format!("there is no {program}; `cargo xtask test` installs it"));
        }
    }
    let namespaces =
        Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]).output();
    if !namespaces.is_ok_and(|output| output.status.success()) || !Path::new("/dev/net/tun").exists() {
        return Some("this machine makes no namespaces, or no taps".to_owned());
    }
    None
}

/// Runs `work` in the namespace `name` of `ip netns`, on a thread and a runtime of its own.
pub(crate) fn within<T: Send, F: Future<Output = T>>(name: &str, work: impl FnOnce() -> F + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if !name.is_empty() {
                let space = File::open(format!("/run/netns/{name}")).expect("a namespace");
                setns(space, CloneFlags::CLONE_NEWNET).expect("to enter it");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async { work().await })
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// As [`within`], in the namespace that the story is in.
pub(crate) fn here<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> T {
    within("", work)
}

/// Runs lines of a shell; the first that fails fails the story.
#[track_caller]
pub(crate) fn sh(script: &str) -> String {
    let output = run(script);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}\n{out}\n{}", String::from_utf8_lossy(&output.stderr));
    out
}

pub(crate) fn run(script: &str) -> Output {
    Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).output().expect("sh")
}

pub(crate) fn works(script: &str) -> bool {
    run(script).status.success()
}

/// Starts lines of a shell, and ends them with the story.
pub(crate) fn start(script: &str) -> Running {
    let child = Command::new("sh")
        .args(["-c", &format!("exec {script}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sh");
    Running(Some(child))
}

pub(crate) struct Running(Option<Child>);

impl Running {
    /// Interrupts it, and returns what it said.
    pub(crate) fn end(mut self) -> String {
        let child = self.0.take().expect("it runs");
        let process = nix::unistd::Pid::from_raw(child.id().cast_signed());
        let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT);
        let output = child.wait_with_output().expect("its output");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    pub(crate) fn wait(mut self) -> String {
        let output = self.0.take().expect("it runs").wait_with_output().expect("its output");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Of what ping said at its end.
#[track_caller]
pub(crate) fn lost(said: &str) -> u32 {
    let line = said.lines().find(|line| line.contains("packets transmitted")).expect(said);
    let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u32>().ok());
    let (sent, received) = (numbers.next().expect(line), numbers.next().expect(line));
    assert!(sent > 0, "{said}");
    sent - received
}

/// Waits until `found` finds something.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "the condition is in other processes, and none of them tells")]
pub(crate) fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
