//! Makes each Build a Package.
//!
//! ```text
//!   (new) ──▶ Building ──▶ Succeeded     the Package is written first, so that who sees Succeeded finds it
//!                 └──────▶ Failed        what was wrong is the build's, and doing it again would not help
//! ```
//!
//! Killed in the middle, a build is begun anew: it writes nothing but blobs, which are named by what is in them.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::SystemTime;

use form_client::{Action, Client, Controller, Name};
use form_rootfs::Digest;
use form_service::Health;
use form_types::v1::build_status::Phase;
use form_types::v1::port::Protocol;
use form_types::v1::{BuildStatus, PackageSpec, PackageStatus, Port, RootDisk, Sizes, event_spec};
use form_types::{Object, kinds, timestamp};
use tokio::sync::watch;

use crate::builder::{self, BuildError, Package, Progress};
use crate::context::{Context, Limits, Node};
use crate::formfile::{self, Diagnostic, Formfile};
use crate::registry::{Names, Repository};
use crate::store::{BlobStore as _, DirStore};

type Build = Object<kinds::Build>;

/// A status's message is for a person; the end of a long list of mistakes is of no use to them.
const MOST_MESSAGE: usize = 16 << 10;
/// A Formfile is text that somebody wrote.
const MOST_FORMFILE: u64 = (1 << 20) + 1;

pub(crate) struct Builds {
    pub(crate) client: Client,
    pub(crate) names: Names,
    /// For unfinished disks and unpacked contexts.
    pub(crate) scratch: PathBuf,
    /// Where this store's blobs can be had.
    pub(crate) url: String,
    pub(crate) health: Health,
}

impl Controller for Builds {
    type Kind = kinds::Build;
    type Error = form_client::Error;

    async fn reconcile(&self, _: &Name, wanted: Option<Build>) -> Result<Action, form_client::Error> {
        let Some(mut build) = wanted else { return Ok(Action::Wait) };
        if matches!(build.status.phase(), Phase::Succeeded | Phase::Failed) {
            return Ok(Action::Wait);
        }
        build.status.started_at = Some(timestamp(SystemTime::now()));
        build.status.set_phase(Phase::Building);
        build = self.client.update_status(build).await?;

        let built = self.build(&build).await?;
        let (phase, event, message, digest) = match built {
            Ok(package) => {
                let digest = package.manifest.digest.to_string();
                self.publish(&build, &package).await?;
                (Phase::Succeeded, event_spec::Type::Normal, format!("built {} {digest}", build.spec.package), digest)
            }
            Err(message) => (Phase::Failed, event_spec::Type::Warning, message, String::new()),
        };
        build.status = BuildStatus {
            message: if phase == Phase::Failed { message.clone() } else { String::new() },
            step: String::new(),
            digest,
            finished_at: Some(timestamp(SystemTime::now())),
            ..build.status.clone()
        };
        build.status.set_phase(phase);
        // The last word, whatever else was written meanwhile.
        build.meta.revision = 0;
        self.client.update_status(build.clone()).await?;
        self.client.event::<kinds::Build>(&build.meta, event, phase.as_str_name(), message).await;
        self.drop_contexts(&self.client.list::<kinds::Build>("").await?.items).await;
        Ok(Action::Wait)
    }

    async fn listed(&self, all: &[Build]) {
        // One of a build that ended just before we were killed.
        self.drop_contexts(all).await;
        self.health.done("builds");
    }
}

impl Builds {
    /// The inner error is the build's own fault, in words for who wrote it.
    async fn build(&self, build: &Build) -> Result<Result<Package, String>, form_client::Error> {
        let (names, scratch, spec) = (self.names.clone(), self.scratch.clone(), build.spec.clone());
        let repository = format!("{}/{}", build.meta.project, spec.package);
        let (step, mut steps) = watch::channel("reading the context");
        let work = tokio::task::spawn_blocking(move || {
            let name = if spec.formfile.is_empty() { "Formfile" } else { &spec.formfile };
            let package = make(&names.store, &scratch, &spec.context, name, &mut |progress| {
                step.send_if_modified(|step| std::mem::replace(step, words(progress)) != words(progress));
            })?;
            let repository = Repository::parse(&repository).map_err(|error| format!("{error:?}"))?;
            names.publish(&repository, &package).map_err(|error| form_service::run::chain(&error))?;
            Ok(package)
        });
        // Steps are told as they come, and only the last of those that came meanwhile.
        let mut told = build.clone();
        told.meta.revision = 0;
        while steps.changed().await.is_ok() {
            told.status.step = (*steps.borrow_and_update()).to_owned();
            self.client.update_status(told.clone()).await?;
        }
        Ok(match work.await {
            Ok(result) => result,
            Err(_) => Err("the builder failed in a way that it should not; the log says more".to_owned()),
        })
    }

    async fn publish(&self, build: &Build, package: &Package) -> Result<(), form_client::Error> {
        let name = &build.spec.package;
        let object = Object::<kinds::Package>::new(&build.meta.project, name, spec_of(package));
        let mut object = self.client.apply(object).await?;
        object.status = PackageStatus { ready: true, message: String::new(), sources: vec![self.url.clone()] };
        self.client.update_status(object).await?;
        Ok(())
    }

    /// Drops the contexts of which all builds have ended: they are of no use any more.
    async fn drop_contexts(&self, all: &[Build]) {
        let (ended, waiting): (Vec<&Build>, Vec<&Build>) =
            all.iter().partition(|build| matches!(build.status.phase(), Phase::Succeeded | Phase::Failed));
        let waiting: HashSet<&str> = waiting.iter().map(|build| build.spec.context.as_str()).collect();
        let ended: HashSet<&str> = ended.iter().map(|build| build.spec.context.as_str()).collect();
        let digests: Vec<Digest> = ended.difference(&waiting).filter_map(|context| context.parse().ok()).collect();
        let store = self.names.store.clone();
        let dropped = tokio::task::spawn_blocking(move || {
            for digest in digests {
                if let Err(error) = store.delete(&digest, None) {
                    tracing::warn!(%digest, error = form_service::run::chain(&error), "a build context was not dropped");
                }
            }
        });
        // It can only fail by a panic, which was told already.
        let _ = dropped.await;
    }
}

/// Blocks until the package is made, or told why it cannot be.
fn make(
    store: &DirStore,
    scratch: &std::path::Path,
    context: &str,
    formfile: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<Package, String> {
    let say = |error: &(dyn std::error::Error + 'static)| form_service::run::chain(error);
    let digest: Digest = context.parse().map_err(|error: form_rootfs::ParseDigestError| error.to_string())?;
    let blob = store.get(&digest).map_err(|error| say(&error))?;
    let blob = blob.ok_or_else(|| format!("the build context {digest} is not here; send it again"))?;
    let context = Context::read(blob.reader, scratch, &Limits::default()).map_err(|error| say(&error))?;
    let Some(Node::File { contents, .. }) = context.get(formfile) else {
        return Err(format!("there is no file {formfile} in the build context"));
    };
    let mut text = Vec::new();
    context.open(*contents).take(MOST_FORMFILE).read_to_end(&mut text).map_err(|error| say(&error))?;
    let parsed = Formfile::parse(formfile, &text).map_err(|found| diagnostics(&found))?;
    builder::build(&parsed, &context, store, scratch, progress).map_err(|error| match error {
        BuildError::Copy(error) => error.diagnostic(formfile, &text).to_string(),
        error => say(&error),
    })
}

fn diagnostics(found: &[Diagnostic]) -> String {
    let mut text = String::new();
    for diagnostic in found {
        let next = diagnostic.to_string();
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

fn words(progress: Progress) -> &'static str {
    match progress.phase {
        builder::Phase::Rootfs => "making the root disk",
        builder::Phase::Compress => "compressing the root disk",
        builder::Phase::Layer => "making the image",
    }
}

fn spec_of(package: &Package) -> PackageSpec {
    let port = |port: &formfile::Port| {
        let protocol = match port.protocol {
            formfile::Protocol::Tcp => Protocol::Tcp,
            formfile::Protocol::Udp => Protocol::Udp,
        };
        Port { port: port.number.into(), protocol: protocol.into() }
    };
    let mib = |mib: u64| u32::try_from(mib).unwrap_or(u32::MAX);
    PackageSpec {
        digest: package.manifest.digest.to_string(),
        root_disk: Some(RootDisk {
            digest: package.rootfs.digest.to_string(),
            image_digest: package.rootfs_raw.digest.to_string(),
            size: package.rootfs.size,
        }),
        sizes: Some(Sizes {
            vcpu: package.machine.vcpu,
            memory_mib: mib(package.machine.memory_mib),
            disk_mib: mib(package.machine.disk_mib),
        }),
        entrypoint: package.entrypoint.clone(),
        env: package.env.iter().cloned().collect(),
        user: package.user.clone().unwrap_or_default(),
        workdir: package.workdir.clone(),
        ports: package.ports.iter().map(port).collect(),
        ..Default::default()
    }
}
