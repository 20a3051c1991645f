//! What a machine knows once it has joined a cluster.
//!
//! ```text
//!   DATA/identity/SERVICE/   key.pem, cert.pem, ca.pem
//!   DATA/joined.toml         written last: with it there, all of the above is
//! ```

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use form_client::Endpoint;
use form_service::file;
use form_service::identity::IdentityError;
use serde::{Deserialize, Serialize};

const FILE: &str = "joined.toml";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Joined {
    /// This machine's name as a node.
    pub(crate) node: String,
    pub(crate) state: Endpoint,
    /// This machine's, where form-state is reached from.
    pub(crate) address: IpAddr,
    /// The zone of the cluster's own names.
    pub(crate) zone: String,
    /// The JoinToken's name: who shows that one again has joined already.
    pub(crate) token: String,
}

/// Where the services' identities are.
pub(crate) fn identities(data_dir: &Path) -> PathBuf {
    data_dir.join("identity")
}

/// Whether this machine has joined.
///
/// # Errors
/// Where it began to and did not come to the end: to make a cloud of its own now would surprise whoever began.
pub(crate) fn is_there(data_dir: &Path) -> Result<bool, IdentityError> {
    if data_dir.join(FILE).exists() {
        return Ok(true);
    }
    let path = identities(data_dir);
    if path.exists() {
        let text = "a join was begun here and did not come to its end; `form node join` goes on with it, and without \
                    this directory it is forgotten";
        return Err(IdentityError::File { path, source: io::Error::other(text) });
    }
    Ok(false)
}

/// Makes the machine one that has not joined; its keys stay.
pub(crate) fn forget(data_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(data_dir.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => file::sync_directory(data_dir),
    }
}

impl Joined {
    /// `None`: this machine has not joined.
    ///
    /// # Errors
    /// With a sentence on what is wrong with the file.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<Self>, String> {
        let path = data_dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        toml::from_str(&text).map(Some).map_err(|error| format!("{}: {}", path.display(), error.message()))
    }

    pub(crate) fn write(&self, data_dir: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        // What it stands for has to be as durable as it is.
        file::sync_directory(&identities(data_dir))?;
        file::replace(&data_dir.join(FILE), text.as_bytes(), 0o644)
    }
}
