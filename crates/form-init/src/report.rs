//! Telling the host. The console gets every report as well, for the person who reads it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use form_guest::Report;
use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, poll};

use crate::console::say;

/// How long a host that takes nothing may hold up the guest for each report, in milliseconds.
const PATIENCE_MS: u16 = 2000;

/// The report port, once it is found. Nothing the host does to it can stop the guest.
#[derive(Default)]
pub(crate) struct Reporter(Option<File>);

impl Reporter {
    pub(crate) fn open(port: &Path) -> Self {
        match OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(port) {
            Ok(file) => Self(Some(file)),
            Err(error) => {
                say(format_args!("{}: {error}", port.display()));
                Self(None)
            }
        }
    }

    pub(crate) fn tell(&mut self, report: &Report) {
        match report {
            Report::Booting => {}
            Report::Started { pid } => say(format_args!("the entrypoint runs as process {pid}")),
            Report::Exited { code: Some(code), .. } => say(format_args!("the entrypoint exited with {code}")),
            Report::Exited { signal, .. } => {
                say(format_args!("the entrypoint was killed by signal {}", signal.unwrap_or_default()));
            }
            Report::Failed { reason } => say(format_args!("cannot start: {reason}")),
            Report::Health { healthy: true, .. } => say("the workload is healthy"),
            Report::Health { output, .. } => say(format_args!("the workload is unhealthy: {output}")),
            Report::Stopping => say("stopping"),
        }
        let Some(port) = &mut self.0 else { return };
        let ready = poll(&mut [PollFd::new(port.as_fd(), PollFlags::POLLOUT)], PATIENCE_MS);
        let told = match ready {
            Ok(0) => Err(std::io::ErrorKind::TimedOut.into()),
            Ok(_) => port.write_all(report.to_line().as_bytes()),
            Err(errno) => Err(errno.into()),
        };
        if let Err(error) = told {
            say(format_args!("the host was not told: {error}"));
        }
    }
}
