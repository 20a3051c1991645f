//! Frees what nothing holds any more, while pushes and pulls go on.
//!
//! ```text
//!   tag ──▶ manifest ──▶ config, layers        held: what can be reached from a tag, from a Package,
//!    Package ▶ index ──▶ manifest ──▶ …              and from what is young
//!               manifest ◀── its referrers
//! ```
//!
//! First in each repository its names: manifests, then the links to blobs. Then in the store the blobs that no repository
//! links to, no Package is made of and no Build waits for. What is *young*, which is younger than the grace time, always
//! stays: a push has its blobs before its manifest, and its manifests before its index. Whoever is about to rely on
//! something makes it young first, and the store removes nothing young ([`Documents::remove`], [`BlobStore::delete`]); so
//! no push has to wait for a sweep. Killed at any place, the next sweep goes on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use form_client::{Access, Client};
use form_rootfs::Digest;
use form_service::Problem;
use form_types::v1::build_status::Phase;
use form_types::{Object, kinds};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::manifest::Manifest;
use super::name::{Reference, Repository};
use super::names::{ROOT, digest_at};
use super::{Names, Registry};
use crate::store::{BlobStore as _, Document, Documents as _, StoreError};
use crate::workshop;

#[derive(Clone)]
pub(crate) struct Sweeper(Arc<Inner>);

struct Inner {
    registry: Registry,
    names: Names,
    client: Client,
    grace: Duration,
    /// Finished builds that a project keeps.
    builds: usize,
    /// Bytes of blobs that only builds to come may want.
    most_cached: u64,
    /// One sweep at a time: a second would only see the same.
    turn: Mutex<()>,
}

/// What a sweep freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Swept {
    pub(crate) tags: u64,
    pub(crate) manifests: u64,
    pub(crate) links: u64,
    pub(crate) blobs: u64,
    pub(crate) bytes: u64,
    pub(crate) uploads: u64,
    pub(crate) builds: u64,
}

/// What form-state says is in use.
#[derive(Default)]
struct InUse {
    /// Blobs of Packages and of Builds that have not ended.
    blobs: HashSet<Digest>,
    /// The manifests of Packages, by project.
    manifests: HashSet<(String, Digest)>,
    projects: HashSet<String>,
}

impl Sweeper {
    pub(crate) fn new(
        registry: Registry,
        names: Names,
        client: Client,
        grace: Duration,
        builds: usize,
        most_cached: u64,
    ) -> Self {
        Self(Arc::new(Inner { registry, names, client, grace, builds, most_cached, turn: Mutex::default() }))
    }

    /// Sweeps every so often, for ever.
    pub(crate) async fn run(self, every: Duration) {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.sweep().await {
                tracing::warn!(error = form_service::run::chain(&*error), "a sweep did not come to its end");
            }
        }
    }

    /// `POST /v1/sweeps`: sweeps now, for who may write in all projects.
    pub(crate) fn routes(&self) -> Router {
        Router::new().route("/v1/sweeps", post(sweep_now)).with_state(self.clone())
    }

    async fn sweep(&self) -> Result<Swept, Box<dyn std::error::Error + Send + Sync>> {
        let _turn = self.0.turn.lock().await;
        let mut swept = Swept { uploads: self.0.registry.expire_uploads() as u64, ..Swept::default() };
        let builds = self.0.client.list::<kinds::Build>("").await?.items;
        for old in old_builds(&builds, self.0.builds) {
            match self.0.client.delete::<kinds::Build>(&old.meta).await {
                Ok(()) => swept.builds = swept.builds.saturating_add(1),
                Err(form_client::Error::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let unused_since = SystemTime::now().checked_sub(self.0.grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let in_use = InUse::of(
            &builds,
            &self.0.client.list::<kinds::Package>("").await?.items,
            &self.0.client.list::<kinds::Project>("").await?.items,
        );
        let names = self.0.names.clone();
        let most_cached = self.0.most_cached;
        let found = tokio::task::spawn_blocking(move || sweep(&names, &in_use, unused_since, most_cached));
        let found = found.await??;
        let swept = Swept { uploads: swept.uploads, builds: swept.builds, ..found };
        metrics::counter!("form_registry_sweeps_total").increment(1);
        metrics::counter!("form_registry_swept_blobs_total").increment(swept.blobs);
        metrics::counter!("form_registry_swept_bytes_total").increment(swept.bytes);
        if swept != Swept::default() {
            tracing::info!(?swept, "swept");
        }
        Ok(swept)
    }
}

async fn sweep_now(State(sweeper): State<Sweeper>, headers: HeaderMap) -> Result<Json<Swept>, Problem> {
    // No project has this name, so only who is good for all of them may.
    sweeper.0.client.authorize(&headers, Access::Write, "").await?;
    sweeper.sweep().await.map(Json).map_err(|error| {
        tracing::error!(error = form_service::run::chain(&*error), "a sweep failed");
        Problem::internal()
    })
}

/// The finished builds beyond the `keep` youngest of each project.
fn old_builds(builds: &[Object<kinds::Build>], keep: usize) -> Vec<&Object<kinds::Build>> {
    let mut ended: HashMap<&str, Vec<&Object<kinds::Build>>> = HashMap::new();
    for build in builds.iter().filter(|build| has_ended(build)) {
        ended.entry(&build.meta.project).or_default().push(build);
    }
    let mut old = Vec::new();
    for mut builds in ended.into_values() {
        builds.sort_by_key(|build| {
            let at = build.status.finished_at.unwrap_or_default();
            std::cmp::Reverse((at.seconds, at.nanos, build.meta.revision))
        });
        old.extend(builds.into_iter().skip(keep));
    }
    old
}

fn has_ended(build: &Object<kinds::Build>) -> bool {
    matches!(build.status.phase(), Phase::Succeeded | Phase::Failed | Phase::Cancelled)
}

impl InUse {
    fn of(
        builds: &[Object<kinds::Build>],
        packages: &[Object<kinds::Package>],
        projects: &[Object<kinds::Project>],
    ) -> Self {
        let mut in_use = Self::default();
        in_use.projects.extend(projects.iter().map(|project| project.meta.name.clone()));
        let waiting = builds.iter().filter(|build| !has_ended(build));
        in_use.blobs.extend(waiting.filter_map(|build| build.spec.context.parse::<Digest>().ok()));
        for package in packages {
            let disk = package.spec.root_disk.as_ref().and_then(|disk| disk.digest.parse().ok());
            let manifest: Option<Digest> = package.spec.digest.parse().ok();
            in_use.blobs.extend(disk.into_iter().chain(manifest));
            in_use.manifests.extend(manifest.map(|digest| (package.meta.project.clone(), digest)));
        }
        in_use
    }
}

fn sweep(names: &Names, in_use: &InUse, unused_since: SystemTime, most_cached: u64) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    for repository in repositories(names)? {
        sweep_repository(names, &repository, in_use, unused_since, &mut swept)?;
    }
    // Listed again, whole: what was linked before this is known, and what is linked later is young.
    let links = names.store.under(ROOT)?;
    let mut linked: HashSet<Digest> =
        links.iter().filter(|link| link.name.contains("/_blobs/")).filter_map(|link| digest_at(&link.name)).collect();
    linked.extend(workshop::sweep(&names.store, most_cached, &in_use.projects)?);
    for blob in names.store.list()? {
        let blob = blob?;
        if !linked.contains(&blob.digest)
            && !in_use.blobs.contains(&blob.digest)
            && names.store.delete(&blob.digest, Some(unused_since))?
        {
            swept.blobs = swept.blobs.saturating_add(1);
            swept.bytes = swept.bytes.saturating_add(blob.size);
        }
    }
    Ok(swept)
}

fn repositories(names: &Names) -> Result<HashSet<Repository>, StoreError> {
    let documents = names.store.under(ROOT)?;
    let name_of = |document: &Document| {
        let name = document.name.strip_prefix(ROOT)?.strip_prefix('/')?.split("/_").next()?;
        Repository::parse(name).ok()
    };
    Ok(documents.iter().filter_map(name_of).collect())
}

/// A repository's manifests, and what each of them holds.
struct Graph {
    modified: HashMap<Digest, SystemTime>,
    holds: HashMap<Digest, Vec<Digest>>,
    blobs: HashMap<Digest, Vec<Digest>>,
}

impl Graph {
    fn of(names: &Names, repository: &Repository, manifests: &[Document]) -> Result<Self, StoreError> {
        let mut graph = Self { modified: HashMap::new(), holds: HashMap::new(), blobs: HashMap::new() };
        for document in manifests {
            let Some(digest) = digest_at(&document.name) else { continue };
            let Some(stored) = names.manifest(repository, &Reference::Digest(digest))? else { continue };
            graph.modified.insert(digest, document.modified);
            // It was read when it was pushed.
            let Ok(parsed) = Manifest::parse(&stored.media_type, &stored.bytes) else { continue };
            graph.blobs.insert(digest, parsed.blobs);
            graph.holds.entry(digest).or_default().extend(parsed.manifests);
            if let Some(subject) = parsed.subject {
                graph.holds.entry(subject).or_default().push(digest);
            }
        }
        Ok(graph)
    }

    /// Adds to `held` what `digest` holds, itself included.
    fn hold(&self, digest: Digest, held: &mut HashSet<Digest>) {
        let mut next = vec![digest];
        while let Some(digest) = next.pop() {
            if self.modified.contains_key(&digest) && held.insert(digest) {
                next.extend(self.holds.get(&digest).into_iter().flatten());
            }
        }
    }

    /// All manifests, each before those that it holds. Digests cannot go round in a circle.
    fn holders_first(&self) -> Vec<Digest> {
        let (mut order, mut seen) = (Vec::new(), HashSet::new());
        for start in self.modified.keys() {
            let mut stack = vec![(*start, false)];
            while let Some((digest, is_done)) = stack.pop() {
                if is_done {
                    order.push(digest);
                } else if self.modified.contains_key(&digest) && seen.insert(digest) {
                    stack.push((digest, true));
                    stack.extend(self.holds.get(&digest).into_iter().flatten().map(|held| (*held, false)));
                }
            }
        }
        order.reverse();
        order
    }
}

fn sweep_repository(
    names: &Names,
    repository: &Repository,
    in_use: &InUse,
    unused_since: SystemTime,
    swept: &mut Swept,
) -> Result<(), StoreError> {
    let store = &names.store;
    let under = |part: &str| store.under(&format!("{ROOT}/{repository}/{part}"));
    let is_orphan = !in_use.projects.contains(repository.project());
    let links = under("_blobs")?;
    // After the links: a manifest that comes later has made its links young.
    let graph = Graph::of(names, repository, &under("_manifests")?)?;

    let mut held = HashSet::new();
    for tag in names.tags(repository)? {
        let Some((digest, is_packages)) = names.tag_of(repository, &tag)? else { continue };
        let document = format!("{ROOT}/{repository}/_tags/{tag}");
        let has_package = in_use.manifests.contains(&(repository.project().to_owned(), digest));
        // Of a project or a Package that is gone; or of a manifest that was deleted while the tag was written.
        let is_needless = is_orphan
            || (is_packages && !has_package)
            || names.manifest(repository, &Reference::Digest(digest))?.is_none();
        if is_needless && store.remove(&document, Some(unused_since))? {
            names.changed(repository, |reference, _| reference == tag);
            swept.tags = swept.tags.saturating_add(1);
        } else {
            graph.hold(digest, &mut held);
        }
    }
    for (digest, modified) in &graph.modified {
        let is_package = in_use.manifests.contains(&(repository.project().to_owned(), *digest));
        if *modified > unused_since || (is_package && !is_orphan) {
            graph.hold(*digest, &mut held);
        }
    }
    for digest in graph.holders_first() {
        if held.contains(&digest) {
            continue;
        }
        let document = format!("{ROOT}/{repository}/_manifests/{}/{}", digest.algorithm().name(), digest.hex());
        if store.remove(&document, Some(unused_since))? {
            names.changed(repository, |_, stored| stored.digest == digest);
            swept.manifests = swept.manifests.saturating_add(1);
        } else {
            // A push has just found a use for it.
            graph.hold(digest, &mut held);
        }
    }
    for entry in under("_referrers")? {
        if digest_at(&entry.name).is_some_and(|digest| !held.contains(&digest)) {
            store.remove(&entry.name, Some(unused_since))?;
        }
    }
    let blobs: HashSet<&Digest> = held.iter().filter_map(|digest| graph.blobs.get(digest)).flatten().collect();
    for link in links {
        let is_held = digest_at(&link.name).is_none_or(|digest| blobs.contains(&digest));
        if !is_held && store.remove(&link.name, Some(unused_since))? {
            swept.links = swept.links.saturating_add(1);
        }
    }
    Ok(())
}
