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
use form_service::{Authority, CancellationToken, Config as _, Health, Identity};
use form_types::kinds;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

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

    fn check(&self) -> Result<(), String> {
        if self.address.is_unspecified() {
            return Err(format!("address: {} is no address that services could find each other by", self.address));
        }
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
    form_service::run::start(sources, |config: &Config| Ok::<_, IdentityError>(authority(config)?.issue("form", &config.node(), &[], &[])?), run)
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
    #[error("{0} stopped in a way that it should not")]
    Panicked(String),
}

async fn run(context: form_service::Context<Config>) -> Result<(), UpError> {
    let started = Instant::now();
    let config = Arc::clone(&context.config.borrow());
    let _lock = lock(&config.data_dir)?;
    let cloud = Cloud { authority: authority(&config)?, node: config.node(), config, shutdown: context.shutdown.clone() };
    let config = &cloud.config;
    context.health.wait_for("cloud", "its services start");

    let mut services: JoinSet<Result<(), UpError>> = JoinSet::new();
    let mut ready = Vec::new();

    let state = form_state::Config {
        listen: config.at(config.state_port),
        data_dir: config.dir("state"),
        ..Default::default()
    };
    let endpoint = Endpoint(state.listen);
    let state = cloud.context(state, &mut ready)?;
    services.spawn(async { Ok(form_state::run(state).await?) });

    let pack = form_pack_manager::Config {
        listen: config.at(config.pack_port),
        public_url: format!("https://{}", config.at(config.pack_port)),
        state: endpoint,
        data_dir: config.dir("packages"),
        ..Default::default()
    };
    let pack_url = pack.public_url.clone();
    let pack = cloud.context(pack, &mut ready)?;
    services.spawn(async { Ok(form_pack_manager::run(pack).await?) });

    let vmm = vmm_service::Config {
        listen: config.at(config.vmm_port),
        public_url: format!("https://{}", config.at(config.vmm_port)),
        pack_url,
        state: endpoint,
        node: cloud.node.clone(),
        data_dir: config.dir("machines"),
        guest_dir: config.guest_dir.clone(),
        bridge: config.bridge.clone(),
        zone: config.zone.clone(),
        ..Default::default()
    };
    let vmm = cloud.context(vmm, &mut ready)?;
    services.spawn(async { Ok(vmm_service::run(vmm).await?) });

    // form-dns listens on the node's own address in its prefix, for the guests; form-state gives the prefix.
    let client = Client::new(endpoint, &cloud.issue("form-dns")?, "form-dns")?;
    let rest = async {
        let gateways = cloud.gateways(&client).await?;
        let dns = form_dns::Config {
            listen: std::iter::once(config.address).chain(gateways).map(|ip| SocketAddr::new(ip, config.dns_port)).collect(),
            admin: config.at(config.dns_admin_port),
            zone: config.zone.clone(),
            state: endpoint,
            ..Default::default()
        };
        let dns = cloud.context(dns, &mut ready)?;
        services.spawn(async { Ok(form_dns::run(dns).await?) });
        for health in &ready {
            health.ready().await;
        }
        let token = config.dir("state").join("admin.token");
        let token = form_service::secret::read(&token).map_err(|error| UpError::Context(form_service::run::chain(&error)))?;
        let file = Context { state: endpoint.0, token: token.reveal().to_owned(), ca: context.identity.ca_pem.clone() };
        file.save(&path_in(&config.data_dir)).map_err(|error| UpError::Context(form_service::run::chain(&error)))?;
        context.health.done("cloud");
        let took = started.elapsed();
        tracing::info!(node = cloud.node, context = %path_in(&config.data_dir).display(), ?took, "the cloud is up");
        Ok::<_, UpError>(())
    };
    XX
    while let Some(ended) = services.join_next().await {
        // One that ends by itself takes the others along: half a cloud would only look like one.
        context.shutdown.cancel();
        let ended = ended.unwrap_or_else(|error| Err(UpError::Panicked(error.to_string())));
        if result.is_ok() {
            result = ended;
        }
    }
    result
}

struct Cloud {
    authority: Authority,
    node: String,
    config: Arc<Config>,
    shutdown: CancellationToken,
}

impl Cloud {
    fn issue(&self, service: &str) -> Result<Identity, IdentityError> {
        let names = ["localhost".to_owned()];
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        if !addresses.contains(&self.config.address) {
            addresses.push(self.config.address);
        }
        self.authority.issue(service, &self.node, &names, &addresses)
    }

    /// What a service is run with: its configuration, an identity of its own, and the stop that all share.
    fn context<C: form_service::Config>(
        &self,
        config: C,
        ready: &mut Vec<Health>,
    ) -> Result<form_service::Context<C>, IdentityError> {
        let health = Health::default();
        // Before it runs, a service is not ready, whatever it will wait for.
        ready.push(health.clone());
        let identity = self.issue(C::SERVICE)?;
        Ok(form_service::Context { config: fixed(config), identity, health, shutdown: self.shutdown.clone() })
    }

    /// The node's own addresses in its prefixes, once form-state has given it these.
    async fn gateways(&self, client: &Client) -> Result<Vec<IpAddr>, UpError> {
        loop {
            match client.get::<kinds::Node>("", &self.node).await {
                Ok(node) => return Ok(vmm_service::gateways(&node.spec)),
                Err(form_client::Error::NotFound(_) | form_client::Error::Unavailable(_)) => {}
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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
        let pid = text.trim().parse::<i32>().map_err(|_| Error::Failed(format!("{}: holds no process id", path.display())))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)
            .map_err(|error| Error::Failed(format!("process {pid}, which runs the cloud, cannot be told to stop: {error}")))?;
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
        return say(format_args!("the cloud is down; {stopped} machines were stopped"));
    }
    let text = if was_up { "the cloud is down; its machines run on" } else { "the cloud was down already" };
    say(text)
}
