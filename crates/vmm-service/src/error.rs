use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a virtual machine. The message says what was attempted; the source, why it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory.
    #[error("cannot {action} {}", path.display())]
    File {
        /// A verb.
        action: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused something that is no file.
    #[error("cannot {action}")]
    System {
        /// A verb with its object.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file of ours has content that is not ours.
    #[error("{} is damaged; restore it, or delete the instance", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Another process has the instance's directory.
    #[error("another daemon drives the instance in {}; stop one of the two", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// There is no such instance, or it is on its way out.
    #[error("there is no instance {uid}")]
    NotFound {
        /// The identifier that was asked for.
        uid: String,
    },
    /// The spec cannot be obeyed on any machine.
    #[error("{field}: {reason}")]
    InvalidSpec {
        /// The spec's field.
        field: &'static str,
        /// What is wrong with it, and what it should be.
        reason: &'static str,
    },
    /// The guest's configuration does not make a config drive.
    #[error("the guest's configuration does not make a config drive")]
    Drive(#[from] form_guest::DriveError),
    /// A program that we run failed.
    #[error("{program} failed: {message}")]
    Tool {
        /// The program.
        program: &'static str,
        /// Its last words.
        message: String,
    },
    /// QEMU ended, or went silent, before it could be spoken to.
    #[error("QEMU did not start: {message}")]
    Start {
        /// Its last words.
        message: String,
    },
    /// QEMU lives (it holds its lock) and does not answer.
    #[error("a virtual machine runs in {} and does not answer; look at qemu.log there, and end its process", path.display())]
    Silent {
        /// The instance's directory.
        path: PathBuf,
    },
    /// QEMU refused a command.
    #[error("QEMU did not obey {command}")]
    Qmp {
        /// The QMP command.
        command: &'static str,
        /// Its answer.
        source: qapi::ExecuteError,
    },
    /// As many machines as there are users for them.
    #[error("the users {first} to {last} all have a machine; give more with machine_uids")]
    NoUser {
        /// The first of the range.
        first: u32,
        /// And its last.
        last: u32,
    },
    /// A network card of the machine has no other end.
    #[error("there is no tap {name}; formnet makes it")]
    NoTap {
        /// The tap.
        name: String,
    },
}

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// For `map_err`: what was attempted with which file.
pub(crate) fn file<E: Into<io::Error>>(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(E) -> Error {
    move |source| Error::File { action, path: path.as_ref().to_owned(), source: source.into() }
}

/// For `map_err`: what was attempted with the kernel.
pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::System { action, source: source.into() }
}
