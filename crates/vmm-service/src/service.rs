//! The agent of a node: says that the node is there, follows the instances that are placed on it, shows their consoles.

mod api;
mod images;
mod instances;
mod node;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use form_client::{Client, reconcile};
use form_service::Context;
use form_service::identity::IdentityError;
use form_service::listener::{self, Limits};
use futures::future::{Either, select};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use self::api::Consoles;
use self::images::Images;
use self::instances::Instances;
use crate::config::Config;
use crate::error::file;
use crate::{Host, Phase, Vm, open_all};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("listening on {address}; is another vmm-service running?")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Machines(#[from] crate::Error),
    #[error(transparent)]
    Client(#[from] form_client::Error),
    #[error(transparent)]
    Images(#[from] images::ImageError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Runs until the context's shutdown. The machines run on.
pub async fn run(context: Context<Config>) -> Result<(), RunError> {
    let config = Arc::clone(&context.config.borrow());
    context.health.wait_for("machines", "form-state has not listed the instances yet");
    context.health.wait_for(node::NODE, "form-state has not heard yet that it is ready");
    let client = Client::new(config.state.clone(), &context.identity, "vmm-service")?;
    // A node that says that it is ready, and can give no machine a network, would have machines placed on it.
    form_tap::open_tun().map_err(file("open", form_tap::TUN))?;
    let tls = context.identity.server()?;
    let listener =
        TcpListener::bind(config.listen).await.map_err(|source| RunError::Listen { address: config.listen, source })?;
    // It listens from the first, and says what it waits for.
    let consoles = Consoles::default();
    let routes = api::routes(client.clone(), consoles.clone(), context.shutdown.clone());
    tracing::info!(address = %config.listen, "vmm-service serves");
    let (health, shutdown) = (context.health.clone(), context.shutdown.clone());
    let serving = listener::serve(listener, tls, routes, health, Limits::default(), shutdown.clone());
    let working = async {
        let (instances, nudges) = start(&context, &config, &client).await?;
        consoles.show(&instances);
        let mut background = JoinSet::new();
        let (accelerator, health) = (instances.accelerator(), context.health.clone());
        background.spawn(node::keep_ready(client.clone(), Arc::clone(&config), accelerator, health));
        background.spawn(reconcile::run(client.clone(), "", instances, reconcile::Options::default(), nudges));
        shutdown.cancelled().await;
        // Consoles are read to the end of the stop.
        Ok(background)
    };
    let (serving, working) = (std::pin::pin!(serving), std::pin::pin!(working));
    match select(serving, working).await {
        Either::Left(((), _)) => Ok(()),
        Either::Right((Err(error), _)) => Err(error),
        Either::Right((Ok(_background), serving)) => {
            serving.await;
            Ok(())
        }
    }
}

type Started = (Arc<Instances>, tokio::sync::mpsc::Receiver<form_client::Name>);

async fn start(context: &Context<Config>, config: &Arc<Config>, client: &Client) -> Result<Started, RunError> {
    let (kernel, initramfs) = (config.guest_dir.join("vmlinuz"), config.guest_dir.join("initramfs"));
    let host = Host::new(&config.data_dir, &kernel, &initramfs, config.machine_uids, config.console_limit()).await?;
    node::register(client, config).await?;
    let images = Images::open(config.data_dir.join("images"), &context.identity)?;
    let (nudge, nudges) = reconcile::nudges();
    let (client, config, health) = (client.clone(), Arc::clone(config), context.health.clone());
    let instances = Instances::adopt(client, host, images, config, nudge, health)?;
    Ok((Arc::new(instances), nudges))
}

/// Stops every machine that `data_dir` holds, in good order; says how many. For when no vmm-service runs: the next one
/// starts those again that are wanted.
///
/// # Errors
/// If the machines cannot be looked at, or one of them cannot be taken up; the others are stopped all the same.
pub async fn stop_all(data_dir: &Path, guest_dir: &Path) -> Result<usize, crate::Error> {
    let (kernel, initramfs) = (guest_dir.join("vmlinuz"), guest_dir.join("initramfs"));
    let config = Config::default();
    let host = Host::new(data_dir, &kernel, &initramfs, config.machine_uids, config.console_limit()).await?;
    let (mut machines, mut failure) = (Vec::new(), None);
    for (_, machine) in open_all(&host, Vm::open_stopped)? {
        match machine {
            Ok(machine) => machines.push(machine),
            // Was never made to its end.
            Err(crate::Error::NotFound { .. }) => {}
            Err(error) => failure = Some(error),
        }
    }
    let mut stopped = 0;
    for machine in &machines {
        let (mut status, mut was_up) = (machine.watch(), false);
        // A wait ends with the machine's task too, and that is as good as stopped.
        let _ = status
            .wait_for(|status| {
                was_up |= status.pid.is_some();
                matches!(status.phase, Phase::Stopped | Phase::Failed | Phase::Deleted)
            })
            .await;
        stopped += usize::from(was_up);
    }
    failure.map_or(Ok(stopped), Err)
}
