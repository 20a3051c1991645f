//! The name server as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    form_service::main("Names of Formation: authoritative DNS for the cluster's zones.", form_dns::run)
}
