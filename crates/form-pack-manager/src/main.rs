//! The package builder and store as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    // As one step of a build it is another program.
    form_sandbox::entry();
    form_service::main(
        "Builds of Formation: a Formfile and its files in, an OCI image and a root disk out.",
        form_pack_manager::run,
    )
}
