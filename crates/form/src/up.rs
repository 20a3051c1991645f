//! `form up`: the whole cloud in one process, and `form down`, which stops it.
//!
//! ```text
//!   DATA/pki/        the cluster's CA
//!   DATA/state/      form-state        DATA/packages/   form-pack-manager
//!   DATA/machines/   vmm-service       DATA/kernel/     what guests boot
//!   DATA/context.toml                  where this cloud is, and the first admin's token
//!   DATA/form.lock                     held while it is up; the holder's process id is in it
//! ```
//!
//! Nothing is different from eight processes on eight machines: the services find each other by address, show each other
//! certificates, and stop in any order.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use form_client::{Client, Endpoint};
use form_service::config::{Sources, fixed};
use form_service::identity::IdentityError;
use form_service::logs::LogConfig;
use form_service::{Authority, CancellationToken, Health};
use form_types::kinds;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::task::{JoinError, JoinSet};

use crate::context::{Context, path_in};
use crate::error::Error;
use crate::output::say;
use crate::{cli, progress};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    /// Has vmlinuz and initramfs.
    pub(crate) guest_dir: PathBuf,
    /// This node's name; empty: the host's.
    pub(crate) node: String,
    /// Where the services listen, and find each other.
    pub(crate) address: IpAddr,
    pub(crate) state_port: u16,
    pub(crate) vmm_port: u16,
    pub(crate) pack_port: u16,
    pub(crate) dns_admin_port: u16,
    pub(crate) dns_port: u16,
    /// The bridge that instances are on.
    pub(crate) bridge: String,
    pub(crate) zone: String,
    /// The size at which a console's log is rotated, KiB; two rotated ones are kept.
    pub(crate) console_kib: u32,
    /// The users that machines run as: the first and the last; nobody else's, and of this cloud alone.
    pub(crate) machine_uids: [u32; 2],
    /// Where `FROM debian:SUITE` comes from; empty: from Debian's own servers, with the suite's security updates.
    pub(crate) debian_mirror: String,
    /// `HOST[:PORT]` of the registries that a FROM may name though they are at addresses that are not public.
    pub(crate) registries: Vec<String>,
    /// `HOST[:PORT]` of those that are asked without TLS.
    pub(crate) insecure_registries: Vec<String>,
    pub(crate) log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/formation".into(),
            guest_dir: "/var/lib/formation/kernel".into(),
            node: String::new(),
            address: Ipv4Addr::LOCALHOST.into(),
            state_port: 3004,
            vmm_port: 3002,
            pack_port: 3003,
            dns_admin_port: 3005,
            dns_port: 53,
            bridge: "form0".to_owned(),
            zone: "formation.internal".to_owned(),
            console_kib: 4096,
            machine_uids: vmm_service::MACHINE_UIDS,
            debian_mirror: String::new(),
            registries: Vec::new(),
            insecure_registries: Vec::new(),
            log: LogConfig::default(),
        }
    }
}

impl form_service::Config for Config {
    const SERVICE: &'static str = "form-up";

    fn log(&self) -> &LogConfig {
        &self.log
    }

    fn identity_dir(&self) -> &Path {
        &self.data_dir
    }

    /// form-state's: without it there is no cloud.
    fn probes(&self) -> SocketAddr {
        self.at(self.state_port)
    }

    fn check(&self) -> Result<(), String> {
        if self.address.is_unspecified() {
            return Err(format!("address: {} is no address that services could find each other by", self.address));
        }
        if self.console_kib == 0 {
            return Err("console_kib: 0 would keep nothing; give at least 1".to_owned());
        }
        vmm_service::check_machine_uids(self.machine_uids)?;
        form_pack_manager::Config { debian_mirror: self.debian_mirror.clone(), ..Default::default() }.check()?;
        if self.bridge.is_empty() || self.bridge.len() > 15 {
            return Err(format!("bridge: {:?} is not 1 to 15 bytes, as the kernel wants it", self.bridge));
        }
        Ok(())
    }
}

impl Config {
    pub(crate) fn of(flags: &cli::Up) -> Result<Self, Error> {
        sources(flags).load().map_err(|error| Error::Usage(form_service::run::chain(&error)))
    }

    fn node(&self) -> String {
        if !self.node.is_empty() {
            return self.node.clone();
        }
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().to_lowercase();
        let label: String = host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
        let label = label.trim_matches('-');
        if label.is_empty() { "node".to_owned() } else { label.to_owned() }
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    fn url(&self, port: u16) -> String {
        format!("https://{}", self.at(port))
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }
}

fn sources(flags: &cli::Up) -> Sources {
    let mut set = flags.set.clone();
    for (key, dir) in [("data_dir", &flags.data_dir), ("guest_dir", &flags.guest_dir)] {
        // In quotes: a directory's name may look like a number.
        set.extend(dir.as_ref().map(|dir| format!("{key}={:?}", dir.display().to_string())));
    }
    Sources { file: flags.config.clone(), set }
}

pub(crate) fn up(flags: &cli::Up) -> ExitCode {
    let sources = sources(flags);
    if flags.check_config {
        return form_service::run::check_config::<Config>(&sources);
    }
    // The identity of `form up` itself is for nobody; those that count are issued below, one for each service.
    let identity = |config: &Config| authority(config)?.issue("form", &config.node(), &[], &[]);
    form_service::run::start(sources, identity, run)
}

fn authority(config: &Config) -> Result<Authority, IdentityError> {
    Authority::open_or_create(&config.dir("pki"))
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum UpError {
    #[error("data directory {}", .path.display())]
    Data { path: PathBuf, source: std::io::Error },
    #[error("a cloud is up already with {}; stop it with `form down`, or give this one another --data-dir", .0.display())]
    UpAlready(PathBuf),
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
    #[error("a service stopped in a way that it should not")]
    Panicked(#[source] JoinError),
}

async fn run(context: form_service::Context<Config>) -> Result<(), UpError> {
    let config = Arc::clone(&context.config.borrow());
    // Until this process is no more: with its services' last tasks goes what they hold, and then the next may come.
    std::mem::forget(lock(&config.data_dir)?);
    let listen = config.at(config.state_port);
    let endpoint = Endpoint::from(listen);
    let cloud =
        Cloud { authority: authority(&config)?, node: config.node(), shutdown: context.shutdown.clone(), config };
    let config = &cloud.config;
    context.health.done(form_service::listener::LISTENING);
    context.health.wait_for("cloud", "its services start");

    let state = cloud.context(form_state::Config { listen, data_dir: config.dir("state"), ..Default::default() })?;
    let pack = cloud.context(form_pack_manager::Config {
        listen: config.at(config.pack_port),
        public_url: config.url(config.pack_port),
        state: endpoint.clone(),
        data_dir: config.dir("packages"),
        debian_mirror: config.debian_mirror.clone(),
        registries: config.registries.clone(),
        insecure_registries: config.insecure_registries.clone(),
        ..Default::default()
    })?;
    let vmm = cloud.context(vmm_service::Config {
        listen: config.at(config.vmm_port),
        public_url: config.url(config.vmm_port),
        pack_url: config.url(config.pack_port),
        state: endpoint.clone(),
        node: cloud.node.clone(),
        data_dir: config.dir("machines"),
        guest_dir: config.guest_dir.clone(),
        bridge: config.bridge.clone(),
        zone: config.zone.clone(),
        console_kib: config.console_kib,
        machine_uids: config.machine_uids,
        ..Default::default()
    })?;
    let dns = cloud.context(form_dns::Config {
        listen: vec![config.at(config.dns_port)],
        admin: config.at(config.dns_admin_port),
        zone: config.zone.clone(),
        state: endpoint.clone(),
        ..Default::default()
    })?;
    let ready = [&state.health, &pack.health, &vmm.health, &dns.health].map(Clone::clone);

    let mut services: JoinSet<Result<(), UpError>> = JoinSet::new();
    services.spawn(async { Ok(form_state::run(state).await?) });
    services.spawn(async { Ok(form_pack_manager::run(pack).await?) });
    services.spawn(async { Ok(vmm_service::run(vmm).await?) });
    services.spawn(names(cloud.node.clone(), endpoint, config.dns_port, dns));
    services.spawn(announce(context.clone(), listen, ready));

    let mut result = Ok(());
    while let Some(ended) = services.join_next().await {
        // One that ends by itself takes the others along: half a cloud would only look like one.
        context.shutdown.cancel();
        let ended = ended.unwrap_or_else(|error| Err(UpError::Panicked(error)));
        if result.is_ok() {
            result = ended;
        }
    }
    result
}

/// Runs form-dns, once form-state has given this node its prefixes: guests ask at the node's own addresses in them.
async fn names(
    node: String,
    state: Endpoint,
    port: u16,
    mut dns: form_service::Context<form_dns::Config>,
) -> Result<(), UpError> {
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
    config.listen.extend(vmm_service::gateways(&spec).into_iter().map(|ip| SocketAddr::new(ip, port)));
    dns.config = fixed(config);
    Ok(form_dns::run(dns).await?)
}

/// Says that the cloud is up, once all of it is, and where.
async fn announce(
    context: form_service::Context<Config>,
    state: SocketAddr,
    ready: [Health; 4],
) -> Result<(), UpError> {
    let started = Instant::now();
    for health in &ready {
        tokio::select! {
            () = health.ready() => {}
            () = context.shutdown.cancelled() => return Ok(()),
        }
    }
    let (data_dir, zone) = {
        let config = context.config.borrow();
        (config.data_dir.clone(), config.zone.clone())
    };
    let file = path_in(&data_dir);
    let fail = |error: &(dyn std::error::Error + 'static)| UpError::Context(form_service::run::chain(error));
    let token = form_service::secret::read(&data_dir.join("state/admin.token")).map_err(|error| fail(&error))?;
    let (token, ca) = (token.reveal().to_owned(), context.identity.ca_pem.clone());
    let wanted = Context { state, token, ca, zone };
    wanted.save(&file).map_err(|error| fail(&error))?;
    context.health.done("cloud");
    tracing::info!(context = %file.display(), took_ms = started.elapsed().as_millis(), "the cloud is up");
    context.shutdown.cancelled().await;
    Ok(())
}

struct Cloud {
    authority: Authority,
    node: String,
    config: Arc<Config>,
    shutdown: CancellationToken,
}

impl Cloud {
    /// What a service is run with: its configuration, an identity of its own, and the stop that all share.
    fn context<C: form_service::Config>(&self, config: C) -> Result<form_service::Context<C>, IdentityError> {
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        addresses.extend(Some(self.config.address).filter(|address| !address.is_loopback()));
        let identity = self.authority.issue(C::SERVICE, &self.node, &["localhost".to_owned()], &addresses)?;
        Ok(form_service::Context::new(fixed(config), identity, self.shutdown.clone()))
    }
}

/// Takes the data directory for this process.
fn lock(data_dir: &Path) -> Result<File, UpError> {
    let fail = |source| UpError::Data { path: data_dir.to_owned(), source };
    std::fs::create_dir_all(data_dir).map_err(fail)?;
    let mut file = open_lock(data_dir).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(UpError::UpAlready(data_dir.to_owned())),
        Err(TryLockError::Error(source)) => return Err(fail(source)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(fail)?;
    Ok(file)
}

fn open_lock(data_dir: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(data_dir.join("form.lock"))
}

/// Stops the cloud of this data directory, and with `--machines` its machines.
pub(crate) async fn down(flags: cli::Down) -> Result<(), Error> {
    let config = Config::of(&flags.up)?;
    let path = config.data_dir.join("form.lock");
    if !path.exists() {
        return Err(Error::Failed(format!("there is no cloud with {}", config.data_dir.display())));
    }
    let mut file = open_lock(&config.data_dir).map_err(Error::file(&path))?;
    let was_up = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
    if was_up {
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(Error::file(&path))?;
        let pid = text
            .trim()
            .parse::<i32>()
            .map_err(|_| Error::Failed(format!("{}: holds no process id", path.display())))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|error| {
            Error::Failed(format!("process {pid}, which runs the cloud, cannot be told to stop: {error}"))
        })?;
        let bar = progress::waiting("waiting for the cloud to stop");
        tokio::task::spawn_blocking(move || file.lock())
            .await
            .map_err(|error| Error::Failed(error.to_string()))?
            .map_err(Error::file(&path))?;
        bar.finish_and_clear();
    }
    if flags.machines {
        let stopped = vmm_service::stop_all(&config.data_dir.join("machines"), &config.guest_dir).await;
        let stopped = stopped.map_err(|error| Error::Failed(form_service::run::chain(&error)))?;
        return say(format_args!("the cloud is down; machines stopped: {stopped}"));
    }
    let instances = std::fs::read_dir(config.data_dir.join("machines/instances"));
    let some = instances.is_ok_and(|mut instances| instances.next().is_some());
    let down = if was_up { "the cloud is down" } else { "the cloud was down already" };
    let machines = if some { "; its machines run on (--machines stops them too)" } else { "" };
    say(format_args!("{down}{machines}"))
}
