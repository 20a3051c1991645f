//! From the start of the workload to its end.
//!
//! ```text
//!              power button, SIGTERM              grace over
//!   Running ─────────────────────────▶ Stopping ────────────▶ Killing
//!      │                                   │                     │
//!      └──── entrypoint ends ──────────────┴─────────────────────┴──▶ done
//! ```
//!
//! The stop signal goes to the entrypoint alone: what it started is its own to stop. SIGKILL is not refused, so Killing ends.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use form_guest::Report;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::button::Button;
use crate::health::Health;
use crate::report::Reporter;

/// Watches over `entrypoint` until it ends, and returns how it did.
///
/// # Errors
/// Only if the kernel refuses to wait.
pub(crate) fn supervise(
    entrypoint: Pid,
    (grace, stop): (Duration, Signal),
    mut health: Option<Health>,
    signals: &mut SignalFd,
    buttons: &mut [Button],
    reporter: &mut Reporter,
) -> nix::Result<Report> {
    // When to kill; None while Running.
    let mut deadline: Option<Instant> = None;
    loop {
        if let Some(exit) = reap(entrypoint, &mut health, reporter)? {
            return Ok(exit);
        }
        if let Some(news) = health.as_mut().and_then(|health| health.step(Instant::now())) {
            reporter.tell(&news);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let _ = kill(entrypoint, Signal::SIGKILL);
        }
        wait(signals, buttons, deadline, health.as_ref())?;
        let mut asked = buttons.iter_mut().fold(false, |asked, button| button.pressed() | asked);
        while let Ok(Some(signal)) = signals.read_signal() {
            asked |= i32::try_from(signal.ssi_signo) != Ok(Signal::SIGCHLD as i32);
        }
        if asked && deadline.is_none() {
            deadline = Some(Instant::now() + grace);
            reporter.tell(&Report::Stopping);
            // What is going is not asked how it is.
            health.take().into_iter().for_each(|mut health| health.stop());
            let _ = kill(entrypoint, stop);
        }
    }
}

/// Sleeps until there is a signal, a press, something of a health check, or the deadline.
fn wait(signals: &SignalFd, buttons: &[Button], deadline: Option<Instant>, health: Option<&Health>) -> nix::Result<()> {
    let deadline = deadline.into_iter().chain(health.and_then(Health::due)).min();
    let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    fds.extend(buttons.iter().map(|button| PollFd::new(button.fd(), PollFlags::POLLIN)));
    fds.extend(health.and_then(Health::fd).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    let timeout = match deadline {
        None => PollTimeout::NONE,
        // After the kill, only its SIGCHLD is waited for; a second is a safety net, not a rhythm.
        Some(deadline) => match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => PollTimeout::from(1000u16),
            // Rounded up, or the last millisecond would be spent spinning.
            left => PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
        },
    };
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Reaps everything that has ended. Orphans of the workload end up here too, and nobody asks for how they ended.
fn reap(entrypoint: Pid, health: &mut Option<Health>, reporter: &mut Reporter) -> nix::Result<Option<Report>> {
    loop {
        let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, Some(code), None),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, None, Some(signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        };
        if pid == entrypoint {
            return Ok(Some(Report::Exited { code, signal }));
        }
        if let Some(news) = health.as_mut().and_then(|health| health.ended(pid, code == Some(0), Instant::now())) {
            reporter.tell(&news);
        }
    }
}
