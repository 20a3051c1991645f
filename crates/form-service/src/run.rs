//! From `main` to an orderly stop.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgAction, Command};
use notify::Watcher as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Live, Sources};
use crate::identity::IdentityError;
use crate::logs::LogHandle;
use crate::{Health, Identity, listener, logs, probe};

/// A changed file is read once nothing more has happened to it for this long.
const SETTLED: Duration = Duration::from_millis(100);

/// Threads for what blocks, each with memory of its own. Nothing may hold one while it waits for somebody outside.
const BLOCKING: usize = 16;

/// What a service is run with.
#[derive(Clone)]
pub struct Context<C> {
    pub config: Live<C>,
    pub identity: Identity,
    pub health: Health,
    /// Cancelled when the service has to stop.
    pub shutdown: CancellationToken,
}

impl<C> Context<C> {
    /// Of a service that does not listen yet.
    pub fn new(config: Live<C>, identity: Identity, shutdown: CancellationToken) -> Self {
        let health = Health::default();
        health.wait_for(listener::LISTENING, "it is starting");
        Self { config, identity, health, shutdown }
    }
}

/// The whole of a service's `main`: flags, configuration, identity, logs, reload, signals.
///
/// Exits with 0 after an orderly stop, 2 for a configuration that cannot be used, 1 for all else.
pub fn main<C, E, F>(about: &'static str, run: impl FnOnce(Context<C>) -> F) -> ExitCode
where
    C: Config,
    E: std::error::Error + 'static,
    F: Future<Output = Result<(), E>>,
{
    let matches = command::<C>(about).get_matches();
    let sources = Sources {
        file: matches.get_one::<PathBuf>("config").cloned(),
        set: matches.get_many::<String>("set").unwrap_or_default().cloned().collect(),
    };
    if matches.get_flag("check-config") {
        return check_config::<C>(&sources);
    }
    if matches.get_flag("health") {
        return health::<C>(&sources);
    }
    start(sources, |config: &C| Identity::load(config.identity_dir()), run)
}

/// Prints each key with where its value came from.
pub fn check_config<C: Config>(sources: &Sources) -> ExitCode {
    match sources.table::<C>() {
        Ok(table) => {
            say(&table);
            ExitCode::SUCCESS
        }
        Err(error) => fail(C::SERVICE, &error, 2),
    }
}

/// Asks the service that runs with this configuration whether it is ready: 0 if it is, 1 if not, 2 for a configuration
/// that cannot be used.
fn health<C: Config>(sources: &Sources) -> ExitCode {
    let config: C = match sources.load() {
        Ok(config) => config,
        Err(error) => return fail(C::SERVICE, &error, 2),
    };
    init_process();
    let identity = match Identity::load(config.identity_dir()) {
        Ok(identity) => identity,
        Err(error) => return fail(C::SERVICE, &error, 2),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(C::SERVICE, &error, 1),
    };
    match runtime.block_on(probe::ready(&identity, C::SERVICE, config.probes())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(C::SERVICE, &error, 1),
    }
}

/// As [`main`], with flags that were read already, and an identity from wherever it comes.
pub fn start<C, E, F>(
    sources: Sources,
    identity: impl FnOnce(&C) -> Result<Identity, IdentityError>,
    run: impl FnOnce(Context<C>) -> F,
) -> ExitCode
where
    C: Config,
    E: std::error::Error + 'static,
    F: Future<Output = Result<(), E>>,
{
    let config: C = match sources.load() {
        Ok(config) => config,
        Err(error) => return fail(C::SERVICE, &error, 2),
    };
    init_process();
    let log = logs::init(config.log());
    let identity = match identity(&config) {
        Ok(identity) => identity,
        Err(error) => return fail(C::SERVICE, &error, 2),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().max_blocking_threads(BLOCKING).enable_all().build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(C::SERVICE, &error, 1),
    };
    runtime.block_on(async {
        let (sender, config) = watch::channel(Arc::new(config));
        let context = Context::new(config, identity, CancellationToken::new());
        tokio::spawn(reload(sources, sender, log));
        tokio::spawn(stop_on_signal(context.shutdown.clone()));
        tokio::spawn(tell_systemd(context.health.clone(), context.shutdown.clone()));
        match run(context).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(C::SERVICE, &error, 1),
        }
    })
}

/// What a process needs once before anything else: the TLS provider and the metrics recorder.
pub fn init_process() {
    // Fails where one is set already, and that is then the same one: no other is compiled in.
    let _ = rustls::crypto::ring::default_provider().install_default();
    listener::init_metrics();
}

/// Cancels `shutdown` on SIGTERM or SIGINT.
pub async fn stop_on_signal(shutdown: CancellationToken) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return tracing::error!("signals cannot be listened for; only a kill will stop this process");
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping");
    shutdown.cancel();
}

/// Tells systemd (or who else set NOTIFY_SOCKET) when the service is ready and when it stops.
pub async fn tell_systemd(health: Health, shutdown: CancellationToken) {
    tokio::select! {
        () = health.ready() => { let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]); }
        () = shutdown.cancelled() => {}
    }
    shutdown.cancelled().await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
}

/// An error and all its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn command<C: Config>(about: &'static str) -> Command {
    let defaults = toml::to_string(&C::default()).unwrap_or_default();
    let keys = format!(
        "Configuration, the later the stronger: defaults, the file, FORM_…_KEY in the environment (with __ for the dot of \
         a nested key), --set. SIGHUP or a change of the file reloads it.\n\nThe defaults:\n\n{defaults}"
    );
    Command::new(C::SERVICE)
        .about(about)
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(keys)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help(format!("The configuration file [default: /etc/formation/{}/config.toml]", C::SERVICE)),
        )
        .arg(Arg::new("set").long("set").value_name("KEY=VALUE").action(ArgAction::Append).help("Sets one key"))
        .arg(
            Arg::new("check-config")
                .long("check-config")
                .action(ArgAction::SetTrue)
                .help("Prints each key with where its value came from, and exits"),
        )
        .arg(Arg::new("health").long("health").action(ArgAction::SetTrue).conflicts_with("check-config").help(
            "Asks the running service whether it is ready, and exits: 0 if it is, 1 with what it waits for if not",
        ))
}

/// Loads the configuration again on SIGHUP and when its file changes. A bad one is refused, and all stays as it was.
async fn reload<C: Config>(sources: Sources, sender: watch::Sender<Arc<C>>, log: LogHandle) {
    let path = sources.path::<C>();
    let (_watcher, mut changes) = watch_directory(&path);
    let Ok(mut hup) = signal(SignalKind::hangup()) else { return };
    let mut text = std::fs::read(&path).ok();
    loop {
        tokio::select! {
            Some(()) = hup.recv() => text = std::fs::read(&path).ok(),
            Some(()) = changes.recv() => {
                // A file that is written in place is empty for a moment, which is a configuration too.
                while tokio::time::timeout(SETTLED, changes.recv()).await.is_ok_and(|more| more.is_some()) {}
                let now = std::fs::read(&path).ok();
                if now == text {
                    continue;
                }
                text = now;
            }
            else => return,
        }
        match sources.load::<C>() {
            Ok(config) => {
                log.apply(config.log());
                tracing::info!("configuration reloaded");
                sender.send_replace(Arc::new(config));
            }
            Err(error) => tracing::error!(error = chain(&error), "configuration refused; what was in force stays so"),
        }
    }
}

/// Tells that something changed beside `path`. The directory is watched, and all of it, because editors and Kubernetes
/// replace the file, or a link on the way to it, rather than write into it.
fn watch_directory(path: &Path) -> (Option<notify::RecommendedWatcher>, mpsc::Receiver<()>) {
    let (changed, changes) = mpsc::channel::<()>(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // A full channel means that a look is coming anyway.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = changed.try_send(());
        }
    });
    let watcher = std::path::absolute(path).map_err(notify::Error::io).and_then(|path| {
        let mut watcher = watcher?;
        watcher.watch(path.parent().unwrap_or(&path), notify::RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    (watcher.ok(), changes)
}

#[allow(clippy::print_stdout)]
fn say(text: &str) {
    print!("{text}");
}

#[allow(clippy::print_stderr)]
fn fail(service: &str, error: &(dyn std::error::Error + 'static), code: u8) -> ExitCode {
    eprintln!("{service}: {}", chain(error));
    ExitCode::from(code)
}
