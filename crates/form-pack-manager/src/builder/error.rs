use std::io;

use form_sandbox::Outcome;
use formfile::{Diagnostic, Fault, Span};

use crate::layer::LayerError;
use crate::rootfs::RootfsError;
use crate::store::StoreError;
use crate::workshop::WorkshopError;

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Formfile asks for what cannot be.
    #[error("{0}")]
    Formfile(Fault),
    /// A command of a step did not end well.
    #[error("{text}: {}", ending(outcome))]
    Step {
        /// The step, as the Formfile has it.
        text: String,
        outcome: Outcome,
    },
    #[error("there is no stage {0:?} in the Formfile; name one that stands after an AS, or its number from 0")]
    NoStage(String),
    #[error("cancelled")]
    Stopped,
    #[error("it took longer than its timeout; give it more with `timeout_seconds`, or do less")]
    TimedOut,
    /// A base cannot be had.
    #[error("{text}")]
    Base {
        text: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("the package has neither ENTRYPOINT nor CMD, so nothing would start; add one")]
    NothingToStart,
    /// The entrypoint cannot be started.
    #[error("ENTRYPOINT `{program}` {what}")]
    Entrypoint {
        /// The program, as the Formfile has it.
        program: String,
        /// What is wrong with it.
        what: &'static str,
    },
    #[error("the package has more than {most} {what}; leave some out")]
    TooMany { most: usize, what: &'static str },
    #[error("cannot use the scratch directory")]
    Scratch(#[source] io::Error),
    #[error("cannot write the layer")]
    WriteLayer(#[source] io::Error),
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The root disk cannot be made.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The root disk cannot be compressed into the store.
    #[error("cannot compress the root disk into the store")]
    Compress(#[source] io::Error),
    /// The OCI documents cannot be made.
    #[error("cannot describe the package as an OCI image")]
    Oci(#[from] serde_json::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Workshop(#[from] WorkshopError),
}

impl BuildError {
    pub(super) fn at(span: Span, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Formfile(Fault::new(span, message, hint))
    }

    /// In words for who wrote the Formfile, which is called `name` and reads `text`.
    pub fn words(self, name: &str, text: &[u8]) -> String {
        match self {
            Self::Formfile(fault) => Diagnostic::new(name, text, fault).plain(),
            other => form_service::run::chain(&other),
        }
    }
}

impl From<Fault> for BuildError {
    fn from(fault: Fault) -> Self {
        Self::Formfile(fault)
    }
}

impl From<form_sandbox::Error> for BuildError {
    fn from(error: form_sandbox::Error) -> Self {
        Self::Workshop(error.into())
    }
}

fn ending(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exited(code) => format!("exit code {code}"),
        Outcome::Killed(signal) => format!("killed by signal {signal}"),
        Outcome::NotStarted(why) => format!("its program cannot be started in the package: {why}"),
        Outcome::Stopped => "cancelled".to_owned(),
        Outcome::TimedOut => "timed out".to_owned(),
    }
}
