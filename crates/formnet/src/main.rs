//! The network of a node as a process of its own.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use form_service::config::Sources;
use form_service::run::chain;

/// Takes away all that formnet made on this machine: interfaces, routes, rules. What it did not make, it does not touch.
#[derive(Parser)]
#[command(name = "formnet down")]
struct Down {
    /// The configuration file [default: /etc/formation/formnet/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

fn main() -> ExitCode {
    formnet::entry();
    let mut words = std::env::args_os();
    if words.nth(1).is_some_and(|word| word == "down") {
        return down(Down::parse_from(std::iter::once("formnet down".into()).chain(words)));
    }
    form_service::main(
        "The encrypted network of Formation: one node's end of it. `formnet down` takes it away again.",
        formnet::run,
    )
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command says what it did, and why it could not")]
fn down(flags: Down) -> ExitCode {
    let config = match (Sources { file: flags.config, set: flags.set }).load::<formnet::Config>() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("formnet: {}", chain(&error));
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("formnet: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(formnet::down(&config.interface)) {
        Ok(removed) => {
            removed.iter().for_each(|what| println!("removed {what}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("formnet: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
