//! The services of one machine, as tasks of one process.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use form_client::{Client, Endpoint};
use form_service::config::fixed;
use form_service::identity::IdentityError;
use form_service::{Authority, CancellationToken, Context, Health, Identity};
use form_types::kinds;
use tokio::task::JoinSet;

use super::{Config, UpError};

/// This machine, as a node of a cluster.
pub(super) struct Node {
    pub(super) name: String,
    /// Where its services listen, and others find them.
    pub(super) address: IpAddr,
    /// The cluster's form-state.
    pub(super) state: Endpoint,
    /// The zone of the cluster's own names.
    pub(super) zone: String,
    /// Where this node's package store answers; empty: it has none, and packages come from other nodes.
    pub(super) pack_url: String,
    pub(super) identities: Identities,
    pub(super) config: Arc<Config>,
    pub(super) shutdown: CancellationToken,
}

/// Where the services' identities come from.
pub(super) enum Identities {
    /// Here is the CA: they are issued at each start.
    Issued(Box<Authority>),
    /// They came with the join: DIR/SERVICE.
    Joined(PathBuf),
}

/// Services that run.
#[derive(Default)]
pub(super) struct Services {
    tasks: JoinSet<Result<(), UpError>>,
    pub(super) ready: Vec<Health>,
}

impl Node {
    /// Starts what every node has.
    pub(super) fn start(&self, services: &mut Services) -> Result<(), UpError> {
        let config = &self.config;
        let vmm = self.context(vmm_service::Config {
            listen: self.at(config.vmm_port),
            public_url: format!("https://{}", self.at(config.vmm_port)),
            pack_url: self.pack_url.clone(),
            state: self.state.clone(),
            node: self.name.clone(),
            data_dir: config.dir("machines"),
            guest_dir: config.guest_dir.clone(),
            zone: self.zone.clone(),
            console_kib: config.console_kib,
            machine_uids: config.machine_uids,
            ..Default::default()
        })?;
        let dns = self.context(form_dns::Config {
            listen: self.names(config.dns_port),
            admin: self.at(config.dns_admin_port),
            zone: self.zone.clone(),
            state: self.state.clone(),
            ..Default::default()
        })?;
        // Where this machine is known by an address, it is reached there first.
        let own = Some(SocketAddr::new(self.address, config.mesh_port)).filter(|own| !own.ip().is_loopback());
        let net = self.context(formnet::Config {
            listen: self.at(config.net_port),
            public_url: format!("https://{}", self.at(config.net_port)),
            state: self.state.clone(),
            node: self.name.clone(),
            data_dir: config.dir("network"),
            port: config.mesh_port,
            endpoints: config.mesh_endpoints.iter().copied().chain(own).collect(),
            mtu: config.mesh_mtu,
            ..Default::default()
        })?;
        services.add(net, formnet::run);
        services.add(vmm, vmm_service::run);
        let (node, state, port) = (self.name.clone(), self.state.clone(), config.dns_port);
        services.add(dns, move |dns| names(node, state, port, dns));
        Ok(())
    }

    /// Where names are asked for: where the others find this machine, and on it.
    fn names(&self, port: u16) -> Vec<SocketAddr> {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let there = Some(self.at(port)).filter(|there| *there != here);
        there.into_iter().chain([here]).collect()
    }

    pub(super) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// What a service is run with: its configuration, an identity of its own, and the stop that all share.
    pub(super) fn context<C: form_service::Config>(&self, config: C) -> Result<Context<C>, IdentityError> {
        let identity = match &self.identities {
            Identities::Issued(authority) => {
                let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                addresses.extend(Some(self.address).filter(|address| !address.is_loopback()));
                authority.issue(C::SERVICE, &self.name, &["localhost".to_owned()], &addresses)?
            }
            Identities::Joined(dir) => Identity::load(&dir.join(C::SERVICE))?,
        };
        Ok(Context::new(fixed(config), identity, self.shutdown.clone()))
    }
}

impl Services {
    pub(super) fn add<C, E, F>(&mut self, context: Context<C>, run: impl FnOnce(Context<C>) -> F + Send + 'static)
    where
        C: Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        UpError: From<E>,
    {
        self.ready.push(context.health.clone());
        self.tasks.spawn(async move { Ok(run(context).await?) });
    }

    /// Adds what is no service, and ends with them.
    pub(super) fn accompany(&mut self, task: impl Future<Output = Result<(), UpError>> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Waits until all have ended. One that ends by itself takes the others along: half a cloud would only look like one.
    pub(super) async fn ended(mut self, shutdown: CancellationToken) -> Result<(), UpError> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            shutdown.cancel();
            let ended = ended.unwrap_or_else(|error| Err(UpError::Panicked(error)));
            if result.is_ok() {
                result = ended;
            }
        }
        result
    }
}

/// Runs form-dns, once form-state has given this node its prefixes: guests ask at the node's own addresses in them.
async fn names(node: String, state: Endpoint, port: u16, mut dns: Context<form_dns::Config>) -> Result<(), UpError> {
    let client = Client::new(state, &dns.identity, "form-dns")?;
    let spec = loop {
        match client.get::<kinds::Node>("", &node).await {
            Ok(node) => break node.spec,
            Err(form_client::Error::NotFound(_) | form_client::Error::Unavailable(_)) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            () = dns.shutdown.cancelled() => return Ok(()),
        }
    };
    let mut config = form_dns::Config::clone(&dns.config.borrow());
    config.listen.extend(formnet::gateways(&spec).into_iter().map(|ip| SocketAddr::new(ip, port)));
    dns.config = fixed(config);
    Ok(form_dns::run(dns).await?)
}
