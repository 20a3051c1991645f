//! Finding out whether the workload serves.
//!
//! ```text
//!            due                     ended, or killed at its timeout
//!   Waiting ─────▶ Checking ──────────────────────────────────────────▶ Waiting
//!                                    told, if it is news
//! ```
//!
//! A check is a child like the workload, in a session of its own, and is killed with all of its group.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use form_guest::{HealthCheck, Report};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::launch::{self, Plan};

/// Until it has once been healthy, nobody waits longer than this to hear of it.
const EAGER: Duration = Duration::from_secs(1);
/// The most bytes of a check's output that are kept. Little, for a report port that floods is cut off.
const MOST: usize = 160;

/// The checks of one run of the workload.
pub(crate) struct Health {
    rules: HealthCheck,
    plan: Plan,
    /// When failures begin to count.
    counts: Instant,
    next: Instant,
    check: Option<Check>,
    failures: u32,
    told: Option<bool>,
}

struct Check {
    pid: Pid,
    /// Until it is closed.
    output: Option<File>,
    /// What it wrote last.
    tail: Vec<u8>,
    /// When it is killed; `None`: it was.
    deadline: Option<Instant>,
}

impl Health {
    /// `plan` is what the check executes.
    pub(crate) fn new(rules: HealthCheck, plan: Plan, now: Instant) -> Self {
        let counts = now + seconds(rules.start_period_seconds);
        let next = now + EAGER.min(seconds(rules.interval_seconds));
        Self { rules, plan, counts, next, check: None, failures: 0, told: None }
    }

    /// When [`Health::step`] has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.check.as_ref().map_or(Some(self.next), |check| check.deadline)
    }

    /// What the check writes, for `poll`.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.check.as_ref()?.output.as_ref().map(AsFd::as_fd)
    }

    /// Does what is due: begins a check, listens to it, ends it. What is returned is news.
    pub(crate) fn step(&mut self, now: Instant) -> Option<Report> {
        let Some(check) = &mut self.check else {
            return if now >= self.next { self.begin(now) } else { None };
        };
        check.listen();
        if check.deadline.is_some_and(|deadline| now >= deadline) {
            check.deadline = None;
            check.kill();
        }
        None
    }

    /// Takes the end of a child, if it was the check. What is returned is news.
    pub(crate) fn ended(&mut self, pid: Pid, success: bool, now: Instant) -> Option<Report> {
        let mut check = self.check.take_if(|check| check.pid == pid)?;
        check.listen();
        // What it started and left behind.
        check.kill();
        let output = match check.deadline {
            None => format!("the check took longer than {} s", self.rules.timeout_seconds),
            Some(_) => String::from_utf8_lossy(&check.tail).trim().to_owned(),
        };
        self.judge(success && check.deadline.is_some(), output, now)
    }

    /// Nothing is checked any more.
    pub(crate) fn stop(&mut self) {
        if let Some(check) = self.check.take() {
            check.kill();
        }
    }

    fn begin(&mut self, now: Instant) -> Option<Report> {
        match launch::start_heard(&self.plan) {
            Ok((pid, output)) => {
                let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
                let deadline = Some(now + seconds(self.rules.timeout_seconds));
                self.check = Some(Check { pid, output: Some(output), tail: Vec::new(), deadline });
                None
            }
            Err(error) => self.judge(false, format!("{error:#}").chars().take(MOST).collect(), now),
        }
    }

    fn judge(&mut self, success: bool, output: String, now: Instant) -> Option<Report> {
        let interval = seconds(self.rules.interval_seconds);
        let early = self.told.is_none() && now < self.counts;
        self.next = now + if early { EAGER.min(interval) } else { interval };
        if success {
            self.failures = 0;
        } else if !early {
            self.failures = self.failures.saturating_add(1);
        }
        let verdict = if success { Some(true) } else { (self.failures >= self.rules.retries).then_some(false) };
        let healthy = verdict.filter(|_| verdict != self.told)?;
        self.told = verdict;
        Some(Report::Health { healthy, output })
    }
}

impl Check {
    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        // One that never stops writing is not listened to for ever at once.
        for _ in 0..16 {
            let Some(output) = &mut self.output else { return };
            match output.read(&mut buffer) {
                Ok(length @ 1..) => {
                    self.tail.extend_from_slice(buffer.get(..length).unwrap_or_default());
                    let surplus = self.tail.len().saturating_sub(MOST);
                    self.tail.drain(..surplus);
                }
                // Closed, which it would go on to say for ever.
                Ok(_) => self.output = None,
                Err(_) => return,
            }
        }
    }

    fn kill(&self) {
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(start_period_seconds: u32, retries: u32, now: Instant) -> Health {
        let rules = HealthCheck {
            command: vec!["/check".into()],
            interval_seconds: 5,
            timeout_seconds: 2,
            start_period_seconds,
            retries,
        };
        let plan = Plan {
            program: "/check".into(),
            arguments: vec!["/check".into()],
            env: Default::default(),
            workdir: "/".into(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            terminal: "/dev/null".into(),
            heard: true,
        };
        Health::new(rules, plan, now)
    }

    fn told(report: Option<Report>) -> Option<bool> {
        match report {
            Some(Report::Health { healthy, .. }) => Some(healthy),
            None => None,
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_news_is_told_and_only_failures_in_a_row_are_unhealthy() {
        let now = Instant::now();
        let mut health = health(0, 2, now);
        let mut judge = |success| told(health.judge(success, String::new(), now));
        let said = [false, true, true, false, true, false, false, false, true].map(&mut judge);
        assert_eq!(said, [None, Some(true), None, None, None, None, Some(false), None, Some(true)]);
    }

    #[test]
    fn failures_of_the_start_period_do_not_count_unless_it_was_healthy_before() {
        let now = Instant::now();
        let mut early = health(60, 1, now);
        assert_eq!(told(early.judge(false, String::new(), now)), None);
        assert_eq!(early.due(), Some(now + EAGER));
        assert_eq!(told(early.judge(true, String::new(), now)), Some(true));
        assert_eq!(told(early.judge(false, String::new(), now)), Some(false));
        let mut late = health(60, 1, now);
        assert_eq!(told(late.judge(false, String::new(), now + seconds(60))), Some(false));
        assert_eq!(late.due(), Some(now + seconds(65)));
    }
}
