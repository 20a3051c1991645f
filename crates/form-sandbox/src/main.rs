//! A sandbox as a program of its own, for those that cannot be run again as one: tests.

fn main() -> std::process::ExitCode {
    form_sandbox::entry();
    std::process::ExitCode::from(2)
}
