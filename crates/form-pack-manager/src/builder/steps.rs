//! The steps that change files: COPY, RUN, INSTALL.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use form_rootfs::{Digest, Hasher};
use form_sandbox::{Limits, Mount, Network, Outcome, Run};
use formfile::{Command, Fault, MountKind, Sharing, Source, Span, Template, value};
use serde::Serialize;

use super::stage::{Chain, Scope};
use super::{BuildError, Engine, Event};
use crate::image::{LAYER, Layer};
use crate::layer::{apply, expand as expand_layer, receive, write_tar};
use crate::tree::{Change, Contents, Copy, Diff, Kind, Node, Tree};
use crate::users::{self, Who};
use crate::workshop::{Made, MadeLayer};

type Expand<'x> = &'x dyn Fn(&Template) -> Result<String, Fault>;

/// Where programs are looked for, if nobody says (the same as in other builders).
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A cache key that is about another way of doing it.
const FORMAT: u32 = 1;
/// Where a script of a RUN and what belongs to the network stands.
const SCRIPT: &str = "/run/.formfile-script";

/// What a RUN depends on.
#[derive(Serialize)]
struct Key<'k> {
    format: u32,
    chain: String,
    command: &'k [String],
    script: Option<&'k str>,
    env: &'k [(String, String)],
    user: &'k str,
    workdir: &'k str,
    mounts: Vec<String>,
    has_network: bool,
}

impl Engine<'_, '_> {
    pub(super) fn copy(
        &mut self,
        copy: &formfile::Copy,
        span: Span,
        stage: usize,
        chain: &mut Chain,
        expand: Expand<'_>,
    ) -> Result<(), BuildError> {
        let from = copy.from.as_ref().map(|from| expand(from).map(|name| (name, from.span))).transpose()?;
        let other: Option<Rc<Chain>> = from.map(|(name, span)| self.image(&name, span, stage)).transpose()?;
        let tree = other.as_ref().map_or(self.context, |other| &other.tree);
        let text = expand(&copy.destination)?;
        let destination = value::package_path(&text, chain.workdir(), copy.destination.span)?;
        let owner = copy.chown.as_ref().map(|owner| self.owner(&expand(owner)?, owner.span, chain)).transpose()?;
        let into_directory = value::is_directory(&text) || copy.sources.len() > 1;

        let mut diff = Diff::default();
        let layer = chain.next();
        let mut put = |from: &Tree, sources: &[String], into_directory, span: Span, chain: &mut Chain| {
            // Of a context everything is root's; of another tree, as there, unless Docker's rule: also root's.
            let owner = Some(owner.unwrap_or_default());
            let step =
                Copy { from, sources, destination: &destination, into_directory, owner, mode: copy.chmod, layer };
            step.apply(&mut chain.tree, &mut diff).map_err(|error| {
                let span = if error.source_number.is_some() { span } else { copy.destination.span };
                BuildError::at(span, error.what.to_string(), error.what.hint())
            })
        };
        for source in &copy.sources {
            match source {
                Source::Path(template) => {
                    let found = found(tree, &expand(template)?, template.span, other.is_some())?;
                    let into_directory = into_directory || found.len() > 1;
                    for path in found {
                        let unpacked = if copy.add { self.unpacked(tree, &path, template.span)? } else { None };
                        match unpacked {
                            Some(unpacked) => put(&unpacked, &[String::new()], true, template.span, chain)?,
                            None => put(tree, &[path], into_directory, template.span, chain)?,
                        }
                    }
                }
                Source::Inline { name, contents } => {
                    let contents = Contents::of(expand(contents)?.as_bytes(), self.workshop.scratch());
                    let contents = Arc::new(contents.map_err(BuildError::Scratch)?);
                    let mut tree = Tree::default();
                    let node = Node { kind: Kind::File(contents), mode: 0o644, ..Node::directory(0) };
                    tree.insert(name.clone(), node);
                    put(&tree, std::slice::from_ref(name), into_directory, span, chain)?;
                }
            }
        }
        self.add(chain, diff)
    }

    fn owner(&self, text: &str, span: Span, chain: &Chain) -> Result<(u32, u32), BuildError> {
        let text = value::user(text, span)?;
        let who = self.who(chain, &text, span)?;
        // `--chown=7` is user 7 and group 7.
        let gid = if text.contains(':') { who.gid } else { text.parse().unwrap_or(who.gid) };
        Ok((who.uid, gid))
    }

    fn who(&self, chain: &Chain, text: &str, span: Span) -> Result<Who, BuildError> {
        let found = users::find(&chain.tree, text).map_err(BuildError::Scratch)?;
        found.map_err(|what| BuildError::at(span, what, "give a number, or make it in a RUN before"))
    }

    /// What is in the archive at `path`, if it is one.
    fn unpacked(&self, tree: &Tree, path: &str, span: Span) -> Result<Option<Tree>, BuildError> {
        let Some(Node { kind: Kind::File(contents), .. }) = tree.get(path) else { return Ok(None) };
        let head = contents.read(512).map_err(BuildError::Scratch)?;
        let kind = match head.as_slice() {
            [0x1f, 0x8b, ..] => "tar+gzip",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "tar+zstd",
            [0xfd, b'7', b'z', ..] | [b'B', b'Z', b'h', ..] => {
                let hint = "pack it with gzip or zstd, or COPY it and unpack it in a RUN";
                return Err(BuildError::at(span, format!("`{path}` is packed with xz or bzip2"), hint));
            }
            head if head.get(257..262) == Some(b"ustar") => "layer.tar",
            _ => return Ok(None),
        };
        let limits = self.workshop.limits();
        let file = tempfile::tempfile_in(self.workshop.scratch()).map_err(BuildError::Scratch)?;
        expand_layer(contents.open(), kind, &file, limits.bytes)?;
        let mut unpacked = Tree::default();
        match apply(&mut unpacked, &Arc::new(file), 1, limits) {
            Ok(_) => Ok(Some(unpacked)),
            // Something else that is compressed, which is copied as it is.
            Err(crate::layer::LayerError::Read(_)) if kind != "layer.tar" => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn run(
        &mut self,
        run: &formfile::Run,
        text: &str,
        span: Span,
        chain: &mut Chain,
        scope: &Scope,
    ) -> Result<(), BuildError> {
        let has_network = run.network != Some(formfile::Network::None) && self.request.network == Network::Host;
        let (command, script) = match &run.command {
            Command::Exec(words) => (words.clone(), None),
            Command::Shell(text) => (vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()], None),
            Command::Script(text) => (vec![SCRIPT.to_owned()], Some(text.as_str())),
        };
        let who = self.who(chain, &chain.config.user, span)?;
        let mut env = environment(chain, &who, &scope.args);
        let workdir = chain.workdir().to_owned();
        let key = Key {
            format: FORMAT,
            chain: chain.digest.to_string(),
            command: &command,
            script,
            env: &env,
            user: &chain.config.user,
            workdir: &workdir,
            // What a secret holds changes from day to day, and is not what makes a step another one.
            mounts: run.mounts.iter().map(|mount| format!("{:?} {:?}", mount.kind, mount.target)).collect(),
            has_network,
        };
        let key = Digest::of(&serde_json::to_vec(&key)?);
        if self.cached(&key, chain)? {
            return Ok(());
        }
        let mut mounts = Vec::new();
        let (mut locks, mut held) = (Vec::new(), Vec::new());
        for mount in &run.mounts {
            let target = mount.target.as_deref().map(|target| value::package_path(target, &workdir, mount.span));
            let target = target.transpose()?;
            let (uid, gid) = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
            match &mount.kind {
                MountKind::Cache { id, sharing } => {
                    let (name, lock) = self.cache(id, *sharing)?;
                    locks.extend(lock);
                    held.push(self.workshop.hold(&name));
                    let target = target.unwrap_or_default();
                    mounts.push(Mount::Directory { source: name, target, mode: mount.mode.unwrap_or(0o755), uid, gid });
                }
                MountKind::Tmpfs { size } => {
                    mounts.push(Mount::Tmpfs { target: target.unwrap_or_default(), bytes: size.unwrap_or(0) });
                }
                MountKind::Secret { id, required, env: variable } => {
                    let Some(secret) = self.request.secrets.get(id) else {
                        if *required {
                            let hint = format!("build it with `--secret id={id},src=FILE`");
                            return Err(BuildError::at(mount.span, format!("the build has no secret `{id}`"), hint));
                        }
                        continue;
                    };
                    if let Some(variable) = variable {
                        env.push((variable.clone(), String::from_utf8_lossy(secret).into_owned()));
                    }
                    if target.is_some() || variable.is_none() {
                        let target = target.unwrap_or_else(|| format!("/run/secrets/{id}"));
                        let contents = secret.clone();
                        mounts.push(Mount::File { target, contents, mode: mount.mode.unwrap_or(0o400), uid, gid });
                    }
                }
            }
        }
        if let Some(script) = script {
            let contents = script.as_bytes().to_vec();
            mounts.push(Mount::File { target: SCRIPT.to_owned(), contents, mode: 0o755, uid: 0, gid: 0 });
        }
        self.execute(chain, &who, command, env, mounts, has_network, text, &key, &|_| false)
    }

    pub(super) fn install(
        &mut self,
        packages: &[Template],
        text: &str,
        span: Span,
        chain: &mut Chain,
        expand: Expand<'_>,
    ) -> Result<(), BuildError> {
        let mut words = Vec::new();
        for package in packages {
            let (name, version) = value::debian_package(&expand(package)?, package.span)?;
            words.push(version.map_or(name.clone(), |version| format!("{name}={version}")));
        }
        words.sort();
        if self.request.network != Network::Host {
            let hint = "build it with `form pack build --network host`";
            return Err(BuildError::at(span, "INSTALL needs the network, and this build has none", hint));
        }
        let who = Who { uid: 0, gid: 0, groups: Vec::new(), home: "/root".to_owned() };
        let mut env = environment(chain, &who, &BTreeMap::new());
        env.push(("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned()));
        let script = format!("{INSTALL}{}\n{CLEAN}", words.join(" "));
        let command = vec!["/bin/sh".to_owned(), "-c".to_owned(), script];
        let key = Key {
            format: FORMAT,
            chain: chain.digest.to_string(),
            command: &command,
            script: None,
            env: &env,
            user: "",
            workdir: "/",
            mounts: Vec::new(),
            has_network: true,
        };
        let key = Digest::of(&serde_json::to_vec(&key)?);
        if self.cached(&key, chain)? {
            return Ok(());
        }
        self.execute(chain, &who, command, env, Vec::new(), true, text, &key, &is_trace)
    }

    /// Adds what the step came to before, if that is known and still there.
    fn cached(&mut self, key: &Digest, chain: &mut Chain) -> Result<bool, BuildError> {
        if self.request.no_cache {
            return Ok(false);
        }
        let Some(made): Option<Made> = self.workshop.recall(&self.step_name(key))? else { return Ok(false) };
        self.add_made(made, chain)
    }

    /// Adds what was made before, if it is still there.
    pub(super) fn add_made(&mut self, made: Made, chain: &mut Chain) -> Result<bool, BuildError> {
        if let Some(layer) = made.layer {
            let (Some(blob), Ok(diff_id)) = (self.workshop.blob(&layer)?, layer.diff_id.parse::<Digest>()) else {
                return Ok(false);
            };
            let file = self.workshop.expanded(&diff_id, &blob.digest, LAYER)?;
            let number = chain.next();
            let diff = apply(&mut chain.tree, &file, number, self.workshop.limits())?;
            chain.push(Layer { diff_id, blob, media_type: LAYER.to_owned() }, diff);
        }
        (self.log)(Event::Cached);
        Ok(true)
    }

    fn step_name(&self, key: &Digest) -> String {
        format!("{}/step/{}", self.request.project, key.hex())
    }

    /// The directory of a cache mount: of this project alone.
    fn cache(&self, id: &str, sharing: Sharing) -> Result<(String, Option<crate::workshop::Locked>), BuildError> {
        let name = Digest::of(format!("{}\0{id}", self.request.project).as_bytes());
        let name = format!("caches/{}", name.hex().chars().take(24).collect::<String>());
        let request = self.request;
        let is_over =
            || request.stop.is_stopped() || request.deadline.is_some_and(|at| std::time::Instant::now() >= at);
        match sharing {
            Sharing::Shared => Ok((name, None)),
            Sharing::Locked => match self.workshop.lock(&name, &is_over) {
                Some(lock) => Ok((name, Some(lock))),
                None => self.check_time().map(|()| (name, None)),
            },
            // Who comes second gets an empty one, which goes with the step.
            Sharing::Private => match self.workshop.lock(&name, &|| true) {
                Some(lock) => Ok((name, Some(lock))),
                None => Ok((format!("run/cache-{}", uuid::Uuid::new_v4().simple()), None)),
            },
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a step is all of these")]
    fn execute(
        &mut self,
        chain: &mut Chain,
        who: &Who,
        command: Vec<String>,
        env: Vec<(String, String)>,
        mut mounts: Vec<Mount>,
        has_network: bool,
        text: &str,
        key: &Digest,
        is_dropped: &dyn Fn(&str) -> bool,
    ) -> Result<(), BuildError> {
        let sandbox = self.workshop.sandbox()?.clone();
        let mut snapshots = Vec::new();
        for (digest, diff) in &chain.diffs {
            snapshots.push(self.workshop.snapshot(digest, diff)?);
        }
        // An overlay of nothing but an empty directory.
        if snapshots.is_empty() {
            snapshots.push(self.workshop.snapshot(&chain.digest, &Diff::default())?);
        }
        let network = if has_network { Network::Host } else { Network::None };
        if has_network {
            for file in ["/etc/resolv.conf", "/etc/hosts"] {
                let contents = fs::read(file).unwrap_or_default();
                mounts.push(Mount::File { target: file.to_owned(), contents, mode: 0o644, uid: 0, gid: 0 });
            }
        }
        let work = format!("run/{}", uuid::Uuid::new_v4().simple());
        let targets: Vec<String> = ["/proc", "/dev"]
            .into_iter()
            .chain(mounts.iter().map(Mount::target))
            .map(|target| target.trim_matches('/').to_owned())
            .collect();
        let run = Run {
            lowers: snapshots.iter().rev().map(|snapshot| snapshot.name.clone()).collect(),
            work: work.clone(),
            command,
            env,
            uid: who.uid,
            gid: who.gid,
            groups: who.groups.clone(),
            workdir: chain.workdir().to_owned(),
            mounts,
            network,
            limits: Limits::default(),
        };
        let log = &mut *self.log;
        let outcome =
            sandbox.run(run, self.request.stop, self.request.deadline, &mut |bytes| log(Event::Output(bytes)));
        let layer = match outcome {
            Ok(Outcome::Exited(0)) => self.changed(&sandbox, &work, chain, targets, is_dropped),
            Ok(Outcome::Stopped) => Err(BuildError::Stopped),
            Ok(Outcome::TimedOut) => Err(BuildError::TimedOut),
            Ok(outcome) => Err(BuildError::Step { text: text.to_owned(), outcome }),
            Err(error) => Err(error.into()),
        };
        // Whatever came of it; what cannot be removed now is at the next start.
        if let Err(error) = sandbox.remove(vec![work]) {
            tracing::warn!(error = form_service::run::chain(&error), "what a step left was not removed");
        }
        let made = layer?;
        self.workshop.note(&self.step_name(key), &made)?;
        Ok(())
    }

    /// Makes a layer of what the step left in its directory, and adds it.
    fn changed(
        &mut self,
        sandbox: &form_sandbox::Sandbox,
        work: &str,
        chain: &mut Chain,
        targets: Vec<String>,
        is_dropped: &dyn Fn(&str) -> bool,
    ) -> Result<Made, BuildError> {
        let spool = Arc::new(tempfile::tempfile_in(self.workshop.scratch()).map_err(BuildError::Scratch)?);
        let mut tree = chain.tree.clone();
        let limits = self.workshop.limits();
        let layer_number = chain.next();
        let upper = format!("{work}/upper");
        let diff = sandbox.pack(&upper, |tar| receive(&mut tree, tar, &spool, layer_number, limits))?;
        let mut diff = diff?;
        diff.root = None;
        // A directory on the way to what changed is not itself changed.
        diff.changes.retain(|path, change| match change {
            Change::Put(node) if node.is_directory() && !diff.opaque.contains(path) => {
                let known = chain.tree.get(path).map(|known| Node { mtime: 0, ..known.clone() });
                !known.is_some_and(|known| known.is_same(node))
            }
            _ => true,
        });
        forget(&mut diff, &chain.tree, targets);
        diff.changes.retain(|path, _| !is_dropped(path));
        self.keep(chain, diff)
    }

    /// Makes a layer of `diff`, which came out of a sandbox, and adds it.
    pub(super) fn keep(&mut self, chain: &mut Chain, diff: Diff) -> Result<Made, BuildError> {
        if diff.is_empty() {
            return Ok(Made { layer: None });
        }
        let diff = diff.with_parents(&chain.tree);
        let kept = self.workshop.keep(None, |file| {
            let mut hasher = Hasher::new(io::BufWriter::with_capacity(256 << 10, file));
            write_tar(&diff, &mut hasher).map_err(crate::layer::LayerError::Write)?;
            let (mut file, digest, _) = hasher.finish();
            io::Write::flush(&mut file).map_err(crate::layer::LayerError::Write)?;
            Ok(digest)
        });
        let (file, diff_id) = kept?;
        let layer = self.compressed(diff_id, |out| {
            use std::io::{Seek as _, SeekFrom};
            let mut reader = &*file;
            reader.seek(SeekFrom::Start(0))?;
            io::copy(&mut io::BufReader::with_capacity(1 << 20, reader), out).map(drop)
        })?;
        let made =
            MadeLayer { diff_id: diff_id.to_string(), digest: layer.blob.digest.to_string(), size: layer.blob.size };
        let number = chain.next();
        let diff = apply(&mut chain.tree, &file, number, self.workshop.limits())?;
        chain.push(layer, diff);
        Ok(Made { layer: Some(made) })
    }
}

/// The variables of a step: ENV, then ARG where ENV does not say otherwise.
fn environment(chain: &Chain, who: &Who, args: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut env = chain.config.env.clone();
    let defaults = [("PATH".to_owned(), PATH.to_owned()), ("HOME".to_owned(), who.home.clone())];
    for (name, value) in args.clone().into_iter().chain(defaults) {
        if !env.iter().any(|(known, _)| *known == name) {
            env.push((name, value));
        }
    }
    env
}

/// Takes out of `diff` what was only made to mount something on.
fn forget(diff: &mut Diff, base: &Tree, mut targets: Vec<String>) {
    targets.sort_by_key(|target| std::cmp::Reverse(target.len()));
    for target in &targets {
        let mut path = target.as_str();
        while !path.is_empty() && base.get(path).is_none() {
            let is_empty = match diff.changes.get(path) {
                Some(Change::Put(Node { kind: Kind::Directory, .. })) => {
                    diff.changes.range(format!("{path}/")..format!("{path}0")).next().is_none()
                }
                Some(Change::Put(Node { kind: Kind::File(contents), .. })) => path == target && contents.len == 0,
                _ => false,
            };
            if !is_empty {
                break;
            }
            diff.changes.remove(path);
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
    }
}

/// The paths that a source of a COPY stands for, never none.
fn found(tree: &Tree, text: &str, span: Span, is_tree: bool) -> Result<Vec<String>, BuildError> {
    let path = value::source_path(text, is_tree, span)?;
    // A name that looks like a glob and is there means itself.
    if !value::is_glob(&path) || tree.get(&path).is_some() {
        if !is_tree {
            return Ok(vec![path]);
        }
        let resolved = tree.resolve(&path, true);
        return Ok(vec![resolved.map_err(|error| BuildError::at(span, error.to_string(), "correct the links"))?]);
    }
    let glob = value::glob(&path, span)?;
    let found: Vec<String> =
        tree.iter().filter(|(path, _)| glob.is_match(path)).map(|(path, _)| path.to_owned()).collect();
    // Of what is in a directory that matches, the directory speaks.
    let is_below = |path: &String| {
        found.iter().any(|other| path.strip_prefix(other.as_str()).is_some_and(|rest| rest.starts_with('/')))
    };
    let tops: Vec<String> = found.iter().filter(|path| !is_below(path)).cloned().collect();
    if tops.is_empty() {
        let hint = "check its spelling, and that the context is the right directory";
        return Err(BuildError::at(span, format!("nothing matches `{path}`"), hint));
    }
    Ok(tops)
}

/// What INSTALL runs before the names of packages, and after them. Whoever cannot change ids may not drop rights for
/// downloads.
const INSTALL: &str = "set -e
command -v apt-get >/dev/null || { echo 'INSTALL needs a Debian base: there is no apt-get in the package' >&2; exit 127; }
apt-get -o APT::Sandbox::User=root -q update
apt-get -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 -qy --no-install-recommends install ";
const CLEAN: &str = "apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig/aux-cache
find /var/log -type f -delete
";

/// What of an installation says when it was, and not what.
pub(super) fn is_trace(path: &str) -> bool {
    let parts = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    parts("var/log")
        || parts("var/lib/apt/lists")
        || parts("var/cache/apt")
        || path == "var/cache/ldconfig/aux-cache"
        || (parts("var/lib/dpkg") && path.ends_with("-old"))
}
