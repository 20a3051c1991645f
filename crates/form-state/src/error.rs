//! What the registry refuses, and how that looks from outside: one table for REST and gRPC.

use form_service::Problem;
use form_service::problem::FieldProblem;
use form_types::Invalid;
use form_types::v1::Key;
use http::StatusCode;
use tonic::{Code, Status};

use crate::registry::JoinError;
use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no {}", show(.0))]
    NotFound(Key),
    #[error("{} exists already", show(.0))]
    AlreadyExists(Key),
    #[error("{} was changed since: it is at revision {current}, and you gave {given}; get it again and repeat your change", show(.key))]
    Conflict { key: Key, given: u64, current: u64 },
    #[error("{} is another one than you meant: its uid is {current}, and you gave {given}", show(.key))]
    OtherUid { key: Key, given: String, current: String },
    #[error("{} is being deleted", show(.0))]
    BeingDeleted(Key),
    #[error("{}", text(.0))]
    Invalid(#[from] Invalid),
    #[error("{what} {value} belongs to {owner} already")]
    Taken { what: &'static str, value: String, owner: String },
    #[error("{} still holds {holds}; delete that first", show(.key))]
    NotEmpty { key: Key, holds: String },
    #[error("{0}")]
    Unauthenticated(&'static str),
    #[error("{0}")]
    Denied(String),
    #[error("many others changed {} at the same time; try again", show(.0))]
    Contended(Key),
    #[error("all prefixes of the cluster's address range are given to nodes")]
    NoPrefixLeft,
    #[error("all addresses for peers are given; revoke a peer that is not needed: form net peer revoke")]
    NoAddressLeft,
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("the log does not reach back to revision {asked} any more: list, and watch from the list's revision")]
    Compacted { asked: u64 },
    #[error("the store's disk is full: nothing was changed; free some space and try again")]
    Full,
    #[error("too many writes are waiting: nothing was changed; try again soon")]
    Busy,
    #[error("there is no lease {0}; it ended, or never was")]
    NoLease(u64),
    #[error("the store failed")]
    Store(#[source] StoreError),
    #[error("what is stored under {key} cannot be decoded")]
    Decode { key: String, source: prost::DecodeError },
}

impl Error {
    /// The HTTP status, the problem's stable name, and the gRPC code.
    fn row(&self) -> (StatusCode, &'static str, Code) {
        match self {
            Error::NotFound(_) => (StatusCode::NOT_FOUND, "not-found", Code::NotFound),
            Error::NoLease(_) => (StatusCode::NOT_FOUND, "no-such-lease", Code::NotFound),
            Error::AlreadyExists(_) => (StatusCode::CONFLICT, "already-exists", Code::AlreadyExists),
            Error::Conflict { .. } => (StatusCode::PRECONDITION_FAILED, "revision-conflict", Code::FailedPrecondition),
            Error::OtherUid { .. } => (StatusCode::PRECONDITION_FAILED, "other-uid", Code::FailedPrecondition),
            Error::BeingDeleted(_) => (StatusCode::CONFLICT, "being-deleted", Code::FailedPrecondition),
            Error::Taken { .. } => (StatusCode::CONFLICT, "taken", Code::AlreadyExists),
            Error::NotEmpty { .. } => (StatusCode::CONFLICT, "not-empty", Code::FailedPrecondition),
            Error::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", Code::InvalidArgument),
            Error::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, "unauthenticated", Code::Unauthenticated),
            Error::Denied(_) => (StatusCode::FORBIDDEN, "forbidden", Code::PermissionDenied),
            Error::Contended(_) => (StatusCode::SERVICE_UNAVAILABLE, "contended", Code::Aborted),
            Error::NoPrefixLeft => (StatusCode::CONFLICT, "no-prefix-left", Code::ResourceExhausted),
            Error::NoAddressLeft => (StatusCode::CONFLICT, "no-address-left", Code::ResourceExhausted),
            Error::Join(why) => match why {
                JoinError::Unknown => (StatusCode::UNAUTHORIZED, "join-token-unknown", Code::Unauthenticated),
                JoinError::Expired => (StatusCode::UNAUTHORIZED, "join-token-expired", Code::Unauthenticated),
                JoinError::Used(_) => (StatusCode::FORBIDDEN, "join-token-used", Code::PermissionDenied),
                JoinError::OtherNode(_) => (StatusCode::FORBIDDEN, "join-token-of-another", Code::PermissionDenied),
                JoinError::Removed(_) => (StatusCode::FORBIDDEN, "join-token-of-removed", Code::PermissionDenied),
                JoinError::NoAuthority => (StatusCode::NOT_IMPLEMENTED, "no-authority", Code::FailedPrecondition),
            },
            Error::Compacted { .. } => (StatusCode::GONE, "compacted", Code::OutOfRange),
            Error::Full => (StatusCode::INSUFFICIENT_STORAGE, "disk-full", Code::ResourceExhausted),
            Error::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", Code::Unavailable),
            Error::Store(_) | Error::Decode { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "internal", Code::Internal),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { asked, .. } => Error::Compacted { asked },
            StoreError::Future { asked, current } => Error::Invalid(Invalid::at(
                "after_revision",
                format!("{asked} is in the future; the last is {current}"),
            )),
            StoreError::Full => Error::Full,
            StoreError::Busy => Error::Busy,
            StoreError::NoLease(lease) => Error::NoLease(lease),
            other => Error::Store(other),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (status, kind, _) = error.row();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = form_service::run::chain(&error), "a request failed");
            return Problem::internal();
        }
        let mut problem = Problem::new(status, kind, error.to_string());
        if let Error::Invalid(invalid) = error {
            let fields = invalid.violations.into_iter();
            problem.errors = fields.map(|field| FieldProblem { path: field.path, detail: field.what }).collect();
        }
        problem
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (_, _, code) = error.row();
        if code == Code::Internal {
            tracing::error!(error = form_service::run::chain(&error), "a request failed");
            return Status::internal("something went wrong on our side; the log says more");
        }
        Status::new(code, error.to_string())
    }
}

/// `Instance default/web`, `Node one`.
pub(crate) fn show(key: &Key) -> String {
    if key.project.is_empty() {
        format!("{} {}", key.kind, key.name)
    } else {
        format!("{} {}/{}", key.kind, key.project, key.name)
    }
}

fn text(invalid: &Invalid) -> String {
    invalid.to_string()
}
