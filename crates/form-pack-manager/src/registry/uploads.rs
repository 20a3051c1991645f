//! Blobs on their way in.
//!
//! ```text
//!   POST ──▶ free ◀──the body has come, or broke off── busy ──its digest is right──▶ a blob
//!             │ └────────PATCH, PUT───────────────────▶  │
//!             └──DELETE, or nobody came for long──▶ gone ◀┴──wrong digest or length, too large, the disk fails
//! ```
//!
//! An upload is an unnamed file of this process: it ends with it, and a client begins anew, as it does where an upload
//! was given up for its age. What was received before a connection broke is kept, and can be gone on from.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use form_rootfs::{Algorithm, Digest};
use futures::StreamExt as _;
use http::{StatusCode, header};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Error;
use super::name::Repository;
use crate::store::{BlobInfo, BlobStore as _, BlobWriter, DirStore, StoreError};

/// What is gathered before a thread is asked to hash and write it, bytes. A hundred uploads hold twice that each.
const BATCH: usize = 128 << 10;

/// What uploads may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The most bytes of a blob.
    pub(crate) blob_bytes: u64,
    /// How long a body may pause.
    pub(crate) idle: Duration,
    /// How long an upload waits for its next request.
    pub(crate) abandoned: Duration,
    /// Uploads of a project at the same time.
    pub(crate) per_project: usize,
    /// Whether a manifest may name what is not here.
    pub(crate) sparse: bool,
}

/// What has come of a blob.
pub(super) struct Upload {
    algorithm: Algorithm,
    /// There is none before the first byte: by then its digest may be known.
    writer: Option<Box<dyn BlobWriter>>,
    pub(super) size: u64,
}

pub(super) struct Uploads {
    limits: Limits,
    sessions: Mutex<HashMap<Uuid, Session>>,
}

struct Session {
    repository: Repository,
    size: u64,
    since: Instant,
    /// `None`: busy.
    upload: Option<Upload>,
}

impl Upload {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, writer: None, size: 0 }
    }

    /// What is written from here on is best hashed for `digest`.
    pub(super) fn expect(&mut self, digest: &Digest) {
        self.algorithm = digest.algorithm();
    }

    /// Takes `body`, which has `length` bytes where that is known. The upload is gone where it cannot go on.
    pub(super) async fn receive(
        mut self,
        store: &DirStore,
        body: Body,
        length: Option<u64>,
        limits: Limits,
    ) -> (Option<Self>, Result<(), Error>) {
        let most = limits.blob_bytes.saturating_sub(self.size).min(length.unwrap_or(u64::MAX));
        let mut body = body.into_data_stream();
        let mut received = 0_u64;
        let mut writing: Option<JoinHandle<Result<Box<dyn BlobWriter>, StoreError>>> = None;
        let mut broken = None;
        loop {
            let (mut batch, mut gathered) = (Vec::new(), 0);
            while gathered < BATCH && broken.is_none() {
                match tokio::time::timeout(limits.idle, body.next()).await {
                    Ok(Some(Ok(bytes))) => {
                        gathered = gathered.saturating_add(bytes.len());
                        batch.push(bytes);
                    }
                    Ok(Some(Err(_))) => {
                        let text = "the body ended before its Content-Length; ask where to go on, and send the rest";
                        broken = Some(Err(Error::bad("SIZE_INVALID", text)));
                    }
                    Ok(None) => broken = Some(Ok(())),
                    Err(_) => {
                        let text = "nothing came for too long; ask where to go on, and send the rest";
                        broken = Some(Err(Error::new(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", text)));
                    }
                }
            }
            received = received.saturating_add(gathered as u64);
            if received > most {
                let error = match length {
                    Some(length) if received > length => Error::bad(
                        "SIZE_INVALID",
                        format!("the body has more than the {length} bytes of its Content-Range"),
                    ),
                    _ => Error::too_large("the blob", limits.blob_bytes),
                };
                return (None, Err(error));
            }
            // The batch before is written while this one was gathered.
            if let Some(writing) = writing.take() {
                match joined(writing.await) {
                    Ok(writer) => self.writer = Some(writer),
                    Err(error) => return (None, Err(error)),
                }
            }
            self.size = self.size.saturating_add(gathered as u64);
            metrics::counter!("form_registry_bytes_total", "direction" => "in").increment(gathered as u64);
            if !batch.is_empty() {
                let (store, writer, algorithm) = (store.clone(), self.writer.take(), self.algorithm);
                let task = tokio::task::spawn_blocking(move || write(&store, writer, algorithm, &batch));
                if broken.is_none() {
                    writing = Some(task);
                    continue;
                }
                match joined(task.await) {
                    Ok(writer) => self.writer = Some(writer),
                    Err(error) => return (None, Err(error)),
                }
            }
            let Some(end) = broken else { continue };
            // Fewer bytes than were announced where no Content-Length stood for them.
            if end.is_ok() && length.is_some_and(|length| received < length) {
                return (None, Err(Error::bad("SIZE_INVALID", "the body has fewer bytes than its Content-Range")));
            }
            return (Some(self), end);
        }
    }

    /// Makes it the blob `digest`, if it is that.
    pub(super) async fn commit(self, store: &DirStore, digest: Digest) -> Result<BlobInfo, Error> {
        let store = store.clone();
        let commit = tokio::task::spawn_blocking(move || {
            let writer = self.writer.map_or_else(|| store.writer_of(digest.algorithm()), Ok)?;
            writer.commit(Some(&digest))
        });
        joined(commit.await)
    }
}

fn write(
    store: &DirStore,
    writer: Option<Box<dyn BlobWriter>>,
    algorithm: Algorithm,
    batch: &[Bytes],
) -> Result<Box<dyn BlobWriter>, StoreError> {
    let mut writer = writer.map_or_else(|| store.writer_of(algorithm), Ok)?;
    batch.iter().try_for_each(|bytes| io::Write::write_all(&mut writer, bytes)).map_err(StoreError::Write)?;
    Ok(writer)
}

/// What a thread came back with.
pub(super) fn joined<T>(result: Result<Result<T, StoreError>, tokio::task::JoinError>) -> Result<T, Error> {
    Ok(result.map_err(|error| Error::internal(&error))??)
}

impl Uploads {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, sessions: Mutex::default() }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn start(&self, repository: &Repository, algorithm: Algorithm) -> Result<Uuid, Error> {
        let mut sessions = self.sessions();
        let own = sessions.values().filter(|session| session.repository.project() == repository.project()).count();
        if own >= self.limits.per_project {
            let text = format!("project {} has {own} uploads under way, which is the most", repository.project());
            let error = Error::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", text);
            return Err(error.with(header::RETRY_AFTER, "1"));
        }
        let id = Uuid::new_v4();
        let upload = Some(Upload::new(algorithm));
        sessions.insert(id, Session { repository: repository.clone(), size: 0, since: Instant::now(), upload });
        Ok(id)
    }

    /// How many bytes have come.
    pub(super) fn size(&self, repository: &Repository, id: Uuid) -> Result<u64, Error> {
        let sessions = self.sessions();
        let session = sessions.get(&id).filter(|session| session.repository == *repository);
        session.map(|session| session.size).ok_or_else(|| unknown(id))
    }

    /// Takes it for a request; [`Uploads::put_back`] ends that.
    pub(super) fn take(&self, repository: &Repository, id: Uuid) -> Result<Upload, Error> {
        let mut sessions = self.sessions();
        let session = sessions.get_mut(&id).filter(|session| session.repository == *repository);
        let session = session.ok_or_else(|| unknown(id))?;
        session.since = Instant::now();
        session.upload.take().ok_or_else(|| {
            let text = "another request of this upload is under way; ask where it is, and go on from there";
            out_of_order(text, repository, id, session.size)
        })
    }

    /// `None`: it is over.
    pub(super) fn put_back(&self, id: Uuid, upload: Option<Upload>) {
        let mut sessions = self.sessions();
        match (upload, sessions.get_mut(&id)) {
            (Some(upload), Some(session)) => {
                session.size = upload.size;
                session.since = Instant::now();
                session.upload = Some(upload);
            }
            // Cancelled meanwhile, or over: the file goes with the upload.
            _ => drop(sessions.remove(&id)),
        }
    }

    pub(super) fn cancel(&self, repository: &Repository, id: Uuid) -> Result<(), Error> {
        self.size(repository, id)?;
        self.sessions().remove(&id);
        Ok(())
    }

    /// Drops the uploads that nobody came back for; says how many.
    pub(super) fn expire(&self) -> usize {
        let mut sessions = self.sessions();
        let before = sessions.len();
        sessions.retain(|_, session| session.upload.is_none() || session.since.elapsed() < self.limits.abandoned);
        before.saturating_sub(sessions.len())
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<Uuid, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(id: Uuid) -> Error {
    Error::unknown("BLOB_UPLOAD_UNKNOWN", format!("there is no upload {id} here; begin anew"))
}

/// 416, with where the upload is.
pub(super) fn out_of_order(text: &str, repository: &Repository, id: Uuid, size: u64) -> Error {
    Error::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", text)
        .with(header::RANGE, &range(size))
        .with(header::LOCATION, &location(repository, id))
}

/// The first and the last byte that have come, as clients of all ages read it: also before the first, `0-0`.
pub(super) fn range(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

pub(super) fn location(repository: &Repository, id: Uuid) -> String {
    format!("/v2/{repository}/blobs/uploads/{id}")
}
