//! Process 1 of a guest: from the kernel to the workload, and back to power off.
//!
//! ```text
//!   kernel ──▶ boot ──▶ supervise ──▶ power::off
//!               │                        ▲
//!               └── anything wrong ──────┘   (after Report::Failed)
//! ```
//!
//! The binary has a second face: `form-init launch`, a short-lived child that turns itself into the workload. See
//! [`launch`] for why.
#![forbid(unsafe_code)]

mod boot;
mod button;
mod console;
mod devices;
mod etc;
mod health;
mod launch;
mod modules;
mod mounts;
mod network;
mod power;
mod program;
mod report;
mod supervise;
mod users;

use std::process::ExitCode;

fn main() -> ExitCode {
    // The kernel hands unknown words of its command line to process 1 as arguments: there, they mean nothing.
    if std::process::id() == 1 {
        boot::run();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == "launch") {
        return launch::child();
    }
    console::say("runs as process 1 of a guest, and only there");
    ExitCode::FAILURE
}
