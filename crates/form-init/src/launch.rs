//! Turning a child into the workload.
//!
//! Between fork and exec, the child needs a session, a terminal, groups, and another user. Rust's `Command` has no safe
//! way to do these there. So the child is this program once more (`form-init launch`), which does them at leisure in
//! a process of its own, and then executes the workload in its place.
//!
//! ```text
//!   process 1                         child (form-init launch)
//!       │ ── Plan, as JSON, on stdin ──▶ │
//!       │                                │ session, terminal, directory, groups, user
//!       │ ◀── stdout: reason, or ─────── │ exec
//!       │     closed by a good exec      ▼
//!       ▼                             workload, on the terminal
//! ```

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, anyhow};
use nix::fcntl::OFlag;
use nix::libc::O_NOCTTY;
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setgid, setgroups, setsid, setuid};
use serde::{Deserialize, Serialize};

/// This program, even after its file is out of reach.
const SELF: &str = "/proc/self/exe";
/// The longest reason that is read back from the child.
const MAX_REASON: u64 = 4096;

/// All that is needed to become the workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) program: PathBuf,
    /// With the program's own name first.
    pub(crate) arguments: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) workdir: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) terminal: PathBuf,
    /// Whether it is heard on a pipe instead of the terminal: see [`start_heard`].
    pub(crate) heard: bool,
}

/// Starts the workload; returns its process id once it is executed.
///
/// The child is not waited for: process 1 reaps whatever ends.
pub(crate) fn start(plan: &Plan) -> anyhow::Result<u32> {
    start_with(plan, Stdio::inherit())
}

/// The same for a plan that is `heard`: what it writes comes out of the pipe, from which reading does not block. It
/// reads nothing.
pub(crate) fn start_heard(plan: &Plan) -> anyhow::Result<(u32, File)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    rustix::io::ioctl_fionbio(&reader, true).context("cannot make a pipe")?;
    Ok((start_with(plan, writer.into())?, reader.into()))
}

fn start_with(plan: &Plan, stderr: Stdio) -> anyhow::Result<u32> {
    let json = serde_json::to_vec(plan)?;
    let mut child = Command::new(SELF)
        .arg("launch")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .context("cannot start a process")?;
    let pid = child.id();
    // Dropped at once, so that the child sees the end of its input.
    child.stdin.take().ok_or_else(|| anyhow!("the child has no input"))?.write_all(&json)?;
    let mut reason = String::new();
    let output = child.stdout.take().ok_or_else(|| anyhow!("the child has no output"))?;
    output.take(MAX_REASON).read_to_string(&mut reason)?;
    if reason.is_empty() { Ok(pid) } else { Err(anyhow!(reason)) }
}

/// The child's side: never returns from a launch that works.
pub(crate) fn child() -> ExitCode {
    // A copy that exec closes: its end tells process 1 that the workload runs.
    let Ok(answer) = io::stdout().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let Err(error) = become_workload();
    let _ = File::from(answer).write_all(format!("{error:#}").as_bytes());
    ExitCode::FAILURE
}

fn become_workload() -> anyhow::Result<std::convert::Infallible> {
    let plan: Plan = serde_json::from_reader(io::stdin().lock()).context("cannot read what to launch")?;
    setsid().context("cannot make a session")?;
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    if plan.heard {
        dup2_stdin(File::open("/dev/null").context("cannot open /dev/null")?)?;
        dup2_stdout(io::stderr())?;
    } else {
        take_terminal(&plan, uid)?;
    }
    // Groups first: after setuid it would be too late.
    let groups: Vec<Gid> = plan.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).context("cannot set the groups")?;
    setgid(gid).with_context(|| format!("cannot become group {gid}"))?;
    setuid(uid).with_context(|| format!("cannot become user {uid}"))?;
    // As the user, who must be allowed to enter it.
    chdir(&plan.workdir).with_context(|| format!("cannot enter the working directory {}", plan.workdir.display()))?;
    SigSet::empty().thread_set_mask().context("cannot unblock signals")?;
    let mut command = Command::new(&plan.program);
    if let Some((name, rest)) = plan.arguments.split_first() {
        command.arg0(name).args(rest);
    }
    let error = command.env_clear().envs(&plan.env).exec();
    Err(error).with_context(|| format!("cannot execute {}", plan.program.display()))
}

fn take_terminal(plan: &Plan, uid: Uid) -> anyhow::Result<()> {
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_NOCTTY)
        .open(&plan.terminal)
        .with_context(|| format!("cannot open {}", plan.terminal.display()))?;
    // Without a terminal of its own a workload lacks only job control.
    let _ = rustix::process::ioctl_tiocsctty(&terminal);
    // For programs that open /dev/stdout anew instead of writing to what they were given.
    let _ = fchown(&terminal, Some(uid), None);
    dup2_stdin(&terminal)?;
    dup2_stdout(&terminal)?;
    dup2_stderr(&terminal)?;
    Ok(())
}
