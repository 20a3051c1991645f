//! The resource store as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    form_service::main(
        "The resource store of Formation: the API (REST and gRPC on one port), the scheduler, tokens.",
        form_state::run,
    )
}
