//! `form up`: all services of this machine in one process, and `form down`, which stops it.
//!
//! ```text
//!   the first node                             a node that joined
//!   DATA/pki/        the cluster's CA          DATA/joined.toml   which node of which cluster this is
//!   DATA/state/      form-state                DATA/identity/     what the services show
//!   DATA/packages/   form-pack-manager
//!   DATA/context.toml   where the cloud is,
//!                    and an admin's token
//!
//!   both: DATA/machines/   vmm-service         DATA/kernel/       what guests boot
//!         DATA/network/    formnet
//!         DATA/form.lock   held while it is up; the holder's process id is in it
//! ```
//!
//! Nothing is different from eight processes on eight machines: the services find each other by address, show each other
//! certificates, and stop in any order.

mod config;
mod down;
mod first;
mod services;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use form_service::config::Sources;
use form_service::identity::IdentityError;
use form_service::{Authority, Health};
use tokio::task::JoinError;

pub(crate) use self::config::Config;
pub(crate) use self::down::{down, lock};
pub(crate) use self::first::pki_in;
use self::services::Services;
use crate::cli;
use crate::joined::Joined;

pub(crate) fn up(flags: &cli::Up) -> ExitCode {
    let sources = sources(flags);
    if flags.check_config {
        return form_service::run::check_config::<Config>(&sources);
    }
    // The identity of `form up` itself is for nobody; those that count are one for each service.
    let identity = |config: &Config| match worker::identity(config)? {
        Some(identity) => Ok(identity),
        None => Authority::open_or_create(&pki_in(&config.data_dir))?.issue("form", &config.node(), &[], &[]),
    };
    form_service::run::start(sources, identity, run)
}

fn sources(flags: &cli::Up) -> Sources {
    let mut set = flags.set.clone();
    for (key, dir) in [("data_dir", &flags.data_dir), ("guest_dir", &flags.guest_dir)] {
        // In quotes: a directory's name may look like a number.
        set.extend(dir.as_ref().map(|dir| format!("{key}={:?}", dir.display().to_string())));
    }
    Sources { file: flags.config.clone(), set }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum UpError {
    #[error("data directory {}", .path.display())]
    Data { path: PathBuf, source: std::io::Error },
    #[error("a cloud is up already with {}; stop it with `form down`, or give this one another --data-dir", .0.display())]
    UpAlready(PathBuf),
    #[error("{0}")]
    Joined(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("writing the context for `form`: {0}")]
    Context(String),
    #[error(transparent)]
    Client(#[from] form_client::Error),
    #[error(transparent)]
    State(#[from] form_state::RunError),
    #[error(transparent)]
    Dns(#[from] form_dns::RunError),
    #[error(transparent)]
    Pack(#[from] form_pack_manager::RunError),
    #[error(transparent)]
    Vmm(#[from] vmm_service::RunError),
    #[error(transparent)]
    Net(#[from] formnet::RunError),
    #[error("a service stopped in a way that it should not")]
    Panicked(#[source] JoinError),
}

async fn run(context: form_service::Context<Config>) -> Result<(), UpError> {
    let config = Arc::clone(&context.config.borrow());
    // Until this process is no more: with its services' last tasks goes what they hold, and then the next may come.
    std::mem::forget(lock(&config.data_dir)?);
    context.health.done(form_service::listener::LISTENING);
    context.health.wait_for("cloud", "its services start");

    let joined = Joined::read(&config.data_dir).map_err(UpError::Joined)?;
    let mut services = Services::default();
    let is_first = joined.is_none();
    let node = match joined {
        None => {
            let node = first::node(config, context.shutdown.clone())?;
            first::start(&node, &mut services)?;
            node
        }
        Some(joined) => worker::node(joined, config, context.shutdown.clone()),
    };
    node.start(&mut services)?;
    let ready = services.ready.clone();
    services.accompany(announce(context.clone(), ready, is_first));
    services.ended(context.shutdown).await
}

/// Says that the cloud is up, once all of it is that is here, and where.
async fn announce(context: form_service::Context<Config>, ready: Vec<Health>, is_first: bool) -> Result<(), UpError> {
    let started = Instant::now();
    for health in &ready {
        tokio::select! {
            () = health.ready() => {}
            () = context.shutdown.cancelled() => return Ok(()),
        }
    }
    let config = Arc::clone(&context.config.borrow());
    if is_first {
        first::write_context(&config, &context.identity.ca_pem)?;
    }
    context.health.done("cloud");
    let took_ms = started.elapsed().as_millis();
    if is_first {
        let context = crate::context::path_in(&config.data_dir);
        tracing::info!(context = %context.display(), took_ms, "the cloud is up");
    } else {
        tracing::info!(took_ms, "this node of the cloud is up");
    }
    context.shutdown.cancelled().await;
    Ok(())
}
