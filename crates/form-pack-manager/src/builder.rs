//! From a Formfile and a build context to a package in a store.
//!
//! ```text
//! stage:  FROM ─▶ chain ─COPY─▶ chain ─RUN─▶ chain ─▶ …      only the stages that the wanted one needs
//! chain:  layers and the tree that they make; its digest says all that came before
//! ```
//!
//! A COPY is done each time: its layer's digest is that of what it copies, and only a layer that nobody has seen yet is
//! compressed. A RUN is done once for what it sees: the chain below it, its command, environment and mounts.

mod base;
mod debian;
mod error;
mod package;
mod remote;
mod stage;
mod steps;

pub use error::BuildError;
pub use package::{Disk, Package};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Instant;

use form_sandbox::{Network, Stop};
use formfile::{Formfile, Op};

use crate::context::Context;
use crate::registry::Names;
use crate::tree::Tree;
use crate::workshop::Workshop;
use stage::Chain;

/// What is to be built, and with what.
pub struct Request<'r> {
    pub project: &'r str,
    pub formfile: &'r Formfile,
    pub context: &'r Context,
    /// The values of ARGs that the build gives.
    pub args: &'r BTreeMap<String, String>,
    /// The stage that becomes the package; the last one, if none is named.
    pub target: Option<&'r str>,
    pub network: Network,
    /// What RUN came to before is not used.
    pub no_cache: bool,
    /// The secrets that the build gives, by their ids.
    pub secrets: &'r BTreeMap<String, Vec<u8>>,
    pub deadline: Option<Instant>,
    pub stop: &'r Stop,
}

/// What a build says while it goes on.
#[derive(Debug, Clone, Copy)]
pub enum Event<'e> {
    /// The step of this number, of so many, begins.
    Step { number: usize, total: usize, text: &'e str },
    /// It was done before.
    Cached,
    /// What the command of the step writes.
    Output(&'e [u8]),
    /// What is done after the last step.
    Phase(&'e str),
}

/// Builds `request` into the store of `workshop`.
///
/// Blocks. When it returns, all blobs are on disk; when it fails, some may be, which are those of a build that got
/// further. Nothing else stays behind but what the workshop keeps.
pub fn build(
    workshop: &Workshop,
    request: &Request<'_>,
    log: &mut dyn FnMut(Event<'_>),
) -> Result<Package, BuildError> {
    let context = request.context.tree();
    let wanted = wanted(request.formfile, request.target)?;
    let needed = needed(request.formfile, wanted);
    let steps_of = |stage: &formfile::Stage| stage.steps.iter().filter(|step| !matches!(step.op, Op::Arg(_))).count();
    let stages = request.formfile.stages.iter().enumerate().filter(|(number, _)| needed.contains(number));
    let total = stages.map(|(_, stage)| steps_of(stage).saturating_add(1)).sum();
    let mut engine = Engine {
        workshop,
        request,
        names: Names::new(workshop.store().clone()),
        context: &context,
        log,
        done: HashMap::new(),
        number: 0,
        total,
    };
    for number in needed {
        engine.check_time()?;
        let chain = engine.stage(number)?;
        engine.done.insert(number, Rc::new(chain));
    }
    let Some(chain) = engine.done.get(&wanted).map(Rc::clone) else { return Err(BuildError::NoStage(String::new())) };
    engine.package(&chain)
}

struct Engine<'r, 'e> {
    workshop: &'r Workshop,
    request: &'r Request<'r>,
    names: Names,
    context: &'r Tree,
    log: &'e mut dyn FnMut(Event<'_>),
    /// The stages that are built already.
    done: HashMap<usize, Rc<Chain>>,
    number: usize,
    total: usize,
}

impl Engine<'_, '_> {
    fn begin(&mut self, text: &str) {
        self.number = self.number.saturating_add(1);
        (self.log)(Event::Step { number: self.number, total: self.total, text });
    }

    fn check_time(&self) -> Result<(), BuildError> {
        if self.request.stop.is_stopped() {
            return Err(BuildError::Stopped);
        }
        if self.request.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(BuildError::TimedOut);
        }
        Ok(())
    }
}

/// The stage that was asked for: by its name or its number.
fn wanted(formfile: &Formfile, target: Option<&str>) -> Result<usize, BuildError> {
    let last = formfile.stages.len().saturating_sub(1);
    let Some(target) = target else { return Ok(last) };
    find(formfile, target, formfile.stages.len()).ok_or_else(|| BuildError::NoStage(target.to_owned()))
}

/// The stage before `before` that is called `name`.
fn find(formfile: &Formfile, name: &str, before: usize) -> Option<usize> {
    let lower = name.to_ascii_lowercase();
    let stages = formfile.stages.iter().take(before);
    let by_name =
        stages.enumerate().filter(|(_, stage)| stage.name.as_deref() == Some(&lower)).map(|(at, _)| at).next_back();
    by_name.or_else(|| name.parse().ok().filter(|number| *number < before))
}

/// The stages that `wanted` is made of, each after those that it needs. What stands in variables is known only later, so
/// whoever has one in a FROM or a `--from` may need all before it.
fn needed(formfile: &Formfile, wanted: usize) -> BTreeSet<usize> {
    let mut needed = BTreeSet::new();
    let mut next = vec![wanted];
    while let Some(number) = next.pop() {
        let Some(stage) = formfile.stages.get(number).filter(|_| needed.insert(number)) else { continue };
        let copies = stage.steps.iter().filter_map(|step| match &step.op {
            Op::Copy(copy) => copy.from.as_ref(),
            _ => None,
        });
        for from in std::iter::once(&stage.from).chain(copies) {
            match from.literal() {
                Some(name) => next.extend(find(formfile, name, number)),
                None => next.extend(0..number),
            }
        }
    }
    needed
}

#[cfg(test)]
mod tests;
