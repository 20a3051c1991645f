//! The agent of a node as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    form_service::main("The virtual machines of one node of Formation.", vmm_service::run)
}
