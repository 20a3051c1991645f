//! What this process says on the console. The workload's output is on the same console, so each line is marked.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::sys::termios::{OutputFlags, SetArg, tcdrain, tcgetattr, tcsetattr};

/// Writes one marked line. A console that takes nothing is no reason to stop.
pub(crate) fn say(message: impl Display) {
    // One write for each line, so that the workload's output cannot get between its pieces.
    let _ = io::stderr().write_all(format!("form-init: {message}\n").as_bytes());
}

/// The terminal behind /dev/console. It can control a session, which /dev/console itself cannot.
pub(crate) fn terminal() -> PathBuf {
    let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    // With several consoles, the last one is what /dev/console means.
    match active.split_whitespace().last() {
        Some(name) if PathBuf::from("/dev").join(name).exists() => PathBuf::from("/dev").join(name),
        _ => PathBuf::from("/dev/console"),
    }
}

/// Lets bytes through as they are written: the host's log wants "\n", not a terminal's "\r\n".
pub(crate) fn pass_through(terminal: &File) -> nix::Result<()> {
    let mut settings = tcgetattr(terminal)?;
    settings.output_flags.remove(OutputFlags::OPOST);
    tcsetattr(terminal, SetArg::TCSANOW, &settings)
}

/// Waits until the console has sent everything: power off throws away what it still holds.
pub(crate) fn drain() {
    let _ = tcdrain(io::stderr().as_fd());
}
