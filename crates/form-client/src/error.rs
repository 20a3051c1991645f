//! What a call can come back with.

use tonic::{Code, Status};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    AlreadyExists(String),
    /// Changed since it was read: read again.
    #[error("{0}")]
    Conflict(String),
    /// A watch whose place in the log is gone: list again.
    #[error("{0}")]
    Compacted(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    Unauthenticated(String),
    /// Not now: not reachable, overloaded, full. Worth trying again.
    #[error("form-state cannot answer now: {0}")]
    Unavailable(String),
    #[error("form-state: {0}")]
    Other(String),
    #[error("form-state answered with what this version cannot read")]
    Decode(#[from] form_types::ObjectError),
    #[error("the connection to form-state cannot be set up")]
    Setup(#[from] tonic::transport::Error),
}

impl Error {
    /// Whether the same call may go through later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Error::Unavailable(_))
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::NotFound => Error::NotFound(text),
            Code::AlreadyExists => Error::AlreadyExists(text),
            Code::FailedPrecondition => Error::Conflict(text),
            Code::OutOfRange => Error::Compacted(text),
            Code::InvalidArgument => Error::Invalid(text),
            Code::PermissionDenied => Error::Denied(text),
            Code::Unauthenticated => Error::Unauthenticated(text),
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled => {
                Error::Unavailable(text)
            }
            // What tonic makes of a connection that broke under a call.
            Code::Unknown if text.contains("transport") || text.contains("h2 protocol") => Error::Unavailable(text),
            code => Error::Other(format!("{code}: {text}")),
        }
    }
}
