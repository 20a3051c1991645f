//! The tunnel helper as a program of its own, for those that cannot be run again as one: tests.

fn main() -> std::process::ExitCode {
    formnet::tunnel::entry();
    std::process::ExitCode::from(2)
}
