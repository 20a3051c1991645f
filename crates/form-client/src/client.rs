//! Typed verbs over gRPC.

use std::net::SocketAddr;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use form_service::{Identity, Peer, Problem};
use form_types::v1::state_client::StateClient;
use form_types::v1::{
    ApplyRequest, AuthenticateRequest, Change, CreateRequest, DeleteRequest, FinalizeRequest, GetRequest,
    GrantLeaseRequest, KeepAliveRequest, Key, ListRequest, UpdateStatusRequest, WatchRequest, WatchResponse, change,
    event_spec,
};
use form_types::{Kind, Meta, Object, event, kinds};
use futures::{Stream, StreamExt as _};
use http::uri::Authority;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

use crate::Error;

/// A transaction is told whole: 128 resources of at most 512 KiB each.
const MOST_MESSAGE: usize = 80 << 20;

/// Where form-state is: `HOST:PORT`. The host may be a name, which is looked up anew for each connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Endpoint(String);

/// The address that a service says it answers at: `https://ADDRESS:PORT`, as `vmm_url` of a Node. A service is asked by its
/// own name, not its machine's, because no other service's certificate has it; so the address is resolved by hand.
///
/// # Errors
/// With a sentence on what is wrong with `url`.
pub fn address_of(url: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("{url:?} is no address of a service; it should be https://ADDRESS:PORT");
    let parsed: http::Uri = url.parse().map_err(|_| wrong())?;
    let host = parsed.host().filter(|_| parsed.scheme() == Some(&http::uri::Scheme::HTTPS)).ok_or_else(wrong)?;
    let ip = host.trim_matches(['[', ']']).parse().map_err(|_| wrong())?;
    Ok(SocketAddr::new(ip, parsed.port_u16().unwrap_or(443)))
}

impl Default for Endpoint {
    fn default() -> Self {
        SocketAddr::from(([127, 0, 0, 1], 3004)).into()
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let whole = text.parse::<Authority>().is_ok_and(|authority| {
            !authority.host().is_empty() && authority.port_u16().is_some() && !text.contains('@')
        });
        if whole { Ok(Self(text)) } else { Err(format!("{text:?} is not of the form HOST:PORT")) }
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.0
    }
}

/// A connection to form-state as one service. Cheap to clone; it connects when it is first used, and again when it has to.
#[derive(Clone)]
pub struct Client {
    state: StateClient<Channel>,
    reporter: String,
}

/// All of a kind, as of one revision.
#[derive(Debug)]
pub struct Listed<K: Kind> {
    pub items: Vec<Object<K>>,
    pub revision: u64,
}

/// What a watch tells.
#[derive(Debug)]
pub enum Update<K: Kind> {
    Put(Box<Object<K>>),
    Deleted(Box<Object<K>>),
    /// All up to this revision was told.
    Progress(u64),
}

impl Client {
    /// As the service `reporter`, which shows `identity`.
    pub fn new(endpoint: Endpoint, identity: &Identity, reporter: &str) -> Result<Self, Error> {
        let tls = ClientTlsConfig::new()
            // The name of the service, not of the machine: another service's certificate does not have it.
            .domain_name("form-state")
            .ca_certificate(Certificate::from_pem(&identity.ca_pem))
            .identity(tonic::transport::Identity::from_pem(&identity.cert_pem, identity.key_pem()));
        let channel = Channel::from_shared(format!("https://{}", endpoint.0))
            .map_err(|error| Error::Other(error.to_string()))?
            .tls_config(tls)?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_lazy();
        let state = StateClient::new(channel).max_decoding_message_size(MOST_MESSAGE);
        Ok(Self { state, reporter: reporter.to_owned() })
    }

    pub async fn get<K: Kind>(&self, project: &str, name: &str) -> Result<Object<K>, Error> {
        let key = Object::<K>::new(project, name, K::Spec::default()).key();
        let call = || async {
            let request = GetRequest { key: Some(key.clone()) };
            Ok::<_, Error>(self.state.clone().get(timed(request)).await?.into_inner())
        };
        Ok(again(call).await?.try_into()?)
    }

    /// All of `K`, in one project or (empty) in all, page by page.
    pub async fn list<K: Kind>(&self, project: &str) -> Result<Listed<K>, Error> {
        let mut listed = Listed { items: Vec::new(), revision: 0 };
        let mut page = String::new();
        loop {
            let call = || async {
                let (kind, project) = (K::INFO.name.to_owned(), project.to_owned());
                let request = ListRequest { kind, project, page: page.clone(), ..Default::default() };
                Ok::<_, Error>(self.state.clone().list(timed(request)).await?.into_inner())
            };
            let answer = again(call).await?;
            if page.is_empty() {
                // A watch from the first page's revision tells all that changed while the others were read.
                listed.revision = answer.revision;
            }
            for item in answer.items {
                listed.items.push(item.try_into()?);
            }
            page = answer.next;
            if page.is_empty() {
                return Ok(listed);
            }
        }
    }

    /// Every change of `K` after `revision`. Ends with an error; [`Error::Compacted`] asks for a new list.
    pub async fn watch<K: Kind>(
        &self,
        project: &str,
        revision: u64,
    ) -> Result<impl Stream<Item = Result<Update<K>, Error>> + Send + use<K>, Error> {
        let (kind, project) = (K::INFO.name.to_owned(), project.to_owned());
        let request = WatchRequest { kind, project, after_revision: revision, ..Default::default() };
        let changes = self.state.clone().watch(request).await?.into_inner();
        Ok(changes.flat_map(|response| futures::stream::iter(updates(response))))
    }

    pub async fn create<K: Kind>(&self, object: Object<K>) -> Result<Object<K>, Error> {
        let request = CreateRequest { resource: Some(object.into()), idempotency_key: String::new() };
        Ok(self.state.clone().create(timed(request)).await?.into_inner().try_into()?)
    }

    /// Creates it, or replaces its labels and spec; with a revision in its meta, only if that is the last.
    pub async fn apply<K: Kind>(&self, object: Object<K>) -> Result<Object<K>, Error> {
        let call = || async {
            let request = ApplyRequest { resource: Some(object.clone().into()) };
            Ok::<_, Error>(self.state.clone().apply(timed(request)).await?.into_inner())
        };
        Ok(again(call).await?.try_into()?)
    }

    /// Replaces its status; with a revision in its meta, only if that is the last.
    pub async fn update_status<K: Kind>(&self, object: Object<K>) -> Result<Object<K>, Error> {
        self.status(object, 0).await
    }

    async fn status<K: Kind>(&self, object: Object<K>, lease: u64) -> Result<Object<K>, Error> {
        let call = || async {
            let request = UpdateStatusRequest { resource: Some(object.clone().into()), lease };
            Ok::<_, Error>(self.state.clone().update_status(timed(request)).await?.into_inner())
        };
        Ok(again(call).await?.try_into()?)
    }

    /// Asks for it to go, if it is still the one with this uid.
    pub async fn delete<K: Kind>(&self, meta: &Meta) -> Result<(), Error> {
        let request = DeleteRequest { key: Some(key::<K>(meta)), revision: 0, uid: meta.uid.clone() };
        self.state.clone().delete(timed(request)).await?;
        Ok(())
    }

    /// Says that all of it is cleaned up, so that it goes.
    pub async fn finalize<K: Kind>(&self, meta: &Meta) -> Result<(), Error> {
        let call = || async {
            let request = FinalizeRequest { key: Some(key::<K>(meta)), uid: meta.uid.clone() };
            self.state.clone().finalize(timed(request)).await?;
            Ok::<_, Error>(())
        };
        again(call).await
    }

    /// Records what happened to `about`. An event that is lost is logged, and nothing fails of it.
    pub async fn event<K: Kind>(&self, about: &Meta, kind: event_spec::Type, reason: &str, message: impl Into<String>) {
        let event = event::<K>(about, kind, reason, message, &self.reporter);
        if let Err(error) = self.create(event).await {
            tracing::warn!(%error, "an event was not recorded");
        }
    }

    /// Keeps `node` ready with `lease`; see [`NodeLease`].
    pub async fn node_ready(&self, node: Object<kinds::Node>, lease: &NodeLease) -> Result<(), Error> {
        self.status(node, lease.id).await.map(drop)
    }

    pub async fn grant_lease(&self, ttl: Duration) -> Result<NodeLease, Error> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let lease = self.state.clone().grant_lease(timed(GrantLeaseRequest { ttl_ms })).await?.into_inner();
        Ok(NodeLease { id: lease.id, ttl })
    }

    /// Starts the lease's time anew. [`Error::NotFound`]: it has ended; get another.
    pub async fn keep_alive(&self, lease: &NodeLease) -> Result<(), Error> {
        self.state.clone().keep_alive(timed(KeepAliveRequest { id: lease.id })).await?;
        Ok(())
    }

    /// Who shows this token; [`Error::Unauthenticated`] where nobody does.
    pub async fn authenticate(&self, token: &str) -> Result<Caller, Error> {
        let call = || async {
            let request = AuthenticateRequest { token: token.to_owned() };
            Ok::<_, Error>(self.state.clone().authenticate(timed(request)).await?.into_inner())
        };
        let found = again(call).await?;
        let project = Some(found.project).filter(|project| !project.is_empty());
        let access = if found.role == "viewer" { Access::Read } else { Access::Write };
        Ok(Caller { subject: found.subject, project, access })
    }
}

impl Client {
    /// Whether whoever sent these headers may do `access` in `project`: for services that people call to move bytes.
    pub async fn authorize(&self, headers: &HeaderMap, access: Access, project: &str) -> Result<Caller, Problem> {
        let header = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer "));
        let token = token.ok_or_else(|| Problem::unauthenticated("show a token: Authorization: Bearer TOKEN"))?;
        let caller = self.authenticate(token).await.map_err(|error| match error {
            Error::Unauthenticated(text) => Problem::unauthenticated(text),
            error => {
                tracing::warn!(error = form_service::run::chain(&error), "a token could not be judged");
                Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "unavailable",
                    "who you are cannot be asked now; try again",
                )
            }
        })?;
        if !caller.may(access, project) {
            return Err(Problem::forbidden(format!("token {} may not do this in project {project}", caller.subject)));
        }
        Ok(caller)
    }
}

impl Client {
    /// Whether the service `peer`, which shows a certificate, is of a node of the cluster: those of one that was removed
    /// are good certificates still. For services that others call.
    pub async fn admit(&self, peer: &Peer) -> Result<(), Problem> {
        match self.get::<kinds::Node>("", &peer.node).await {
            Ok(_) => Ok(()),
            Err(Error::NotFound(_)) => Err(Problem::forbidden(format!(
                "{} is of node {}, which is not in the cluster",
                peer.service, peer.node
            ))),
            Err(error) => {
                tracing::warn!(error = form_service::run::chain(&error), "a service could not be judged");
                let text = "who you are cannot be asked now; try again";
                Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text))
            }
        }
    }
}

/// What a Node's readiness hangs on.
#[derive(Clone, Copy, Debug)]
pub struct NodeLease {
    id: u64,
    pub ttl: Duration,
}

/// A person or program that showed a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub subject: String,
    /// `None`: all projects.
    project: Option<String>,
    access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    Read,
    Write,
}

impl Caller {
    pub fn may(&self, access: Access, project: &str) -> bool {
        self.access >= access && self.project.as_ref().is_none_or(|own| own == project)
    }
}

fn key<K: Kind>(meta: &Meta) -> Key {
    Key { kind: K::INFO.name.to_owned(), project: meta.project.clone(), name: meta.name.clone() }
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_secs(15));
    request
}

/// Tries again while the failure is one that passes; for calls that may be made twice.
async fn again<T, F: Future<Output = Result<T, Error>>>(call: impl FnMut() -> F) -> Result<T, Error> {
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(1))
        .with_max_times(5)
        .with_jitter();
    call.retry(patience).when(Error::is_temporary).await
}

fn updates<K: Kind>(response: Result<WatchResponse, tonic::Status>) -> Vec<Result<Update<K>, Error>> {
    let response = match response {
        Ok(response) => response,
        Err(status) => return vec![Err(status.into())],
    };
    let update = |change: Change| {
        let deleted = change.r#type() == change::Type::Deleted;
        let object = Box::new(Object::try_from(change.resource.unwrap_or_default())?);
        Ok(if deleted { Update::Deleted(object) } else { Update::Put(object) })
    };
    let mut updates: Vec<_> = response.changes.into_iter().map(update).collect();
    updates.push(Ok(Update::Progress(response.revision)));
    updates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_service_is_an_ip_address_and_a_port() {
        for (url, address) in [
            ("https://127.0.0.1:3002", "127.0.0.1:3002"),
            ("https://[fd00::1]:3002/", "[fd00::1]:3002"),
            ("https://192.0.2.1", "192.0.2.1:443"),
        ] {
            assert_eq!(address_of(url), Ok(address.parse().unwrap()));
        }
        for url in
            ["", "127.0.0.1:3002", "http://127.0.0.1:3002", "https://vmm.example:3002", "https://:1", "https://[::1"]
        {
            assert!(address_of(url).unwrap_err().contains(url), "{url}");
        }
    }

    #[test]
    fn where_form_state_is_may_be_a_name() {
        let endpoint = |text: &str| Endpoint::try_from(text.to_owned());
        for good in ["127.0.0.1:3004", "[::1]:3004", "form-state:3004", "form-state.formation.svc:443"] {
            assert_eq!(String::from(endpoint(good).unwrap()), good);
        }
        for bad in ["", "form-state", ":3004", "https://form-state:3004", "form-state:http", "a@b:1", "a:1/b", "a b:1"]
        {
            assert!(endpoint(bad).is_err(), "{bad:?}");
        }
    }
}
