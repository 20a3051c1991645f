//! A Debian to begin with: what the host's mmdebstrap makes in a sandbox.
//!
//! The sandbox's root is empty but for the host's programs, read-only, and one directory that mmdebstrap fills. It is
//! root there as a RUN is: it may mount nothing, and reaches the mirror over the host's network. So that maintainer
//! scripts find their devices, these are bound into the directory beforehand.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use form_rootfs::Digest;
use form_sandbox::{Limits, Mount, Network, Outcome, Run};
use formfile::Span;
use serde::{Deserialize, Serialize};

use super::stage::Chain;
use super::steps::{PATH, is_trace};
use super::{BuildError, Engine, Event};
use crate::image::History;
use crate::layer::receive;
use crate::tree::{Change, Diff};
use crate::workshop::Made;

/// A cache key that is about another way of doing it.
const FORMAT: u32 = 1;
/// What mmdebstrap needs of the host. Of /etc only what tells names and trust; keys of others cannot be read there anyway.
const DIRECTORIES: [&str; 8] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives", "/etc/apt/trusted.gpg.d", "/etc/ssl/certs"];
const FILES: [&str; 5] = ["/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/hosts"];
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
const OUT: &str = "/out";
/// Of the times that packages write down; not 0, by which a password would have to be changed.
const EPOCH: &str = "86400";

/// What is noted of a Debian that was made.
#[derive(Serialize, Deserialize)]
struct Note {
    #[serde(flatten)]
    made: Made,
    at: SystemTime,
}

impl Engine<'_, '_> {
    /// Debian's release `tag`, as small as it comes.
    pub(super) fn debian(&mut self, tag: &str, span: Span) -> Result<Chain, BuildError> {
        let suite = tag.strip_suffix("-slim").unwrap_or(tag);
        let is_name = suite.starts_with(|c: char| c.is_ascii_lowercase())
            && suite.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !is_name {
            let hint = "name one by its word: bookworm, trixie, sid";
            return Err(BuildError::at(span, format!("`{tag}` is no suite of Debian"), hint));
        }
        if self.request.network != Network::Host {
            let hint = "build it with `form pack build --network host`";
            let text = format!("`debian:{tag}` comes from a mirror over the network, and this build has none");
            return Err(BuildError::at(span, text, hint));
        }
        let mirror = self.workshop.debian_mirror().to_owned();
        let key = Digest::of(format!("{FORMAT}\0{suite}\0{}\0{mirror}", std::env::consts::ARCH).as_bytes());
        let name = format!("{}/debian/{}", self.request.project, key.hex());
        // Two builds at once need it once.
        let workshop = self.workshop;
        let _lock = loop {
            match workshop.lock(&name, &|| self.check_time().is_err()) {
                Some(lock) => break lock,
                None => self.check_time()?,
            }
        };
        let mut chain = Chain::scratch();
        let fresh = |note: &Note| note.at.elapsed().is_ok_and(|age| age < workshop.debian_fresh());
        let known = if self.request.no_cache { None } else { workshop.recall::<Note>(&name)?.filter(fresh) };
        let is_made = known.map_or(Ok(false), |note| self.add_made(note.made, &mut chain))?;
        if !is_made {
            let diff = self.bootstrapped(suite, &mirror, span)?;
            let made = self.keep(&mut chain, diff)?;
            workshop.note(&name, &Note { made, at: SystemTime::now() })?;
        }
        chain.config.cmd = vec!["/bin/bash".to_owned()];
        chain.history.push(History { created_by: format!("FROM debian:{suite}"), empty_layer: false });
        Ok(chain)
    }

    /// Runs mmdebstrap; what it made.
    fn bootstrapped(&mut self, suite: &str, mirror: &str, span: Span) -> Result<Diff, BuildError> {
        if !PATH.split(':').any(|directory| Path::new(directory).join("mmdebstrap").is_file()) {
            let hint = "run there: apt-get install mmdebstrap";
            return Err(BuildError::at(span, "the builder's machine has no mmdebstrap, which makes it", hint));
        }
        let sandbox = self.workshop.sandbox()?.clone();
        let empty = self.workshop.snapshot(&Chain::scratch().digest, &Diff::default())?;
        let id = uuid::Uuid::new_v4().simple();
        let (work, out) = (format!("run/{id}"), format!("run/{id}-out"));
        let host = |path: &str, at: String| Mount::Host { source: path.to_owned(), target: at };
        let mut mounts = vec![Mount::Tmpfs { target: "/tmp".to_owned(), bytes: 64 << 20 }];
        let there = DIRECTORIES.iter().filter(|path| Path::new(path).is_dir());
        mounts.extend(there.map(|path| host(path, (*path).to_owned())));
        for path in FILES {
            let contents = fs::read(path).unwrap_or_default();
            mounts.push(Mount::File { target: path.to_owned(), contents, mode: 0o644, uid: 0, gid: 0 });
        }
        let target = OUT.to_owned();
        mounts.push(Mount::Directory { source: out.clone(), target, mode: 0o755, uid: 0, gid: 0 });
        mounts.extend(DEVICES.map(|name| host(&format!("/dev/{name}"), format!("{OUT}/dev/{name}"))));
        let mut command = vec![
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            // The devices are in it.
            "--skip=check/empty",
            suite,
            OUT,
        ];
        command.extend(Some(mirror).filter(|mirror| !mirror.is_empty()));
        let env = [("PATH", PATH), ("HOME", "/tmp"), ("LC_ALL", "C.UTF-8"), ("SOURCE_DATE_EPOCH", EPOCH)];
        let run = Run {
            lowers: vec![empty.name.clone()],
            work: work.clone(),
            command: command.into_iter().map(str::to_owned).collect(),
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            workdir: "/tmp".to_owned(),
            mounts,
            network: Network::Host,
            limits: Limits::default(),
        };
        let log = &mut *self.log;
        let outcome =
            sandbox.run(run, self.request.stop, self.request.deadline, &mut |bytes| log(Event::Output(bytes)));
        let diff = match outcome {
            Ok(Outcome::Exited(0)) => self.filled(&sandbox, &out),
            Ok(Outcome::Stopped) => Err(BuildError::Stopped),
            Ok(Outcome::TimedOut) => Err(BuildError::TimedOut),
            Ok(outcome) => Err(BuildError::Step { text: format!("FROM debian:{suite}"), outcome }),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = sandbox.remove(vec![work, out]) {
            tracing::warn!(error = form_service::run::chain(&error), "what mmdebstrap left was not removed");
        }
        diff
    }

    fn filled(&self, sandbox: &form_sandbox::Sandbox, out: &str) -> Result<Diff, BuildError> {
        let spool = Arc::new(tempfile::tempfile_in(self.workshop.scratch()).map_err(BuildError::Scratch)?);
        let (mut tree, limits) = (Chain::scratch().tree, self.workshop.limits());
        let mut diff = sandbox.pack(out, |tar| receive(&mut tree, tar, &spool, 1, limits))??;
        diff.root = None;
        diff.changes.retain(|path, change| match change {
            // apt wants its empty directories.
            Change::Put(node) if node.is_directory() => true,
            // What only the builder's machine and this day have to say.
            _ => !is_trace(path) && !path.starts_with("dev/") && path != "etc/resolv.conf" && path != "etc/hostname",
        });
        Ok(diff)
    }
}
