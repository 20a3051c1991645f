//! The end of a guest.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sync};

use crate::console::{drain, say};
use crate::mounts;

/// How long what the entrypoint left behind has to end, after SIGTERM and again after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ends every process, makes the disk clean, and switches the machine off. Never returns.
pub(crate) fn off(signals: Option<&SignalFd>) -> ! {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // All but process 1 itself.
        if kill(Pid::from_raw(-1), signal).is_ok() {
            wait_for_all(signals);
        }
    }
    sync();
    mounts::seal();
    drain();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    say(format_args!("cannot power off: {error}"));
    // Process 1 must not end: the kernel would panic, and the reason above would drown in its dump.
    loop {
        let _ = poll(&mut [], PollTimeout::NONE);
    }
}

/// Reaps until no child is left, or [`PATIENCE`] is.
fn wait_for_all(signals: Option<&SignalFd>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) => {}
            Ok(_) | Err(_) => continue,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let mut fds: Vec<_> = signals.map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).into_iter().collect();
        let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
        while signals.is_some_and(|s| matches!(s.read_signal(), Ok(Some(_)))) {}
    }
}
