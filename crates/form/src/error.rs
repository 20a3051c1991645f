//! What a command can end with, and its exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use form_service::Problem;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command, or a file that it was given, is wrong.
    #[error("{0}")]
    Usage(String),
    #[error("{}", .path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("no cloud is known here; start one with `form up`, or name a context file with --context or FORM_CONTEXT")]
    NoContext,
    #[error("{}", problem(.0))]
    Refused(Problem),
    #[error("the cloud cannot be reached at {url}; is `form up` running?")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("what came back cannot be read: {0}")]
    Answer(String),
    #[error("{0}")]
    Failed(String),
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::File { path, source }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Error::Failed(_) | Error::Answer(_) => 1,
            Error::Usage(_) | Error::File { .. } => 2,
            Error::NoContext | Error::Unreachable { .. } => 6,
            Error::Refused(problem) => match problem.status {
                400 | 413 | 422 => 2,
                404 => 3,
                409 | 412 => 4,
                401 | 403 => 5,
                503 | 504 | 507 => 6,
                _ => 1,
            },
        })
    }
}

fn problem(problem: &Problem) -> String {
    if problem.detail.is_empty() { problem.title.clone() } else { problem.detail.clone() }
}
