//! `form`: the operator's command, and the whole cloud in one process.
#![forbid(unsafe_code)]

mod api;
mod cli;
mod context;
mod doctor;
mod error;
mod files;
mod formfile;
mod init;
mod invitation;
mod join;
mod joined;
mod mesh;
mod node;
mod output;
mod pack;
mod peer;
mod progress;
mod registry;
mod run;
mod up;
mod verbs;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::api::Api;
use crate::cli::{Cli, Command, Net, Node, Token};
use crate::context::Context;
use crate::error::Error;

fn main() -> ExitCode {
    // `form up` builds packages; as one step of a build it is another program.
    form_sandbox::entry();
    // And where the kernel has no WireGuard, the mesh is another, too.
    formnet::entry();
    let Cli { context, command } = Cli::parse();
    let client = || -> Result<Api, Error> {
        form_service::run::init_process();
        Api::new(Context::load(context.as_deref())?)
    };
    let result = match command {
        Command::Up(flags) => return up::up(&flags),
        Command::Down(flags) => wait(|| up::down(flags)),
        Command::Init(flags) => init::init(&flags),
        Command::Doctor { up: flags } => doctor::doctor(&flags),
        Command::Explain { path } => verbs::explain(&path),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "form", &mut std::io::stdout());
            Ok(())
        }
        Command::Status(args) => client().and_then(|api| wait(|| verbs::status(api, args.output))),
        Command::Apply(args) => client().and_then(|api| wait(|| verbs::apply(api, args))),
        Command::Get(args) => client().and_then(|api| wait(|| verbs::get(api, args))),
        Command::Delete(args) => client().and_then(|api| wait(|| verbs::delete(api, args))),
        Command::Run(args) => client().and_then(|api| wait(|| run::run(api, args))),
        Command::Logs(args) => client().and_then(|api| wait(|| verbs::logs(api, args))),
        Command::Instance(args) => client().and_then(|api| wait(|| verbs::instance(api, args))),
        Command::Pack(args) => wait(|| pack::pack(client, args)),
        Command::Node(Node::Join(args)) => wait(|| join::join(args)),
        Command::Node(Node::Invite(args)) => client().and_then(|api| wait(|| node::invite(api, args))),
        Command::Node(Node::List { output }) => client().and_then(|api| wait(|| node::list(api, output.output))),
        Command::Node(Node::Cordon { name }) => client().and_then(|api| wait(|| node::cordon(api, &name, true))),
        Command::Node(Node::Uncordon { name }) => client().and_then(|api| wait(|| node::cordon(api, &name, false))),
        Command::Node(Node::Remove { name }) => client().and_then(|api| wait(|| node::remove(api, &name))),
        Command::Net(Net::Peer(args)) => client().and_then(|api| wait(|| peer::run(api, args))),
        Command::Net(Net::Status(args)) => client().and_then(|api| wait(|| mesh::status(api, args))),
        Command::Net(Net::Ping(args)) => client().and_then(|api| wait(|| mesh::ping(api, args))),
        Command::Net(Net::Trace(args)) => client().and_then(|api| wait(|| mesh::trace(api, args))),
        Command::Net(Net::Doctor) => client().and_then(|api| wait(|| mesh::doctor(api))),
        Command::Net(Net::Ls(args)) => client().and_then(|api| wait(|| mesh::ls(api, args))),
        Command::Token(Token::Create { name, role, project, description, expires_at }) => {
            client().and_then(|api| wait(|| verbs::create_token(api, name, role, project, description, expires_at)))
        }
        Command::Token(Token::List { output }) => {
            client().and_then(|api| wait(|| verbs::list_tokens(api, output.output)))
        }
        Command::Token(Token::Revoke { name }) => client().and_then(|api| wait(|| verbs::revoke_token(api, name))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::tell(format_args!("form: {}", form_service::run::chain(&error)));
            error.exit_code()
        }
    }
}

/// A command is one thing at a time; one thread does it.
fn wait<F: Future<Output = Result<(), Error>>>(work: impl FnOnce() -> F) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::Failed(error.to_string()))?.block_on(work())
}
