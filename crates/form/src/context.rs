//! Where the cloud is, and who asks: a file that only its owner can read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use form_service::secret;
use serde::{Deserialize, Serialize};

use crate::error::Error;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// form-state.
    pub(crate) state: SocketAddr,
    pub(crate) token: String,
    /// The cluster's CA, PEM.
    pub(crate) ca: String,
    /// The zone of the cluster's own names.
    pub(crate) zone: String,
}

/// What `form up` writes into its data directory.
pub(crate) fn path_in(data_dir: &Path) -> PathBuf {
    data_dir.join("context.toml")
}

impl Context {
    pub(crate) fn save(&self, path: &Path) -> Result<(), Error> {
        let text = toml::to_string(self).map_err(|error| Error::Failed(error.to_string()))?;
        secret::write(path, &text).map_err(Error::file(path))
    }

    /// The file that was named, or the first that is there: the user's own, then the one of this machine's cloud.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, Error> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => candidates().into_iter().find(|path| path.exists()).ok_or(Error::NoContext)?,
        };
        let text = secret::read(&path).map_err(|error| Error::Usage(form_service::run::chain(&error)))?;
        toml::from_str(text.reveal()).map_err(|error| Error::Usage(format!("{}: {}", path.display(), error.message())))
    }
}

fn candidates() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or(home);
    let own = config.map(|config| config.join("formation/context.toml"));
    own.into_iter().chain([path_in(Path::new("/var/lib/formation"))]).collect()
}
