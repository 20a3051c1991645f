//! The task behind a [`Vm`](super::Vm); its picture is at the head of the module above.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use form_guest::Report;
use form_service::run::chain;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::{Change, Command, Health, Phase, VmStatus};
use crate::driver::{Machine, Running};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::reports::Reports;
use crate::restart::{HEALTHY, delay};
use crate::store::{Exit, Goal, State, Store, Wanted};
use crate::watch::DirectoryWatch;
use crate::{disk, rotate};

/// What the guest needs beyond its own grace: it kills, unmounts and powers off.
const GRACE_MARGIN: Duration = Duration::from_secs(10);
/// How often the power button is pressed until the guest says that it stops. Early in its boot nobody listens.
const PRESS_AGAIN: Duration = Duration::from_secs(1);
/// How long until something that failed on our side is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// The task that owns one virtual machine.
pub(super) struct Actor {
    pub(super) host: Arc<Host>,
    pub(super) store: Arc<Store>,
    pub(super) wanted: Wanted,
    pub(super) state: State,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) status: watch::Sender<VmStatus>,
}

/// What to do next.
enum Step {
    /// Find out where we are.
    Resume,
    /// Wait for a command.
    Idle,
    /// Make everything and start the monitor.
    Start,
    /// Watch over a machine.
    Up(Box<dyn Running>),
    /// Wait for a command, or this long, and then start. With what is in the way, if that is not the workload.
    BackOff(Duration, Option<String>),
    /// Take everything away.
    Delete,
    /// Nobody is left who could command.
    Detach,
}

impl Actor {
    pub(super) async fn run(mut self) {
        let mut step = Step::Resume;
        loop {
            let next = match step {
                Step::Resume => self.resume().await,
                Step::Idle => self.idle().await,
                Step::Start => self.start().await,
                Step::Up(machine) => self.up(machine).await,
                Step::BackOff(delay, problem) => self.back_off(delay, problem).await,
                Step::Delete => match self.delete().await {
                    Ok(()) => return self.publish(Phase::Deleted, None),
                    Err(error) => Err(error),
                },
                Step::Detach => return,
            };
            step = match next {
                Ok(step) => step,
                Err(error) => self.trouble(&error).await,
            };
        }
    }

    /// Looks at what runs, then at what is written, then at what is wanted.
    async fn resume(&mut self) -> Result<Step> {
        self.store.sweep()?;
        if let Some(machine) = self.host.driver.adopt(&self.store).await? {
            info!(pid = machine.pid(), "found running");
            return Ok(Step::Up(machine));
        }
        if !self.state.running {
            return Ok(self.decide());
        }
        // It ended while nobody looked; or it never began, if we were killed just before.
        let mut heard = Heard::default();
        heard.listen(Reports::new(self.store.file("reports.jsonl")).read()?);
        if !heard.anything {
            self.state.running = false;
            self.save().await?;
            return Ok(self.decide());
        }
        let stopped = self.wanted.goal != Goal::Run;
        self.ended(heard.exit(), stopped).await
    }

    /// What is to be done with a machine that does not run.
    fn decide(&self) -> Step {
        match self.wanted.goal {
            Goal::Delete => Step::Delete,
            Goal::Run if !self.state.finished => Step::Start,
            Goal::Run | Goal::Stop => Step::Idle,
        }
    }

    async fn idle(&mut self) -> Result<Step> {
        let failed = self.state.finished && !self.state.last_exit.as_ref().is_some_and(Exit::is_success);
        self.publish(if failed { Phase::Failed } else { Phase::Stopped }, None);
        match self.commands.recv().await {
            Some(command) => {
                self.obey(command).await;
                Ok(self.decide())
            }
            None => Ok(Step::Detach),
        }
    }

    async fn back_off(&mut self, delay: Duration, problem: Option<String>) -> Result<Step> {
        self.publish(Phase::BackOff, None);
        self.status.send_modify(|status| status.problem = problem);
        Ok(if self.pause(delay).await { self.decide() } else { Step::Detach })
    }

    /// Waits this long, or until something else is wanted. Whether anybody is left who could command.
    async fn pause(&mut self, delay: Duration) -> bool {
        let end = Instant::now() + delay;
        loop {
            tokio::select! {
                () = sleep_until(end) => return true,
                command = self.commands.recv() => match command {
                    // To be told again what is wanted already, as happens at every look at us, is no reason to hurry.
                    Some(command) => if self.obey(command).await { return true },
                    None => return false,
                },
            }
        }
    }

    /// A failure of ours, not of the guest: it is told, and after a while everything is looked at anew.
    async fn trouble(&mut self, error: &Error) -> Step {
        warn!(error = error as &dyn std::error::Error, "trying again in {} s", TRY_AGAIN.as_secs());
        let problem = Some(chain(error));
        self.status.send_modify(|status| status.problem = problem);
        if self.pause(TRY_AGAIN).await { Step::Resume } else { Step::Detach }
    }

    async fn start(&mut self) -> Result<Step> {
        self.publish(Phase::Starting, None);
        match self.bring_up().await {
            Ok(machine) => {
                info!(pid = machine.pid(), "started");
                Ok(Step::Up(machine))
            }
            Err(error) => {
                // Not the workload's failure, so not its policy's business: what is missing (a tap, an image) may
                // come.
                warn!(error = &error as &dyn std::error::Error, "not started");
                self.state.running = false;
                self.state.failures = self.state.failures.saturating_add(1);
                self.save().await?;
                Ok(Step::BackOff(delay(self.state.failures), Some(chain(&error))))
            }
        }
    }

    /// Every part is made only if it is not there, so this may be cut short anywhere and begun again.
    async fn bring_up(&mut self) -> Result<Box<dyn Running>> {
        let spec = Arc::clone(&self.wanted.spec);
        if self.state.base.as_ref() != Some(&spec.base) {
            // Another package: what was written over the old one is of no use to it.
            self.store.remove_file("root.qcow2")?;
        }
        disk::ensure_overlay(&spec.base, &self.store.file("root.qcow2"), spec.disk_mib).await?;
        disk::write_config(&self.store.file("config.raw"), &spec.guest)?;
        let mut taps = Vec::new();
        for nic in &spec.nics {
            // To open one that is not there would make it, on no network.
            if nix::net::if_::if_nametoindex(nic.tap.as_str()).is_err() {
                return Err(Error::NoTap { name: nic.tap.clone() });
            }
            taps.push((nic.tap.clone(), nic.mac));
        }
        let machine = Machine {
            name: spec.uid.clone(),
            accelerator: self.host.accelerator,
            kernel: self.host.kernel.clone(),
            initramfs: self.host.initramfs.clone(),
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            base: Some(spec.base.clone()),
            taps,
            user: self.host.users.claim(&spec.uid)?,
        };
        // Cleared before the run is written down: reports that are there then belong to it.
        Reports::clear(&self.store.file("reports.jsonl"))?;
        self.state.running = true;
        self.state.generation = spec.generation;
        self.state.base = Some(spec.base.clone());
        self.state.started_at = Some(now());
        self.save().await?;
        self.host.driver.start(&self.store, &machine).await
    }

    /// Starting, Running and Stopping: which of them it is, is for the guest's reports and the goal to say.
    async fn up(&mut self, machine: Box<dyn Running>) -> Result<Step> {
        let mut watch = DirectoryWatch::new(self.store.path())?;
        let mut reports = Reports::new(self.store.file("reports.jsonl"));
        let mut heard = Heard::default();
        // While Stopping: when to press again, and when to lose patience.
        let mut stopping: Option<(Instant, Instant)> = None;
        loop {
            heard.listen(reports.read()?);
            if rotate::is_due(self.store.path(), self.host.console_limit) {
                machine.reopen_console(rotate::next(self.store.path())?).await?;
                rotate::shift(self.store.path())?;
            }
            let now = Instant::now();
            let outdated = self.state.generation != self.wanted.spec.generation;
            if (self.wanted.goal != Goal::Run || outdated) && stopping.is_none() {
                let grace = Duration::from_secs(self.wanted.spec.guest.grace_seconds.into());
                stopping = Some((now, now + grace + GRACE_MARGIN));
            }
            let phase = match stopping {
                Some(_) => Phase::Stopping,
                // Its workload has ended; the guest takes a moment to go after it.
                None if heard.exit.is_some() => Phase::Stopping,
                None if heard.started => Phase::Running,
                None => Phase::Starting,
            };
            self.publish_run(phase, Some(machine.pid()), heard.health.clone());
            let (press, patience) = stopping.unwrap_or((now, now));
            tokio::select! {
                ended = machine.wait() => {
                    ended?;
                    heard.listen(reports.read()?);
                    return self.ended(heard.exit(), stopping.is_some()).await;
                }
                changed = watch.changed() => changed?,
                command = self.commands.recv() => match command {
                    Some(command) => {
                        self.obey(command).await;
                    }
                    None => return Ok(Step::Detach),
                },
                () = sleep_until(press), if stopping.is_some() && !heard.stopping => {
                    if let Err(error) = machine.powerdown().await {
                        warn!(error = &error as &dyn std::error::Error, "the power button does not work");
                    }
                    stopping = Some((Instant::now() + PRESS_AGAIN, patience));
                }
                () = sleep_until(patience), if stopping.is_some() => {
                    warn!("did not stop in time; killed");
                    machine.kill()?;
                    stopping = Some((press, Instant::now() + GRACE_MARGIN));
                }
            }
        }
    }

    /// Accounts for the end of a run. `stopped` if it was wanted: then the policy has no say.
    async fn ended(&mut self, exit: Exit, stopped: bool) -> Result<Step> {
        info!(?exit, stopped, "ended");
        let restarts = !stopped && self.wanted.spec.restart.restarts(exit.is_success());
        let lasted = self.state.started_at.map_or(0, |start| now().saturating_sub(start));
        let state = &mut self.state;
        state.running = false;
        state.finished = !stopped && !restarts;
        state.last_exit = Some(exit);
        if restarts {
            state.failures = if lasted >= HEALTHY.as_secs() { 1 } else { state.failures.saturating_add(1) };
            state.restarts = state.restarts.saturating_add(1);
        } else {
            state.failures = 0;
        }
        let pause = delay(state.failures);
        self.save().await?;
        Ok(if restarts { Step::BackOff(pause, None) } else { self.decide() })
    }

    async fn delete(&mut self) -> Result<()> {
        self.store.remove()?;
        // Killed before this, it is given back at the next start: the instance is no more.
        self.host.users.release(&self.wanted.spec.uid)
    }

    /// Writes down what is wanted, then acknowledges. A deletion is final. Whether that is something else than before.
    async fn obey(&mut self, Command { change, done }: Command) -> bool {
        let mut wanted = self.wanted.clone();
        let anew = match change {
            _ if wanted.goal == Goal::Delete => false,
            Change::Power(goal) if goal == wanted.goal => false,
            Change::Goal(goal) | Change::Power(goal) => {
                wanted.goal = goal;
                goal == Goal::Run
            }
            Change::Spec(spec, goal) => {
                let anew = spec != wanted.spec || goal != wanted.goal;
                wanted = Wanted { spec, goal };
                anew
            }
        };
        if !anew && wanted == self.wanted {
            let _ = done.send(Ok(()));
            return false;
        }
        let mut state = self.state.clone();
        if anew {
            state.finished = false;
            state.failures = 0;
        }
        if wanted.spec.generation != self.wanted.spec.generation {
            state.restarts = 0;
        }
        let written = self.write(Some(wanted.clone()), state.clone()).await;
        if written.is_ok() {
            self.status.send_modify(|status| status.spec = Arc::clone(&wanted.spec));
            self.wanted = wanted;
            self.state = state;
        }
        let changed = written.is_ok();
        // Whoever asked may have gone; what is wanted stays wanted.
        let _ = done.send(written);
        changed
    }

    async fn save(&self) -> Result<()> {
        self.write(None, self.state.clone()).await
    }

    /// The state first: with an old goal it changes nothing.
    async fn write(&self, wanted: Option<Wanted>, state: State) -> Result<()> {
        let store = Arc::clone(&self.store);
        let write = move || {
            store.set_state(&state)?;
            wanted.map_or(Ok(()), |wanted| store.set_wanted(&wanted))
        };
        tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| {
            Err(Error::System { action: "write the instance's state", source: std::io::Error::other(error) })
        })
    }

    fn publish(&self, phase: Phase, pid: Option<u32>) {
        self.publish_run(phase, pid, None);
    }

    fn publish_run(&self, phase: Phase, pid: Option<u32>, health: Option<Health>) {
        let next = VmStatus {
            phase,
            pid,
            restarts: self.state.restarts,
            started_at: self.state.started_at,
            last_exit: self.state.last_exit.clone(),
            problem: None,
            health,
            // A machine that is up is of the generation that it was started with.
            generation: if pid.is_some() { self.state.generation } else { self.wanted.spec.generation },
            spec: Arc::clone(&self.wanted.spec),
        };
        self.status.send_if_modified(|status| {
            let changed = *status != next;
            *status = next;
            changed
        });
    }
}

/// What a guest has said of its run. However much it says, this stays small.
#[derive(Debug, Default)]
struct Heard {
    anything: bool,
    started: bool,
    stopping: bool,
    health: Option<Health>,
    exit: Option<Exit>,
}

impl Heard {
    fn listen(&mut self, reports: Vec<Report>) {
        for report in reports {
            self.anything = true;
            match report {
                Report::Booting => {}
                Report::Started { .. } => self.started = true,
                // Also where the port was flooded, and what came before is lost.
                Report::Health { healthy, output } => {
                    self.started = true;
                    self.health = Some(Health { healthy, output });
                }
                Report::Stopping => self.stopping = true,
                Report::Exited { code, signal } => self.exit = Some(Exit { code, signal, reason: None }),
                Report::Failed { reason } => self.exit = Some(Exit { reason: Some(reason), ..Exit::default() }),
            }
        }
    }

    /// How it ended, once it has.
    fn exit(self) -> Exit {
        self.exit.unwrap_or_else(|| Exit {
            reason: Some("the virtual machine ended, and its guest did not say why; its console may".into()),
            ..Exit::default()
        })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::file;

    #[test]
    fn the_guests_last_word_is_its_exit() {
        let mut heard = Heard::default();
        heard.listen(vec![Report::Booting, Report::Started { pid: 2 }, Report::Exited { code: Some(3), signal: None }]);
        assert_eq!(heard.exit().code, Some(3));
    }

    #[test]
    fn a_guest_that_says_nothing_has_not_succeeded() {
        assert!(!Heard::default().exit().is_success());
    }

    #[test]
    fn an_error_is_told_with_its_causes_once_each() {
        let error = file("open", "/x")(std::io::Error::other("broken"));
        assert_eq!(chain(&error), "cannot open /x: broken");
    }
}
