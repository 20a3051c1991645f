//! Makes each Build a Package.
//!
//! ```text
//!   (new) ──▶ Queued ──▶ Building ──▶ Succeeded   the Package is written first, so that who sees Succeeded finds it
//!                │           ├──────▶ Failed      what was wrong is the build's, and doing it again would not help
//!                └───────────┴──────▶ Cancelled   somebody set spec.cancel
//! ```
//!
//! Killed in the middle, a build is begun anew: it writes nothing but blobs, which are named by what is in them, and what
//! the workshop can do without.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use form_client::{Action, Client, Controller, Name};
use form_rootfs::Digest;
use form_sandbox::{Network, Stop};
use form_service::Health;
use form_types::v1::build_spec;
use form_types::v1::build_status::Phase;
use form_types::v1::package_spec::Restart;
use form_types::v1::port::Protocol;
use form_types::v1::{BuildStatus, HealthCheck, PackageSpec, PackageStatus, Port, RootDisk, Sizes, event_spec};
use form_types::{Object, kinds, timestamp};
use formfile::{Diagnostic, Formfile, value};
use tokio::sync::{Semaphore, watch};

use crate::builder::{self, BuildError, Event, Package, Request};
use crate::context::{Context, Limits, Node};
use crate::image::Healthcheck;
use crate::logs::{Log, Logs};
use crate::registry::{Names, Repository};
use crate::secrets::Secrets;
use crate::store::BlobStore as _;
use crate::workshop::Workshop;

type Build = Object<kinds::Build>;

/// A status's message is for a person; the end of a long list of mistakes is of no use to them.
const MOST_MESSAGE: usize = 16 << 10;
/// A Formfile is text that somebody wrote.
const MOST_FORMFILE: u64 = (1 << 20) + 1;
/// How long a build may take that says nothing else.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// What is known of all builds, as the loop hears it: who waits for one is woken when one changes, and asks nobody.
pub(crate) type Known = watch::Sender<HashMap<Name, Facts>>;

/// Of a build, what others wait for.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    uid: String,
    phase: Phase,
    cancel: bool,
}

pub(crate) struct Builds {
    pub(crate) client: Client,
    pub(crate) names: Names,
    pub(crate) workshop: Workshop,
    pub(crate) logs: Logs,
    pub(crate) secrets: Secrets,
    /// One permit for each build that may be at work.
    pub(crate) room: Arc<Semaphore>,
    /// Where this store's blobs can be had.
    pub(crate) url: String,
    pub(crate) health: Health,
    pub(crate) known: Known,
}

/// What there is to say of a build that ended without a package.
enum Ended {
    Failed(String),
    Cancelled,
}

impl Controller for Builds {
    type Kind = kinds::Build;
    type Error = form_client::Error;

    async fn reconcile(&self, _: &Name, wanted: Option<Build>) -> Result<Action, form_client::Error> {
        let Some(mut build) = wanted else { return Ok(Action::Wait) };
        if has_ended(&build) {
            return Ok(Action::Wait);
        }
        let (built, step) = match self.turn(&mut build).await? {
            Some(_permit) => {
                build.status.started_at = Some(timestamp(SystemTime::now()));
                build.status.set_phase(Phase::Building);
                build.status.url.clone_from(&self.url);
                build = self.client.update_status(build).await?;
                self.build(&build).await?
            }
            None => (Err(Ended::Cancelled), String::new()),
        };
        self.secrets.forget(build.spec.secrets.values());
        let (phase, event, message, digest) = match built {
            Ok(package) => {
                let digest = package.manifest.digest.to_string();
                self.publish(&build, &package).await?;
                (Phase::Succeeded, event_spec::Type::Normal, format!("built {} {digest}", build.spec.package), digest)
            }
            Err(Ended::Failed(message)) => (Phase::Failed, event_spec::Type::Warning, message, String::new()),
            Err(Ended::Cancelled) => {
                (Phase::Cancelled, event_spec::Type::Normal, "cancelled".to_owned(), String::new())
            }
        };
        build.status = BuildStatus {
            message: if phase == Phase::Succeeded { String::new() } else { message.clone() },
            step: if phase == Phase::Succeeded { String::new() } else { step },
            digest,
            finished_at: Some(timestamp(SystemTime::now())),
            ..build.status.clone()
        };
        build.status.set_phase(phase);
        // The last word, whatever else was written meanwhile.
        build.meta.revision = 0;
        self.client.update_status(build.clone()).await?;
        self.client.event::<kinds::Build>(&build.meta, event, phase.as_str_name(), message).await;
        self.drop_leftovers(&self.client.list::<kinds::Build>("").await?.items).await;
        Ok(Action::Wait)
    }

    fn changed(&self, name: &Name, wanted: Option<&Build>) {
        let facts = wanted.map(|build| Facts {
            uid: build.meta.uid.clone(),
            phase: build.status.phase(),
            cancel: build.spec.cancel,
        });
        // Not each step of each build is news.
        self.known.send_if_modified(|known| match facts {
            Some(facts) => known.insert(name.clone(), facts.clone()) != Some(facts),
            None => known.remove(name).is_some(),
        });
    }

    async fn listed(&self, all: &[Build]) {
        // One of a build that ended just before we were killed.
        self.drop_leftovers(all).await;
        self.health.done("builds");
    }
}

fn has_ended(build: &Build) -> bool {
    matches!(build.status.phase(), Phase::Succeeded | Phase::Failed | Phase::Cancelled)
}

impl Builds {
    /// Waits until there is room for the build; `None`: it was cancelled before.
    async fn turn(&self, build: &mut Build) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, form_client::Error> {
        if build.spec.cancel {
            return Ok(None);
        }
        let room = Arc::clone(&self.room);
        if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
            return Ok(Some(permit));
        }
        build.status.set_phase(Phase::Queued);
        build.status.url.clone_from(&self.url);
        *build = self.client.update_status(build.clone()).await?;
        tokio::select! {
            permit = room.acquire_owned() => Ok(permit.ok()),
            () = self.unwanted(build) => Ok(None),
        }
    }

    /// Ends when the build is cancelled, or deleted.
    async fn unwanted(&self, build: &Build) {
        let name = Name::of(build);
        let is_unwanted = |known: &HashMap<Name, Facts>| {
            known.get(&name).is_none_or(|facts| facts.cancel || facts.uid != build.meta.uid)
        };
        // The loop that calls us shows a name to one worker at a time, and that is the one that waits; but it tells of
        // each change. The sender is ours, and does not go away.
        let _ = self.known.subscribe().wait_for(is_unwanted).await;
    }

    /// The inner error is the build's own fault, in words for who wrote it; beside it the step that it came to.
    async fn build(&self, build: &Build) -> Result<(Result<Package, Ended>, String), form_client::Error> {
        let (names, workshop, secrets) = (self.names.clone(), self.workshop.clone(), self.secrets.clone());
        let (wanted, stop) = (build.clone(), Stop::default());
        let log = self.logs.begin(&build.meta.uid);
        let (step, mut steps) = watch::channel("reading the context".to_owned());
        let stopped = stop.clone();
        let mut work = tokio::task::spawn_blocking(move || {
            let mut log = log.map_err(|error| Ended::Failed(format!("the build's log: {error}")))?;
            let made = make(&workshop, &secrets, &wanted, &stopped, &mut log, &step);
            let published = made.and_then(|package| {
                let repository = format!("{}/{}", wanted.meta.project, wanted.spec.package);
                let repository = Repository::parse(&repository).map_err(|error| Ended::Failed(format!("{error:?}")))?;
                let published = names.publish(&repository, &package);
                published.map_err(|error| Ended::Failed(form_service::run::chain(&error)))?;
                Ok(package)
            });
            match &published {
                Ok(package) => log.write(format!("built {}\n", package.manifest.digest).as_bytes()),
                Err(Ended::Failed(message)) => log.write(format!("failed: {message}\n").as_bytes()),
                Err(Ended::Cancelled) => log.write(b"cancelled\n"),
            }
            published
        });
        // Steps are told as they come, and only the last of those that came meanwhile.
        let mut told = build.clone();
        told.meta.revision = 0;
        let unwanted = self.unwanted(build);
        tokio::pin!(unwanted);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                () = &mut unwanted, if !stop.is_stopped() => stop.stop(),
                Ok(()) = steps.changed() => {
                    told.status.step.clone_from(&steps.borrow_and_update());
                    match self.client.update_status(told.clone()).await {
                        Ok(_) | Err(form_client::Error::NotFound(_)) => {}
                        Err(error) => {
                            // The build begins anew; two of it at once would be one too many.
                            stop.stop();
                            let _ = work.await;
                            return Err(error);
                        }
                    }
                }
            }
        };
        let step = steps.borrow().clone();
        Ok((
            done.unwrap_or_else(|_| {
                Err(Ended::Failed("the builder failed in a way that it should not; the log says more".to_owned()))
            }),
            step,
        ))
    }

    async fn publish(&self, build: &Build, package: &Package) -> Result<(), form_client::Error> {
        let name = &build.spec.package;
        let object = Object::<kinds::Package>::new(&build.meta.project, name, spec_of(package));
        let mut object = self.client.apply(object).await?;
        object.status = PackageStatus { ready: true, message: String::new(), sources: vec![self.url.clone()] };
        self.client.update_status(object).await?;
        Ok(())
    }

    /// Drops the contexts of which all builds have ended, the logs of builds that are gone, and what is kept too much.
    async fn drop_leftovers(&self, all: &[Build]) {
        let (ended, waiting): (Vec<&Build>, Vec<&Build>) = all.iter().partition(|build| has_ended(build));
        let waiting: HashSet<&str> = waiting.iter().map(|build| build.spec.context.as_str()).collect();
        let ended: HashSet<&str> = ended.iter().map(|build| build.spec.context.as_str()).collect();
        let digests: Vec<Digest> = ended.difference(&waiting).filter_map(|context| context.parse().ok()).collect();
        let uids: Vec<String> = all.iter().map(|build| build.meta.uid.clone()).collect();
        let (store, logs, workshop) = (self.names.store.clone(), self.logs.clone(), self.workshop.clone());
        let dropped = tokio::task::spawn_blocking(move || {
            for digest in digests {
                if let Err(error) = store.delete(&digest, None) {
                    tracing::warn!(%digest, error = form_service::run::chain(&error), "a build context was not dropped");
                }
            }
            if let Err(error) = logs.retain(&uids.iter().map(String::as_str).collect::<Vec<_>>()) {
                tracing::warn!(error = form_service::run::chain(&error), "the logs of old builds were not dropped");
            }
            if let Err(error) = workshop.tidy() {
                tracing::warn!(error = form_service::run::chain(&error), "what builds keep was not bounded");
            }
        });
        // It can only fail by a panic, which was told already.
        let _ = dropped.await;
    }
}

/// Blocks until the package is made, or told why it cannot be.
fn make(
    workshop: &Workshop,
    secrets: &Secrets,
    build: &Build,
    stop: &Stop,
    log: &mut Log,
    step: &watch::Sender<String>,
) -> Result<Package, Ended> {
    let spec = &build.spec;
    let failed = |error: &(dyn std::error::Error + 'static)| Ended::Failed(form_service::run::chain(error));
    let started = Instant::now();
    let timeout = if spec.timeout_seconds == 0 { TIMEOUT } else { Duration::from_secs(spec.timeout_seconds.into()) };
    let mut given = BTreeMap::new();
    for (id, handle) in &spec.secrets {
        let Some(secret) = secrets.get(&build.meta.project, handle) else {
            let text = format!("the secret `{id}` is not here any more (they are kept in memory only); send it again");
            return Err(Ended::Failed(text));
        };
        given.insert(id.clone(), secret);
    }
    let (name, text, context) = match (spec.context.as_str(), spec.image.as_str()) {
        ("", "") => return Err(Ended::Failed("the build has neither a context nor an image; give it one".to_owned())),
        ("", image) => {
            let empty = Context::read(&[0; 1024][..], workshop.scratch(), &Limits::default());
            ("image", format!("FROM {image}\n").into_bytes(), empty.map_err(|error| failed(&error))?)
        }
        (digest, "") => {
            let digest: Digest = digest.parse().map_err(|error: form_rootfs::ParseDigestError| failed(&error))?;
            let blob = workshop.store().get(&digest).map_err(|error| failed(&error))?;
            let missing = || Ended::Failed(format!("the build context {digest} is not here; send it again"));
            let context = Context::read(blob.ok_or_else(missing)?.reader, workshop.scratch(), &Limits::default());
            let context = context.map_err(|error| failed(&error))?;
            let name = if spec.formfile.is_empty() { "Formfile" } else { &spec.formfile };
            let Some(Node::File { contents, .. }) = context.get(name) else {
                return Err(Ended::Failed(format!("there is no file {name} in the build context")));
            };
            let mut text = Vec::new();
            let read = context.open(*contents).take(MOST_FORMFILE).read_to_end(&mut text);
            read.map_err(|error| failed(&error))?;
            (name, text, context)
        }
        _ => return Err(Ended::Failed("the build has both a context and an image; give it one of them".to_owned())),
    };
    let formfile = Formfile::parse(name, &text).map_err(|found| Ended::Failed(diagnostics(&found)))?;
    let args = spec.args.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let request = Request {
        project: &build.meta.project,
        formfile: &formfile,
        context: &context,
        args: &args,
        target: (!spec.target.is_empty()).then_some(spec.target.as_str()),
        network: match spec.network() {
            build_spec::Network::None => Network::None,
            build_spec::Network::Host => Network::Host,
        },
        no_cache: spec.no_cache,
        secrets: &given,
        deadline: started.checked_add(timeout),
        stop,
    };
    let built = builder::build(workshop, &request, &mut |event| match event {
        Event::Step { number, total, text } => {
            log.begin_step();
            let line = format!("{number}/{total} {text}");
            log.write(format!("[{line}]\n").as_bytes());
            let _ = step.send_replace(line.chars().take(512).collect());
        }
        Event::Cached => log.write(b"cached\n"),
        Event::Output(bytes) => log.write(bytes),
        Event::Phase(text) => {
            log.begin_step();
            log.write(format!("[{text}]\n").as_bytes());
            let _ = step.send_replace(text.to_owned());
        }
    });
    built.map_err(|error| match error {
        BuildError::Stopped => Ended::Cancelled,
        BuildError::Step { .. } => {
            let tail = log.tail();
            let words = error.words(name, &text);
            Ended::Failed(if tail.is_empty() { words } else { format!("{words}\n{tail}") })
        }
        error => Ended::Failed(error.words(name, &text)),
    })
}

fn diagnostics(found: &[Diagnostic]) -> String {
    let mut text = String::new();
    for diagnostic in found {
        let next = diagnostic.plain();
        if text.len() + next.len() > MOST_MESSAGE {
            text.push_str("\n… and more");
            break;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&next);
    }
    text
}

fn spec_of(package: &Package) -> PackageSpec {
    let port = |text: &String| {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = if protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
        Some(Port {
            port: number.parse().ok().filter(|number| (1..=65_535).contains(number))?,
            protocol: protocol.into(),
        })
    };
    let workdir = &package.start.working_dir;
    let other = |name: &str| package.machine.others.get(name).map(String::as_str).unwrap_or_default();
    let restart = match other("restart") {
        "always" => Some(Restart::Always),
        "on-failure" => Some(Restart::OnFailure),
        "never" => Some(Restart::Never),
        _ => None,
    };
    let nowhere = formfile::Span { start: 0, end: 0 };
    let signal = value::signal(&package.start.stop_signal, nowhere).ok();
    // A base may have more and longer ones than a Package takes.
    let labels = package.start.labels.iter().filter(|(_, value)| value.len() <= 4096).take(value::MOST_LABELS);
    let labels = labels.map(|(name, value)| (name.clone(), value.clone())).collect();
    PackageSpec {
        digest: package.manifest.digest.to_string(),
        root_disk: Some(RootDisk {
            digest: package.disk.blob.digest.to_string(),
            image_digest: package.disk.raw.digest.to_string(),
            size: package.disk.blob.size,
        }),
        sizes: Some(Sizes {
            vcpu: package.machine.vcpu,
            memory_mib: package.machine.memory_mib,
            disk_mib: package.machine.disk_mib,
        }),
        entrypoint: package.command(),
        env: package.start.env.iter().cloned().collect(),
        user: package.start.user.clone(),
        workdir: if workdir.is_empty() { "/".to_owned() } else { workdir.clone() },
        ports: package.start.exposed_ports.iter().filter_map(port).take(value::MOST_PORTS).collect(),
        health_check: package.start.healthcheck.as_ref().and_then(health_check),
        restart: restart.map(Into::into),
        stop_signal: signal.map(u32::from).filter(|number| (1..=31).contains(number)),
        volumes: package.start.volumes.iter().take(value::MOST_VOLUMES).cloned().collect(),
        labels,
        description: other("description").chars().take(1024).collect(),
        replicas: other("replicas").parse().ok().filter(|replicas| (1..=100).contains(replicas)),
        gpus: other("gpu").parse().ok().filter(|gpus| *gpus <= 16).unwrap_or_default(),
        model: other("model").chars().take(256).collect(),
    }
}

/// As the image has it: `NONE`, a program, or a text for a shell.
fn health_check(check: &Healthcheck) -> Option<HealthCheck> {
    let command = match check.test.split_first()? {
        (kind, words) if kind == "CMD" => words.to_vec(),
        (kind, [text]) if kind == "CMD-SHELL" => vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()],
        _ => return None,
    };
    let seconds = |nanos: u64| u32::try_from(nanos.div_ceil(1_000_000_000)).ok().filter(|seconds| *seconds <= 86_400);
    Some(HealthCheck {
        command,
        interval_seconds: seconds(check.interval).filter(|seconds| *seconds > 0),
        timeout_seconds: seconds(check.timeout).filter(|seconds| *seconds > 0),
        start_period_seconds: seconds(check.start_period).unwrap_or_default(),
        retries: u32::try_from(check.retries).ok().filter(|retries| (1..=100).contains(retries)),
    })
}
