//! The agent of a node: says that the node is there, follows the instances that are placed on it, shows their consoles.

mod address;
mod api;
mod images;
mod instances;
mod node;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use form_client::{Client, reconcile};
use form_service::Context;
use form_service::identity::IdentityError;
use form_service::listener::{self, Limits};
use form_types::v1::NodeSpec;
use tokio::net::TcpListener;

use self::address::Addresses;
use self::images::Images;
use self::instances::Instances;
use crate::config::Config;
use crate::error::file;
use crate::{Host, Phase, Vm, open_all, sys};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("listening on {address}; is another vmm-service running?")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("node {0} has no prefix in form-state that addresses could come from")]
    NoPrefix(String),
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
    let shutdown = context.shutdown.clone();
    tokio::select! {
        // Until it serves, nothing of it needs an orderly stop.
        result = start(&context, &config) => {
            let (client, instances, nudges) = result?;
            serve(context, &config, client, instances, nudges).await
        }
        () = shutdown.cancelled() => Ok(()),
    }
}

type Started = (Client, Arc<Instances>, tokio::sync::mpsc::Receiver<form_client::Name>);

async fn start(context: &Context<Config>, config: &Arc<Config>) -> Result<Started, RunError> {
    let client = Client::new(config.state.clone(), &context.identity, "vmm-service")?;
    // A node that says that it is ready, and can give no machine a network, would have machines placed on it.
    sys::open_tun().map_err(file("open", sys::TUN))?;
    let (kernel, initramfs) = (config.guest_dir.join("vmlinuz"), config.guest_dir.join("initramfs"));
    let host = Host::new(&config.data_dir, &kernel, &initramfs, config.machine_uids, config.console_limit()).await?;
    for tap in crate::sweep(&host).await? {
        tracing::warn!(tap = tap.name, uid = tap.uid, "a tap that no machine has is deleted");
    }
    let node = node::register(&client, config).await?;
    let addresses = Addresses::of(&node.spec).ok_or_else(|| RunError::NoPrefix(config.node.clone()))?;
    host.network.ensure_bridge(&config.bridge, &addresses.gateways()).await?;
    let images = Images::open(config.data_dir.join("images"), &context.identity)?;
    let (nudge, nudges) = reconcile::nudges();
    let (client_of, config_of) = (client.clone(), Arc::clone(config));
    let health = context.health.clone();
    let instances = Instances::adopt(client_of, host, images, addresses, config_of, nudge, health)?;
    Ok((client, Arc::new(instances), nudges))
}

async fn serve(
    context: Context<Config>,
    config: &Arc<Config>,
    client: Client,
    instances: Arc<Instances>,
    nudges: tokio::sync::mpsc::Receiver<form_client::Name>,
) -> Result<(), RunError> {
    let listener =
        TcpListener::bind(config.listen).await.map_err(|source| RunError::Listen { address: config.listen, source })?;
    let tls = context.identity.server()?;
    let background = [
        tokio::spawn(node::keep_ready(client.clone(), Arc::clone(config), instances.accelerator())),
        tokio::spawn(reconcile::run(client.clone(), "", Arc::clone(&instances), reconcile::Options::default(), nudges)),
    ];
    tracing::info!(address = %config.listen, "vmm-service serves");
    let routes = api::routes(client, instances, context.shutdown.clone());
    listener::serve(listener, tls, routes, context.health, Limits::default(), context.shutdown).await;
    background.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

/// The node's own addresses in its prefixes: where its guests send what is for elsewhere, and ask for names.
pub fn gateways(spec: &NodeSpec) -> Vec<IpAddr> {
    let addresses = Addresses::of(spec);
    addresses.map(|addresses| addresses.gateways().iter().map(ipnet::IpNet::addr).collect()).unwrap_or_default()
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
