//! The one thread that writes. What it has committed, [`sync`] makes durable.

use std::collections::HashMap;
use std::fs::File;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{mpsc, oneshot};

use super::schema::{POSITIONS, State, after, place, signed, unsigned};
use super::sync::{self, Written};
use super::{Shared, SqliteOptions};
use crate::store::{Change, Compare, LeaseId, Op, Outcome, StoreError, Txn};

/// Writes that may wait; past it they are refused as `Busy`.
const QUEUE: usize = 4096;
/// Transactions that share one sync of the disk.
const GROUP: usize = 512;
/// Groups that may wait for the disk to sync the ones before; with more, the writer waits.
const UNSYNCED: usize = 4;
/// How often the writer lets others run, to see whether they join its group.
const GATHERINGS: usize = 4;
/// Rows of the log that compaction deletes at a time, so that no write waits for long behind it.
const COMPACT_ROWS: i64 = 256;

/// How long a writer that failed waits before it goes on with its own chores.
const AILING: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Request {
    Commit { txn: Txn, reply: Reply<Outcome> },
    Compact { revision: u64, reply: Reply<()> },
    Grant { ttl: Duration, reply: Reply<LeaseId> },
    KeepAlive { lease: LeaseId, reply: Reply<Duration> },
    Revoke { lease: LeaseId, reply: Reply<()> },
}

/// Answers a request, once it is known whether its group is on disk.
pub(super) type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

pub(super) type Answer = (Finish, Result<(), StoreError>);

pub(super) struct Writer {
    requests: Option<SyncSender<Request>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        wal: File,
        state: State,
        options: SqliteOptions,
        shared: Arc<Shared>,
    ) -> Result<Self, StoreError> {
        let (requests, queue) = sync_channel(QUEUE);
        let (written, unsynced) = sync_channel(UNSYNCED);
        // Holds no more than the queue of requests lets through.
        let (answers, known) = mpsc::unbounded_channel();
        tokio::runtime::Handle::current().spawn(answer(known));
        let sync = {
            let (shared, answers) = (Arc::clone(&shared), answers.clone());
            spawn("store-sync", move || sync::run(&wal, &unsynced, &shared, &answers))?
        };
        let leases = stored_leases(&connection)?;
        let thread = Thread {
            connection,
            state,
            committed: state,
            options,
            shared,
            leases,
            written,
            answers,
            fresh: Vec::new(),
            soonest: Some(Instant::now()),
            trim_to: state.compacted,
            trimmed: 0,
            ailing: false,
        };
        let write = spawn("store-writer", move || thread.run(&queue))?;
        Ok(Self { requests: Some(requests), threads: Mutex::new(vec![write, sync]) })
    }

    pub(super) fn send(&self, request: Request) -> Result<(), StoreError> {
        let requests = self.requests.as_ref().ok_or(StoreError::Stopped)?;
        requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Stopped,
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Closes the queue; the threads end after what is in it.
        self.requests = None;
        for thread in self.threads.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|error| StoreError::Engine(error.into()))
}

/// Answers whole groups, from within the runtime: who waits is then woken here, without a call to the kernel each, and
/// a connection with several of them sends their answers in one piece.
async fn answer(mut known: mpsc::UnboundedReceiver<Vec<Answer>>) {
    while let Some(group) = known.recv().await {
        group.into_iter().for_each(|(finish, result)| finish(result));
    }
}

struct Lease {
    ttl: Duration,
    ends: Instant,
}

impl Lease {
    fn new(ttl: Duration, now: Instant) -> Self {
        Self { ttl, ends: now + ttl }
    }
}

struct Thread {
    connection: Connection,
    /// The counters with the group that is being written.
    state: State,
    /// The counters as they were last committed.
    committed: State,
    options: SqliteOptions,
    shared: Arc<Shared>,
    written: SyncSender<Written>,
    answers: mpsc::UnboundedSender<Vec<Answer>>,
    leases: HashMap<LeaseId, Lease>,
    /// No lease ends before this; `None`: there is none. So that not every write looks at every lease.
    soonest: Option<Instant>,
    /// The changes of the group that is being written.
    fresh: Vec<Arc<Change>>,
    /// Rows of the log up to here are to be deleted, and are.
    trim_to: u64,
    trimmed: u64,
    /// The last group failed: what nobody asked for is not tried at once again.
    ailing: bool,
}

impl Thread {
    fn run(mut self, queue: &Receiver<Request>) {
        loop {
            let mut group = Vec::new();
            match queue.recv_timeout(self.idle_time()) {
                Ok(first) => group.push(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // A sync costs the same for one as for many: who is about to ask gets the processor first. Where nobody
            // is, this takes a microsecond.
            for _ in 0..GATHERINGS {
                std::thread::yield_now();
                let before = group.len();
                group.extend(queue.try_iter().take(GROUP - before));
                if group.len() == before {
                    break;
                }
            }
            self.write(group);
        }
    }

    /// Until there is something to do without being asked.
    fn idle_time(&self) -> Duration {
        if self.ailing {
            return AILING;
        }
        if self.trim_to > self.trimmed {
            return Duration::ZERO;
        }
        self.soonest.map_or(Duration::from_secs(60), |ends| ends.saturating_duration_since(Instant::now()))
    }

    /// Carries out a group, to be synced at once and then answered. Where a part of it fails, all of it has failed.
    fn write(&mut self, group: Vec<Request>) {
        let started = Instant::now();
        let mut failed = self.connection.execute_batch("BEGIN IMMEDIATE").map_err(StoreError::from).err();
        let finish: Vec<Finish> = group.into_iter().map(|request| self.carry_out(request, &mut failed)).collect();
        if failed.is_none() {
            failed = self.housekeeping().and_then(|()| self.end_group()).err();
        }
        self.ailing = failed.is_some();
        match failed {
            None => {
                let wrote = self.state != self.committed;
                self.committed = self.state;
                let (changes, revision) = (std::mem::take(&mut self.fresh), self.state.revision);
                // The other thread ends after this one.
                let _ = self.written.send(Written { started, finish, changes, revision, wrote });
            }
            Some(error) => {
                tracing::error!(%error, "a group of writes failed and was taken back");
                let _ = self.connection.execute_batch("ROLLBACK");
                self.state = self.committed;
                self.fresh.clear();
                // Rows that were counted as trimmed are there again.
                self.trimmed = 0;
                if let Ok(leases) = stored_leases(&self.connection) {
                    self.leases = leases;
                    self.soonest = Some(Instant::now());
                }
                if matches!(error, StoreError::Full) {
                    self.make_room();
                }
                self.answer(finish.into_iter().map(|finish| (finish, Err(error.again()))).collect());
            }
        }
    }

    /// Gives up the log, so that what is current can still be changed: even a deletion has to be written first.
    fn make_room(&mut self) {
        self.compact(self.committed.revision);
        // Readers that are in the middle of a page keep it from being whole; the next failure tries again.
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }

    fn answer(&self, group: Vec<Answer>) {
        // The runtime is gone, and whoever waited with it.
        let _ = self.answers.send(group);
    }

    fn carry_out(&mut self, request: Request, failed: &mut Option<StoreError>) -> Finish {
        match request {
            Request::Commit { txn, reply } => step(failed, reply, || self.commit(txn)),
            Request::Compact { revision, reply } => step(failed, reply, || {
                if revision > self.state.revision {
                    return Ok(Err(StoreError::Future { asked: revision, current: self.state.revision }));
                }
                self.compact(revision);
                Ok(Ok(()))
            }),
            Request::Grant { ttl, reply } => step(failed, reply, || self.grant(ttl).map(Ok)),
            Request::KeepAlive { lease, reply } => step(failed, reply, || {
                let found = self.leases.get_mut(&lease).map(|lease| {
                    *lease = Lease::new(lease.ttl, Instant::now());
                    lease.ttl
                });
                Ok(found.ok_or(StoreError::NoLease(lease)))
            }),
            Request::Revoke { lease, reply } => step(failed, reply, || match self.leases.remove(&lease) {
                Some(_) => self.end_lease(lease).map(Ok),
                None => Ok(Err(StoreError::NoLease(lease))),
            }),
        }
    }

    fn commit(&mut self, txn: Txn) -> Result<Result<Outcome, StoreError>, StoreError> {
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.leases.contains_key(lease)
            {
                return Ok(Err(StoreError::NoLease(*lease)));
            }
        }
        for (index, compare) in txn.compares.iter().enumerate() {
            if !self.holds(compare)? {
                return Ok(Ok(Outcome::Conflict { compare: index }));
            }
        }
        self.change(txn.ops)?;
        Ok(Ok(Outcome::Committed { revision: self.state.revision }))
    }

    fn holds(&self, compare: &Compare) -> Result<bool, StoreError> {
        let (Compare::Absent(key) | Compare::Exists(key) | Compare::Revision(key, _)) = compare;
        let mut statement = self.connection.prepare_cached("SELECT revision FROM entry WHERE key = ?1")?;
        let found: Option<i64> = statement.query_row([key], |row| row.get(0)).optional()?;
        Ok(match compare {
            Compare::Absent(_) => found.is_none(),
            Compare::Exists(_) => found.is_some(),
            Compare::Revision(_, wanted) => found.map(unsigned) == Some(*wanted),
        })
    }

    /// Carries out `ops` as the next revision; where they change nothing, there is none.
    fn change(&mut self, ops: Vec<Op>) -> Result<(), StoreError> {
        let revision = self.state.revision + 1;
        let mut changed = 0;
        for op in ops {
            let (key, value, previous) = match op {
                Op::Put { key, value, lease } => {
                    self.connection
                        .prepare_cached(
                            "INSERT OR REPLACE INTO entry (key, value, revision, lease) VALUES (?1, ?2, ?3, ?4)",
                        )?
                        .execute(params![key, &value[..], signed(revision), lease.map(signed)])?;
                    (key, Some(value), None)
                }
                Op::Replace { key, value } => {
                    let before: Option<Vec<u8>> = self
                        .connection
                        .prepare_cached("SELECT value FROM entry WHERE key = ?1")?
                        .query_row([&key], |row| row.get(0))
                        .optional()?;
                    self.connection
                        .prepare_cached("INSERT OR REPLACE INTO entry (key, value, revision) VALUES (?1, ?2, ?3)")?
                        .execute(params![key, &value[..], signed(revision)])?;
                    (key, Some(value), before.map(Bytes::from))
                }
                Op::Delete { key } => {
                    let gone: Option<Vec<u8>> = self
                        .connection
                        .prepare_cached("DELETE FROM entry WHERE key = ?1 RETURNING value")?
                        .query_row([&key], |row| row.get(0))
                        .optional()?;
                    let Some(gone) = gone else { continue };
                    (key, None, Some(Bytes::from(gone)))
                }
            };
            self.connection
                .prepare_cached("INSERT INTO change (id, key, value, previous) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![place(revision, changed), key, value.as_deref(), previous.as_deref()])?;
            changed += 1;
            self.fresh.push(Arc::new(Change { revision, key, value, previous }));
        }
        if changed > 0 {
            self.state.revision = revision;
        }
        Ok(())
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let id = self.state.lease + 1;
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        self.connection
            .prepare_cached("INSERT INTO lease (id, ttl_ms) VALUES (?1, ?2)")?
            .execute([signed(id), ttl_ms])?;
        self.state.lease = id;
        let lease = Lease::new(ttl, Instant::now());
        self.soonest = Some(self.soonest.map_or(lease.ends, |soonest| soonest.min(lease.ends)));
        self.leases.insert(id, lease);
        Ok(id)
    }

    fn end_lease(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT key FROM entry WHERE lease = ?1 ORDER BY key")?;
        let keys = statement.query_map([signed(lease)], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
        drop(statement);
        let mut deletions = keys.into_iter().map(|key| Op::Delete { key }).peekable();
        while deletions.peek().is_some() {
            self.change(deletions.by_ref().take(POSITIONS).collect())?;
        }
        self.connection.prepare_cached("DELETE FROM lease WHERE id = ?1")?.execute([signed(lease)])?;
        Ok(())
    }

    /// Ends the leases whose time is over, and drops a little of the log where it is too long.
    fn housekeeping(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        if self.soonest.is_some_and(|soonest| soonest <= now) {
            let over = self.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id);
            for lease in over.collect::<Vec<LeaseId>>() {
                self.leases.remove(&lease);
                self.end_lease(lease)?;
            }
            self.soonest = self.leases.values().map(|lease| lease.ends).min();
        }
        let wanted = self.state.revision.saturating_sub(self.options.history);
        // In steps, so that the counter is not written with each commit.
        if wanted > self.state.compacted + self.options.history / 10 {
            self.compact(wanted);
        }
        if self.trim_to > self.trimmed {
            let deleted = self
                .connection
                .prepare_cached(
                    "DELETE FROM change WHERE id IN (SELECT id FROM change WHERE id < ?1 ORDER BY id LIMIT ?2)",
                )?
                .execute([after(self.trim_to), COMPACT_ROWS])?;
            if (deleted as i64) < COMPACT_ROWS {
                self.trimmed = self.trim_to;
            }
        }
        Ok(())
    }

    fn compact(&mut self, revision: u64) {
        self.state.compacted = self.state.compacted.max(revision);
        // Before the rows go: a watcher that misses rows must be able to know why. Told too early, it only lists again.
        self.shared.compacted.send_if_modified(|compacted| {
            *compacted < revision && {
                *compacted = revision;
                true
            }
        });
        self.trim_to = self.trim_to.max(revision);
    }

    fn end_group(&mut self) -> Result<(), StoreError> {
        for (name, old, new) in [
            ("revision", self.committed.revision, self.state.revision),
            ("compacted", self.committed.compacted, self.state.compacted),
            ("lease", self.committed.lease, self.state.lease),
        ] {
            if new != old {
                self.connection
                    .prepare_cached("UPDATE counter SET value = ?2 WHERE name = ?1")?
                    .execute(params![name, signed(new)])?;
            }
        }
        Ok(self.connection.execute_batch("COMMIT")?)
    }
}

/// Does one request's work, unless the group has failed already. The outer error of `work` fails the whole group, the
/// inner one is for the asker alone.
fn step<T: Send + 'static>(
    failed: &mut Option<StoreError>,
    reply: Reply<T>,
    work: impl FnOnce() -> Result<Result<T, StoreError>, StoreError>,
) -> Finish {
    let answer = if failed.is_some() { Ok(Err(StoreError::Stopped)) } else { work() };
    let answer = answer.unwrap_or_else(|error| {
        *failed = Some(error);
        Err(StoreError::Stopped)
    });
    // The asker may have gone; its write stands all the same.
    Box::new(move |group| drop(reply.send(group.and(answer))))
}

fn stored_leases(connection: &Connection) -> Result<HashMap<LeaseId, Lease>, StoreError> {
    let now = Instant::now();
    let mut statement = connection.prepare_cached("SELECT id, ttl_ms FROM lease")?;
    let rows = statement.query_map([], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))))?;
    let lease = |(id, ttl): (u64, u64)| (id, Lease::new(Duration::from_millis(ttl), now));
    Ok(rows.map(|row| row.map(lease)).collect::<Result<_, _>>()?)
}

impl StoreError {
    /// The same for each of many askers.
    fn again(&self) -> Self {
        match self {
            StoreError::Full => StoreError::Full,
            other => StoreError::Engine(other.to_string().into()),
        }
    }
}
