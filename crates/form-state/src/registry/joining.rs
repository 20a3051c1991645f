//! A machine becomes a node: it shows a JoinToken, once, and has the keys of its services certified.
//!
//! ```text
//!   JoinToken ──▶ used_by NODE ┐
//!                              ├─ one transaction ──▶ certificates, as often as the same machine asks with the
//!             ──▶ Node NODE    ┘                      same keys, until the token ends
//! ```
//!
//! That there is the Node is what makes the name its: two machines cannot be one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use form_service::identity::{IdentityError, RequestedKey};
use form_types::v1::{JoinRequest, JoinResponse, JoinTokenSpec, Key, NodeSpec, Resource, SigningRequest};
use form_types::{Invalid, Kind as _, Object, from_now, kinds, timestamp, validate};
use sha2::{Digest as _, Sha256};

use super::Registry;
use super::plan::Plan;
use crate::store::{Op, StoreError};
use crate::{Error, Identity, keys, tokens};

/// What a node may run. Who could have a certificate of form-state could be the cloud.
const SERVICES: [&str; 4] = ["vmm-service", "form-dns", "form-pack-manager", "formnet"];
/// How long a token is good for that says nothing of it.
const HOUR: Duration = Duration::from_secs(3600);

/// Why a machine is not let in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("this join token is not known; it was revoked, or never was")]
    Unknown,
    #[error("this join token has expired; make another: form node invite")]
    Expired,
    #[error("this join token was used already, by node {0}; each machine needs its own: form node invite")]
    Used(String),
    #[error("this join token is for a node named {0}")]
    OtherNode(String),
    #[error("node {0}, which joined with this token, was removed since; make another: form node invite")]
    Removed(String),
    #[error("this form-state signs nothing: its authority_dir is not set")]
    NoAuthority,
}

/// `spec`, with an end.
pub(super) fn with_end(spec: JoinTokenSpec, had: JoinTokenSpec) -> JoinTokenSpec {
    let end = spec.expires_at.or(had.expires_at).unwrap_or_else(|| from_now(HOUR));
    JoinTokenSpec { expires_at: Some(end), ..spec }
}

impl Registry {
    /// Makes the machine at `from` a node. Whoever has the token may ask.
    pub async fn join(&self, request: &JoinRequest, from: Option<IpAddr>) -> Result<JoinResponse, Error> {
        // The token first: without one, nothing else is looked at.
        let name = tokens::name(tokens::JOIN, &request.token).ok_or(JoinError::Unknown)?;
        let stored = self.store.get(&keys::join_token(name)).await?.ok_or(JoinError::Unknown)?;
        if !tokens::is(&request.token, &stored.value) {
            return Err(JoinError::Unknown.into());
        }
        let authority = self.authority.as_ref().ok_or(JoinError::NoAuthority)?;
        let wanted = wanted(&request.requests)?;
        let machine = fingerprint(&wanted);
        let mut attempts = 0;
        let (node, issued) = loop {
            let mut plan = Plan { again: attempts > 0, ..Plan::default() };
            let joined = self.plan_join(&mut plan, name, &request.node, &machine).await?;
            if self.commit(plan, &mut attempts).await?.is_some() {
                break joined;
            }
        };
        let addresses: Vec<IpAddr> = from.map(|from| from.to_canonical()).into_iter().collect();
        let sign = |(service, key): &(&str, RequestedKey)| authority.sign(service, &node, &addresses, key, issued);
        let certificates: Result<_, IdentityError> = wanted.iter().map(sign).collect();
        let certificates = certificates.map_err(|error| Error::Store(StoreError::Engine(error.into())))?;
        tracing::info!(node, token = name, "a machine joined");
        Ok(JoinResponse { node, certificates })
    }

    /// Plans that the token is used and the node is made, or nothing, where the same machine did that before. Answers
    /// with the node's name, and from when on its certificates count.
    async fn plan_join(
        &self,
        plan: &mut Plan,
        token: &str,
        asked: &str,
        machine: &str,
    ) -> Result<(String, SystemTime), Error> {
        let key = Key { kind: kinds::JoinToken::INFO.name.to_owned(), project: String::new(), name: token.to_owned() };
        let (resource, revision) = self.find(&key).await?.ok_or(JoinError::Unknown)?;
        let mut token = Object::<kinds::JoinToken>::try_from(resource).map_err(|_| JoinError::Unknown)?;
        // A time that cannot be read is no reason to let someone in.
        let end = token.spec.expires_at.and_then(|end| SystemTime::try_from(end).ok());
        if end.is_none_or(|end| end <= SystemTime::now()) {
            return Err(JoinError::Expired.into());
        }
        let node = match (asked, token.spec.node.as_str()) {
            ("", "") => return Err(Invalid::at("node", "missing; the join token says none either").into()),
            ("", wanted) => wanted,
            (asked, wanted) if wanted.is_empty() || asked == wanted => asked,
            (_, wanted) => return Err(JoinError::OtherNode(wanted.to_owned()).into()),
        };
        let node = node.to_owned();
        let object = Object::<kinds::Node>::new("", &node, NodeSpec::default());
        let (node_key, resource) = (object.key(), Resource::from(object));
        if validate(&resource).is_err() {
            return Err(Invalid::at("node", format!("{node:?} is not a DNS label")).into());
        }
        // Looked up before the node is: one that is removed in the middle is out, whatever it gets.
        let issued = self.counts_from(&node, SystemTime::now()).await?;
        let found = self.find(&node_key).await?.map(|(found, _)| found.uid);
        let joined = keys::joined(&key.name);

        if !token.status.used_by.is_empty() {
            let value = self.store.get(&joined).await?.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
            let (by, uid) = value.as_deref().and_then(|value| value.split_once(' ')).unwrap_or_default();
            if by != machine || token.status.used_by != node {
                return Err(JoinError::Used(token.status.used_by).into());
            }
            // Who took the name since then is another.
            return if found.as_deref() == Some(uid) {
                Ok((node, issued))
            } else {
                Err(JoinError::Removed(node).into())
            };
        }
        if found.is_some() {
            return Err(Error::Taken { what: "the name", value: node.clone(), owner: format!("Node {node}") });
        }
        self.plan_new(plan, &Identity::myself(), &resource, kinds::Node::INFO, &node_key).await?;
        let uid = plan.results.last().map(|made| made.uid.clone()).unwrap_or_default();
        plan.ops.push(Op::Put { key: joined, value: format!("{machine} {uid}").into(), lease: None });
        token.status.used_by.clone_from(&node);
        token.status.used_at = Some(timestamp(SystemTime::now()));
        plan.put(&key, token.into(), Some(revision), None);
        Ok((node, issued))
    }
}

/// The services that certificates are asked for, with their keys.
fn wanted(requests: &[SigningRequest]) -> Result<Vec<(&'static str, RequestedKey)>, Error> {
    if requests.is_empty() || requests.len() > SERVICES.len() {
        return Err(Invalid::at("requests", format!("there have to be 1 to {} of them", SERVICES.len())).into());
    }
    let mut wanted: Vec<(&'static str, RequestedKey)> = Vec::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        let at = |field: &str, text: String| Invalid::at(format!("requests[{index}].{field}"), text);
        let service = SERVICES.into_iter().find(|service| *service == request.service);
        let service = service.ok_or_else(|| {
            at("service", format!("{:?} is no service of a node; there are {}", request.service, SERVICES.join(", ")))
        })?;
        if wanted.iter().any(|(other, _)| *other == service) {
            return Err(at("service", format!("{service} is there twice")).into());
        }
        let key = RequestedKey::of(&request.csr).map_err(|error| at("csr", error.to_string()))?;
        wanted.push((service, key));
    }
    Ok(wanted)
}

/// What a machine is known by: its keys, in whatever order they come.
fn fingerprint(wanted: &[(&str, RequestedKey)]) -> String {
    let keys: BTreeSet<(&str, Vec<u8>)> = wanted.iter().map(|(service, key)| (*service, key.der())).collect();
    let mut hash = Sha256::new();
    for (service, key) in keys {
        hash.update(service.as_bytes());
        hash.update([0]);
        hash.update(Sha256::digest(&key));
    }
    HEXLOWER.encode(&hash.finalize())
}
