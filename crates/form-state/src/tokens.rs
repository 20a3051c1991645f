//! Tokens: `form_<name>_<secret>`. The secret has 256 random bits, so its plain SHA-256 is safe to store.

use std::time::SystemTime;

use data_encoding::BASE64URL_NOPAD;
use form_types::v1::{Key, TokenSpec};
use form_types::{Object, kinds};
use sha2::{Digest as _, Sha256};

use crate::auth::{Identity, Role};
use crate::{Error, Registry, keys};

const UNKNOWN: Error = Error::Unauthenticated("this token is not known; it was revoked, or never was");

/// A new token for `name`, and what is stored of it.
pub(crate) fn mint(name: &str) -> Result<(String, Vec<u8>), Error> {
    let mut secret = [0_u8; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Error::Store(crate::store::StoreError::Engine(error.to_string().into())))?;
    let token = format!("form_{name}_{}", BASE64URL_NOPAD.encode(&secret));
    let hash = hash(&token);
    Ok((token, hash))
}

pub(crate) fn hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

impl Registry {
    /// Who shows `token`.
    pub async fn authenticate(&self, token: &str) -> Result<Identity, Error> {
        // A name is a DNS label, so the first underscore after it is where the secret starts.
        let (name, _) = token.strip_prefix("form_").and_then(|rest| rest.split_once('_')).ok_or(UNKNOWN)?;
        if name.len() > 63 {
            return Err(UNKNOWN);
        }
        let stored = self.store().get(&keys::token(name)).await?.ok_or(UNKNOWN)?;
        // Both sides are hashes of what nobody can guess; how long the comparison takes tells nothing of use.
        if stored.value[..] != hash(token)[..] {
            return Err(UNKNOWN);
        }
        let key = Key { kind: "Token".to_owned(), project: String::new(), name: name.to_owned() };
        let (resource, _) = self.find(&key).await?.ok_or(UNKNOWN)?;
        let object = Object::<kinds::Token>::try_from(resource).map_err(|_| UNKNOWN)?;
        if is_over(&object.spec) {
            return Err(Error::Unauthenticated("this token has expired; ask for a new one"));
        }
        let role = Role::of(object.spec.role()).ok_or(UNKNOWN)?;
        let project = Some(object.spec.project).filter(|project| !project.is_empty());
        Ok(Identity::Person { token: name.to_owned(), project, role })
    }
}

fn is_over(spec: &TokenSpec) -> bool {
    let end = spec.expires_at.and_then(|end| SystemTime::try_from(end).ok());
    // A time that cannot be read is no reason to let someone in.
    spec.expires_at.is_some() && end.is_none_or(|end| end <= SystemTime::now())
}
