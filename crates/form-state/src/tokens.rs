//! Tokens: `form_<name>_<secret>`, and `formjoin_<name>_<secret>` of a JoinToken. The secret has 256 random bits, so its
//! plain SHA-256 is safe to store.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use form_types::v1::Key;
use form_types::{Object, kinds};
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};

use crate::auth::{Identity, Role};
use crate::{Error, Registry, keys};

const UNKNOWN: Error = Error::Unauthenticated("this token is not known; it was revoked, or never was");

const CHANGED: Error = Error::Unauthenticated("this token was changed or revoked; start again");
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How a token begins, and how a JoinToken's does.
pub(crate) const TOKEN: &str = "form_";
pub(crate) const JOIN: &str = "formjoin_";

/// A new token for `name`, and what is stored of it.
pub(crate) fn mint(prefix: &str, name: &str) -> Result<(String, Vec<u8>), Error> {
    let mut secret = [0_u8; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| Error::Store(crate::store::StoreError::Engine(error.to_string().into())))?;
    let token = format!("{prefix}{name}_{}", BASE64URL_NOPAD.encode(&secret));
    let hash = hash(&token);
    Ok((token, hash))
}

/// The name in a token: a DNS label, so the first underscore after it is where the secret starts.
pub(crate) fn name<'a>(prefix: &str, token: &'a str) -> Option<&'a str> {
    let (name, _) = token.strip_prefix(prefix)?.split_once('_')?;
    (name.len() <= 63).then_some(name)
}

/// Whether `token` is the one that this is stored of. Both sides are hashes of what nobody can guess; how long the
/// comparison takes tells nothing of use.
pub(crate) fn is(token: &str, stored: &[u8]) -> bool {
    *stored == hash(token)[..]
}

fn hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

impl Registry {
    /// Who shows `token`.
    pub async fn authenticate(&self, token: &str) -> Result<Identity, Error> {
        let name = name(TOKEN, token).ok_or(UNKNOWN)?;
        let stored = self.store().get(&keys::token(name)).await?.ok_or(UNKNOWN)?;
        if !is(token, &stored.value) {
            return Err(UNKNOWN);
        }
        self.holder(name).await.map(|(who, _)| who)
    }

    /// Returns when `who` may no longer act: their token was changed, revoked, or is over;
    /// their node was removed.
    pub(crate) async fn until_refused(&self, who: &Identity) -> Error {
        let Identity::Person { token, .. } = who else { return self.until_removed(who).await };
        self.until_changed(token, who).await.err().unwrap_or(CHANGED)
    }

    async fn until_changed(&self, token: &str, who: &Identity) -> Result<(), Error> {
        let at = keys::resource(&Key { kind: "Token".to_owned(), project: String::new(), name: token.to_owned() });
        loop {
            let revision = self.store().revision().await?;
            let (now, ends) = self.holder(token).await?;
            if now != *who {
                return Ok(());
            }
            let left = ends.and_then(|ends| ends.duration_since(SystemTime::now()).ok());
            let mut changes = self.store().watch(&at, revision).await?;
            let changed = async {
                loop {
                    match changes.next().await {
                        Some(Ok(batch)) if batch.changes.iter().any(|change| change.key == at) => return true,
                        Some(Ok(_)) => {}
                        // Compacted: look again.
                        _ => return false,
                    }
                }
            };
            // A token without an end is looked at once a day, which harms nobody.
            let look = tokio::time::timeout(left.unwrap_or(DAY).min(DAY), changed);
            if look.await.unwrap_or(false) {
                return Ok(());
            }
        }
    }

    /// Who has the token `name`, and until when.
    async fn holder(&self, name: &str) -> Result<(Identity, Option<SystemTime>), Error> {
        let key = Key { kind: "Token".to_owned(), project: String::new(), name: name.to_owned() };
        let (resource, _) = self.find(&key).await?.ok_or(UNKNOWN)?;
        let object = Object::<kinds::Token>::try_from(resource).map_err(|_| UNKNOWN)?;
        // A time that cannot be read is no reason to let someone in.
        let ends = object.spec.expires_at.map(|ends| SystemTime::try_from(ends).unwrap_or(SystemTime::UNIX_EPOCH));
        if ends.is_some_and(|ends| ends <= SystemTime::now()) {
            return Err(Error::Unauthenticated("this token has expired; ask for a new one"));
        }
        let role = Role::of(object.spec.role()).ok_or(UNKNOWN)?;
        let project = Some(object.spec.project).filter(|project| !project.is_empty());
        Ok((Identity::Person { token: name.to_owned(), project, role }, ends))
    }
}
