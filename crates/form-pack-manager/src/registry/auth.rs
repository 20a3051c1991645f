//! Who asks, and what they may do: the cluster's tokens, the way that Docker's clients show them.
//!
//! A client asks without anything, is told where tokens are to be had (`/v2/token`), and shows its user's name and
//! password there (Basic). The password is a token of the cluster, the name may be any; what it gets is the same token,
//! which it then shows as Bearer. So there is no second kind of token to make, to keep or to revoke.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64;
use form_client::{Access, Caller, Client};
use form_rootfs::Digest;
use form_service::Peer;
use form_service::secret::Secret;
use form_types::kinds;
use http::request::Parts;
use http::{StatusCode, header};
use serde_json::json;

use super::Error;
use super::name::Repository;

/// How long an answer of form-state counts: a revoked token is good for that much longer, and a pull of a hundred layers
/// asks once.
const TRUSTED: Duration = Duration::from_secs(2);
const MOST_KNOWN: usize = 4096;

pub(super) struct Gate {
    client: Client,
    /// By the digest of their token.
    callers: Mutex<HashMap<Digest, (Caller, Instant)>>,
}

impl Gate {
    pub(super) fn new(client: Client) -> Self {
        Self { client, callers: Mutex::default() }
    }

    /// Lets pass who may do `access` in `repository`; for writes, only if its project is there.
    pub(super) async fn admit(&self, asked: &Parts, access: Access, repository: &Repository) -> Result<(), Error> {
        let project = repository.project();
        if let Some(peer) = asked.extensions.get::<Peer>() {
            // The cluster's services read all; what is written, people push, and this service builds.
            if access == Access::Read {
                return self.of_the_cluster(peer).await;
            }
            return Err(Error::new(StatusCode::FORBIDDEN, "DENIED", format!("{} does not push images", peer.service)));
        }
        let scope = format!("repository:{repository}:{}", if access == Access::Read { "pull" } else { "pull,push" });
        let caller = self.caller(asked, &scope).await?;
        if !caller.may(access, project) {
            let text = format!("token {} may not do this in project {project}", caller.subject);
            return Err(Error::new(StatusCode::FORBIDDEN, "DENIED", text));
        }
        if access == Access::Write && asked.method != http::Method::PATCH {
            match self.client.get::<kinds::Project>("", project).await {
                Ok(_) => {}
                Err(form_client::Error::NotFound(_)) => {
                    let text = format!("there is no project {project}; make it with form apply (form explain project)");
                    return Err(Error::unknown("NAME_UNKNOWN", text));
                }
                Err(error) => return Err(undecided(&error)),
            }
        }
        Ok(())
    }

    /// Whether the same caller may also read from `other`: for mounts, which are no reason to refuse an upload.
    pub(super) async fn may_read(&self, asked: &Parts, other: &Repository) -> bool {
        self.caller(asked, "").await.is_ok_and(|caller| caller.may(Access::Read, other.project()))
    }

    /// Whoever shows a token that is known.
    pub(super) async fn known(&self, asked: &Parts) -> Result<(), Error> {
        if let Some(peer) = asked.extensions.get::<Peer>() {
            return self.of_the_cluster(peer).await;
        }
        self.caller(asked, "").await.map(drop)
    }

    /// A node may have been removed since its services got their certificates.
    async fn of_the_cluster(&self, peer: &Peer) -> Result<(), Error> {
        self.client.admit(peer).await.map_err(|problem| match problem.status {
            403 => Error::new(StatusCode::FORBIDDEN, "DENIED", problem.detail),
            _ => Error::unavailable(),
        })
    }

    /// `GET /v2/token` (the token authentication of Docker's registries): the token that was shown as a password.
    pub(super) async fn token(&self, asked: &Parts) -> Result<Response, Error> {
        self.caller(asked, "").await?;
        let token = shown(asked).unwrap_or_else(|| Secret::new(String::new()));
        let body = json!({"token": token.reveal(), "access_token": token.reveal(), "expires_in": 300});
        Ok(([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
    }

    async fn caller(&self, asked: &Parts, scope: &str) -> Result<Caller, Error> {
        let token =
            shown(asked).ok_or_else(|| challenge(asked, scope, "log in with a token of the cluster as password"))?;
        let key = Digest::of(token.reveal().as_bytes());
        if let Some((caller, _)) = self.callers().get(&key).filter(|(_, asked)| asked.elapsed() < TRUSTED) {
            return Ok(caller.clone());
        }
        let caller = match self.client.authenticate(token.reveal()).await {
            Ok(caller) => caller,
            Err(form_client::Error::Unauthenticated(text)) => return Err(challenge(asked, scope, &text)),
            Err(error) => return Err(undecided(&error)),
        };
        let mut callers = self.callers();
        if callers.len() >= MOST_KNOWN {
            callers.clear();
        }
        callers.insert(key, (caller.clone(), Instant::now()));
        Ok(caller)
    }

    fn callers(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, (Caller, Instant)>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The token of `Authorization: Bearer TOKEN`, or the password of `Authorization: Basic …` (RFC 7617).
fn shown(asked: &Parts) -> Option<Secret> {
    let (scheme, rest) = asked.headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Secret::new(rest.trim().to_owned()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = Secret::new(String::from_utf8(BASE64.decode(rest.trim().as_bytes()).ok()?).ok()?);
    Some(Secret::new(text.reveal().split_once(':')?.1.to_owned()))
}

/// Says where tokens are: at the name that the client knows us by.
fn challenge(asked: &Parts, scope: &str, text: &str) -> Error {
    let host = asked.uri.authority().map(|authority| authority.as_str());
    let host = host.or_else(|| asked.headers.get(header::HOST)?.to_str().ok()).unwrap_or_default();
    let scope = if scope.is_empty() { String::new() } else { format!(",scope=\"{scope}\"") };
    let realm = format!("Bearer realm=\"https://{host}/v2/token\",service=\"{host}\"{scope}");
    Error::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", text).with(header::WWW_AUTHENTICATE, &realm)
}

fn undecided(error: &form_client::Error) -> Error {
    tracing::warn!(error = form_service::run::chain(error), "form-state could not be asked about a caller");
    Error::unavailable()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(authorization: &str) -> Parts {
        let request = http::Request::get("/v2/").header(header::AUTHORIZATION, authorization);
        request.header(header::HOST, "cloud:3003").body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_token_is_shown_as_bearer_or_as_the_password_of_anybody() {
        let basic = |text: &str| format!("Basic {}", BASE64.encode(text.as_bytes()));
        for (header, token) in [
            ("Bearer form_a_b".to_owned(), Some("form_a_b")),
            ("bearer form_a_b".to_owned(), Some("form_a_b")),
            (basic("me:form_a_b"), Some("form_a_b")),
            (basic(":with:colons"), Some("with:colons")),
            (basic("no colon"), None),
            ("Basic ***".to_owned(), None),
            ("Digest x".to_owned(), None),
            ("form_a_b".to_owned(), None),
        ] {
            assert_eq!(shown(&asked(&header)).as_ref().map(Secret::reveal), token, "{header}");
        }
    }

    #[test]
    fn who_shows_nothing_is_told_where_tokens_are() {
        let answer = challenge(&asked("x y"), "repository:p/a:pull", "log in").into_response();
        let said = answer.headers()[header::WWW_AUTHENTICATE].to_str().unwrap();
        let wanted =
            "Bearer realm=\"https://cloud:3003/v2/token\",service=\"cloud:3003\",scope=\"repository:p/a:pull\"";
        assert_eq!(said, wanted);
    }
}
