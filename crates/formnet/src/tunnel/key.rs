use std::fmt;
use std::io;
use std::path::Path;

use data_encoding::BASE64;
use defguard_wireguard_rs::key::Key;
use form_service::secret::{self, SecretError};
use zeroize::Zeroizing;

use crate::error::{Error, Result, file};

/// The private half of a WireGuard key. Wiped when dropped, never printed.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// A new one, from the kernel's randomness.
    pub fn generate() -> Self {
        Self(Zeroizing::new(Key::generate().as_array()))
    }

    /// The key in `path`; a new one is made, and is on disk when this returns, if there is no such file.
    ///
    /// # Errors
    /// If others can read the file, if it has no key, or if it cannot be read or made.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        match secret::read(path) {
            Ok(text) => {
                let bytes = BASE64.decode(text.reveal().as_bytes()).map(Zeroizing::new);
                let key = bytes.ok().and_then(|bytes| bytes.as_slice().try_into().ok());
                key.map(|key| Self(Zeroizing::new(key))).ok_or_else(|| Error::Key { what: path.display().to_string() })
            }
            Err(SecretError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let key = Self::generate();
                key.save(path)?;
                Ok(key)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces the key in `path`; when this returns it survives a loss of power.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        secret::write(path, &Zeroizing::new(BASE64.encode(self.0.as_slice()))).map_err(file("write the key to", path))
    }

    /// The public half, in base64.
    pub fn public(&self) -> String {
        BASE64.encode(self.key().public_key().as_slice())
    }

    /// As the libraries want it.
    pub(super) fn key(&self) -> Key {
        Key::new(*self.0)
    }

    /// As the userspace protocol wants it.
    pub(super) fn hex(&self) -> Zeroizing<String> {
        Zeroizing::new(data_encoding::HEXLOWER.encode(self.0.as_slice()))
    }

    /// As wg(8) and its files want it.
    pub(super) fn base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.0.as_slice()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        let key = PrivateKey::load_or_create(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(PrivateKey::load_or_create(&path).unwrap().public(), key.public());
        assert_eq!(format!("{key:?}"), "PrivateKey(…)");
    }

    #[test]
    fn a_file_without_a_key_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wireguard.key");
        secret::write(&path, "c2hvcnQ=").unwrap();
        assert!(matches!(PrivateKey::load_or_create(&path), Err(Error::Key { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"c2hvcnQ=");
    }
}
