use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a node's network. The message says what was attempted; the source, why it failed.
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
    /// The kernel refused something that is neither file nor interface.
    #[error("cannot {action}")]
    System {
        /// A verb with its object.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel's network.
    #[error("cannot {action} {name}")]
    Network {
        /// A verb.
        action: &'static str,
        /// Of which interface or route.
        name: String,
        /// Why.
        source: rtnetlink::Error,
    },
    /// An interface of ours has a name that something else has.
    #[error("the interface {name} exists and is not ours; rename or delete it")]
    NameTaken {
        /// The interface.
        name: String,
    },
    /// The interface that another one is to be attached to, or a route to lead to, is not there.
    #[error("there is no interface {name}; create it first")]
    NoInterface {
        /// The interface.
        name: String,
    },
    /// A route to the same place, made by someone else.
    #[error("there is a route to {to} already, {owner}; delete it, or give the cluster another range")]
    RouteTaken {
        /// Its destination.
        to: String,
        /// Who made it, as far as the kernel knows, and where it leads.
        owner: String,
    },
    /// Something that is no WireGuard key.
    #[error("{what} is no WireGuard key; one is 32 bytes in base64")]
    Key {
        /// Where it was found.
        what: String,
    },
    /// The file of a key.
    #[error(transparent)]
    Secret(#[from] form_service::secret::SecretError),
    /// A WireGuard interface did not obey.
    #[error("cannot {action} {interface}")]
    Tunnel {
        /// A verb with its object.
        action: &'static str,
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel's own WireGuard did not obey.
    #[error("cannot {action} {interface}")]
    WireGuard {
        /// A verb with its object.
        action: &'static str,
        /// The interface.
        interface: String,
        /// Why.
        source: defguard_wireguard_rs::error::WireguardInterfaceError,
    },
    /// The process that moves the packets of a userspace tunnel did not start.
    #[error("the tunnel of {interface} did not start: {message}")]
    Helper {
        /// The interface.
        interface: String,
        /// Its last words.
        message: String,
    },
    /// nft refused, or could not be run.
    #[error("nft cannot {action}: {message}")]
    Nft {
        /// A verb with its object.
        action: &'static str,
        /// Its last words.
        message: String,
    },
    /// Ranges that rules cannot be made of.
    #[error("{what} must be one IPv4 and one IPv6 prefix, IPv4 first")]
    Ranges {
        /// Which.
        what: &'static str,
    },
    /// The task that talks to the kernel has ended.
    #[error("formnet is stopping")]
    Stopped,
    /// A name that is no name of an interface.
    #[error("{name:?} is no name of an interface: at most 15 letters, digits, dots and dashes")]
    Name {
        /// The name.
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

/// For `map_err`: what was attempted with which interface or route.
pub(crate) fn network(action: &'static str, name: impl ToString) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |source| Error::Network { action, name: name.to_string(), source }
}
