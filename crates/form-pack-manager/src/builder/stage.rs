//! One stage: a base, and step after step over it.

use std::collections::BTreeMap;
use std::rc::Rc;

use form_rootfs::{Digest, Hasher};
use formfile::{Arg, Command, Op, Step, Template, value};

use super::{BuildError, Engine};
use crate::image::{Config, Healthcheck, History, LAYER, Layer};
use crate::layer::write_tar;
use crate::store::BlobStore as _;
use crate::tree::{Diff, Node, Tree};
use crate::workshop::{Made, MadeLayer};

/// Layers, and what they make.
#[derive(Clone)]
pub(super) struct Chain {
    pub(super) tree: Tree,
    pub(super) layers: Vec<Layer>,
    /// What each layer changed, for those that a RUN is mounted on.
    pub(super) diffs: Vec<(Digest, Rc<Diff>)>,
    /// Of all that came before.
    pub(super) digest: Digest,
    pub(super) config: Config,
    pub(super) history: Vec<History>,
}

impl Chain {
    pub(super) fn scratch() -> Self {
        Self {
            tree: Tree::default(),
            layers: Vec::new(),
            diffs: Vec::new(),
            digest: Digest::of(b"scratch"),
            config: Config::default(),
            history: Vec::new(),
        }
    }

    /// The number of the layer that comes next.
    pub(super) fn next(&self) -> u32 {
        u32::try_from(self.layers.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Adds a layer whose `diff` is in the tree already.
    pub(super) fn push(&mut self, layer: Layer, diff: Diff) {
        self.digest = Digest::of(format!("{} {}", self.digest, layer.diff_id).as_bytes());
        self.diffs.push((self.digest, Rc::new(diff)));
        self.layers.push(layer);
    }

    pub(super) fn workdir(&self) -> &str {
        if self.config.working_dir.is_empty() { "/" } else { &self.config.working_dir }
    }
}

/// The variables of a stage: ENV and ARG. ENV wins, as in Docker.
pub(super) struct Scope {
    pub(super) args: BTreeMap<String, String>,
}

/// zstd's default, as for root disks.
const LEVEL: i32 = 3;

impl Engine<'_, '_> {
    pub(super) fn stage(&mut self, number: usize) -> Result<Chain, BuildError> {
        let request = self.request;
        let Some(stage) = request.formfile.stages.get(number) else { return Ok(Chain::scratch()) };
        let mut outer = BTreeMap::new();
        for arg in &request.formfile.args {
            self.declare(arg, &mut outer, &|_| None)?;
        }
        let from = stage.from.expand(&|name| outer.get(name).cloned())?;
        self.begin(&format!("FROM {from}"));
        let mut chain = self.base(&from, stage.from.span, number)?;
        let mut scope = Scope { args: BTreeMap::new() };
        for step in &stage.steps {
            self.check_time()?;
            if let Op::Arg(arg) = &step.op {
                let known = |name: &str| outer.get(name).cloned();
                let mut args = std::mem::take(&mut scope.args);
                let config = chain.config.clone();
                // What stands before the first FROM holds here if it is named again without a default.
                let declared = match (&arg.default, request.args.get(&arg.name), known(&arg.name)) {
                    (None, None, Some(value)) => {
                        args.insert(arg.name.clone(), value);
                        Ok(())
                    }
                    _ => self.declare(arg, &mut args, &|name| config.env(name).map(str::to_owned)),
                };
                scope.args = args;
                declared?;
                continue;
            }
            self.begin(&step.text);
            let before = chain.layers.len();
            self.step(step, number, &mut chain, &scope)?;
            let empty_layer = chain.layers.len() == before;
            chain.history.push(History { created_by: step.text.clone(), empty_layer });
        }
        Ok(chain)
    }

    fn declare(
        &self,
        arg: &Arg,
        args: &mut BTreeMap<String, String>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), BuildError> {
        let value = match (self.request.args.get(&arg.name), &arg.default) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => Some(default.expand(&|name| env(name).or_else(|| args.get(name).cloned()))?),
            (None, None) => None,
        };
        if let Some(value) = value {
            args.insert(arg.name.clone(), value);
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, stage: usize, chain: &mut Chain, scope: &Scope) -> Result<(), BuildError> {
        let config = chain.config.clone();
        let expand = |template: &Template| {
            template.expand(&|name| config.env(name).map(str::to_owned).or_else(|| scope.args.get(name).cloned()))
        };
        match &step.op {
            Op::Arg(_) => {}
            Op::Env(pairs) => {
                for (name, value) in pairs {
                    chain.config.set_env(name, expand(value)?);
                }
                if chain.config.env.len() > value::MOST_ENV {
                    return Err(BuildError::TooMany { most: value::MOST_ENV, what: "variables" });
                }
            }
            Op::Workdir(path) => {
                let path = value::package_path(&expand(path)?, chain.workdir(), step.span)?;
                let mut diff = Diff::default();
                let made = Node::directory(chain.next());
                let made = chain.tree.make_directory(path.trim_start_matches('/'), &made, &mut diff);
                made.map_err(|error| BuildError::at(step.span, error.to_string(), "choose another directory"))?;
                chain.config.working_dir = path;
                self.add(chain, diff)?;
            }
            Op::User(user) => chain.config.user = value::user(&expand(user)?, user.span)?,
            Op::Label(pairs) => {
                for (name, value) in pairs {
                    chain.config.labels.insert(expand(name)?, expand(value)?);
                }
                if chain.config.labels.len() > value::MOST_LABELS {
                    return Err(BuildError::TooMany { most: value::MOST_LABELS, what: "labels" });
                }
            }
            Op::Expose(ports) => {
                for port in ports {
                    chain.config.exposed_ports.insert(value::port(&expand(port)?, port.span)?.to_string());
                }
                if chain.config.exposed_ports.len() > value::MOST_PORTS {
                    return Err(BuildError::TooMany { most: value::MOST_PORTS, what: "ports" });
                }
            }
            Op::Volume(paths) => {
                for path in paths {
                    let path = value::package_path(&expand(path)?, chain.workdir(), path.span)?;
                    chain.config.volumes.insert(path);
                }
                if chain.config.volumes.len() > value::MOST_VOLUMES {
                    return Err(BuildError::TooMany { most: value::MOST_VOLUMES, what: "volumes" });
                }
            }
            Op::Entrypoint(command) => {
                chain.config.entrypoint = arguments(command);
                chain.config.cmd.clear();
            }
            Op::Cmd(command) => chain.config.cmd = arguments(command),
            Op::Healthcheck(None) => {
                chain.config.healthcheck =
                    Some(Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() });
            }
            Op::Healthcheck(Some(check)) => {
                let nanos = |time: Option<std::time::Duration>| {
                    time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
                };
                let test = match &check.command {
                    Command::Exec(words) => std::iter::once("CMD").chain(words.iter().map(String::as_str)).collect(),
                    Command::Shell(text) | Command::Script(text) => vec!["CMD-SHELL", text],
                };
                chain.config.healthcheck = Some(Healthcheck {
                    test: test.into_iter().map(str::to_owned).collect(),
                    interval: nanos(check.interval),
                    timeout: nanos(check.timeout),
                    start_period: nanos(check.start_period),
                    retries: check.retries.unwrap_or_default().into(),
                });
            }
            Op::Stopsignal(signal) => {
                let text = expand(signal)?;
                value::signal(&text, signal.span)?;
                chain.config.stop_signal = text;
            }
            Op::Copy(copy) => self.copy(copy, step.span, stage, chain, &expand)?,
            Op::Run(run) => self.run(run, &step.text, step.span, chain, scope)?,
            Op::Install(packages) => self.install(packages, &step.text, step.span, chain, &expand)?,
        }
        Ok(())
    }

    /// Adds what `diff` changed in the chain's tree as a layer, if anything.
    pub(super) fn add(&mut self, chain: &mut Chain, diff: Diff) -> Result<(), BuildError> {
        if diff.is_empty() {
            return Ok(());
        }
        let diff = diff.with_parents(&chain.tree);
        let mut hasher = Hasher::new(std::io::sink());
        write_tar(&diff, &mut hasher).map_err(BuildError::WriteLayer)?;
        let diff_id = hasher.finish().1;
        let layer = self.compressed(diff_id, |out| write_tar(&diff, out))?;
        chain.push(layer, diff);
        Ok(())
    }

    /// The blob of the layer `diff_id`: the one that the project had already, or what `write` yields.
    pub(super) fn compressed(
        &mut self,
        diff_id: Digest,
        write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>,
    ) -> Result<Layer, BuildError> {
        let name = format!("{}/layer/{}", self.request.project, diff_id.hex());
        if let Some(Made { layer: Some(known) }) = self.workshop.recall(&name)?
            && let Some(blob) = self.workshop.blob(&known)?
        {
            (self.log)(super::Event::Cached);
            return Ok(Layer { diff_id, blob, media_type: LAYER.to_owned() });
        }
        let store = self.workshop.store();
        let mut writer = store.writer()?;
        let mut encoder = zstd::Encoder::new(&mut writer, LEVEL).map_err(BuildError::WriteLayer)?;
        write(&mut encoder).map_err(BuildError::WriteLayer)?;
        encoder.finish().map_err(BuildError::WriteLayer)?;
        let blob = writer.commit(None)?;
        let layer = MadeLayer { diff_id: diff_id.to_string(), digest: blob.digest.to_string(), size: blob.size };
        self.workshop.note(&name, &Made { layer: Some(layer) })?;
        Ok(Layer { diff_id, blob, media_type: LAYER.to_owned() })
    }
}

fn arguments(command: &Command) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(text) | Command::Script(text) => vec!["/bin/sh".to_owned(), "-c".to_owned(), text.clone()],
    }
}
