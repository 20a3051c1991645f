//! REST: `/v1/projects/{project}/{kinds}/{name}` and `/v1/{kinds}/{name}`; `openapi.rs` describes it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use data_encoding::BASE64;
use form_service::listener::Remote;
use form_service::{CancellationToken, Peer, Problem};
use form_types::v1::{
    CreateRequest, DeleteRequest, JoinRequest, Key, ListRequest, Resource, SigningRequest, UpdateStatusRequest,
    WatchRequest, WatchResponse, change,
};
use form_types::{Invalid, KindInfo, from_json, to_json};
use futures::{StreamExt as _, stream};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{identify, openapi};
use crate::{Error, Identity, Registry};

/// The most bytes that a request to join may have: anybody may send one.
const MOST_OF_A_JOIN: usize = 32 << 10;

#[derive(Clone)]
struct Api {
    registry: Registry,
    shutdown: CancellationToken,
}

pub(super) fn routes(registry: Registry, shutdown: CancellationToken) -> Router {
    let many = || get(list).post(create);
    let one = || get(read).put(apply).delete(delete);
    Router::new()
        .route("/v1/{kinds}", many())
        .route("/v1/{kinds}/{name}", one())
        .route("/v1/{kinds}/{name}/status", put(status))
        .route("/v1/projects/{project}/{kinds}", many())
        .route("/v1/projects/{project}/{kinds}/{name}", one())
        .route("/v1/projects/{project}/{kinds}/{name}/status", put(status))
        .route("/v1/join", post(join))
        .route("/openapi.yaml", get(async || ([(header::CONTENT_TYPE, "application/yaml")], openapi::yaml())))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "see /openapi.yaml for what there is")
        })
        .with_state(Api { registry, shutdown })
}

/// Where a request goes.
#[derive(Deserialize)]
struct At {
    #[serde(default)]
    project: String,
    kinds: String,
    #[serde(default)]
    name: String,
}

impl At {
    /// The kind, if it lives at such an address.
    fn kind(&self) -> Result<&'static KindInfo, Problem> {
        let kind = form_types::KINDS.iter().copied().find(|kind| kind.plural == self.kinds);
        kind.filter(|kind| kind.is_cluster_scoped() == self.project.is_empty()).ok_or_else(|| {
            let place = if self.project.is_empty() { "the cluster" } else { "a project" };
            Problem::not_found(format!("there are no {} in {place}; /openapi.yaml tells what there is", self.kinds))
        })
    }

    fn key(&self) -> Result<Key, Problem> {
        Ok(Key { kind: self.kind()?.name.to_owned(), project: self.project.clone(), name: self.name.clone() })
    }
}

/// Who asks; refused where nobody does.
struct Caller(Identity);

impl FromRequestParts<Api> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        Ok(Self(identify(&api.registry, parts.extensions.get::<Peer>(), &parts.headers).await?))
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListQuery {
    label_selector: String,
    limit: u32,
    page: String,
    watch: Option<String>,
    after_revision: Option<u64>,
}

type Answer = Result<Response, Problem>;

async fn list(
    State(api): State<Api>,
    Caller(who): Caller,
    Path(at): Path<At>,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Answer {
    let Query(query) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let kind = at.kind()?.name.to_owned();
    if query.watch.as_deref().is_some_and(|watch| watch != "false") {
        let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok());
        // The header first: a browser that connects again sends it to the address that it started from.
        let after_revision = last.or(query.after_revision).unwrap_or(0);
        let request = WatchRequest { kind, project: at.project, label_selector: query.label_selector, after_revision };
        return watch(api, who, request).await;
    }
    let ListQuery { label_selector, limit, page, .. } = query;
    let request = ListRequest { kind, project: at.project, label_selector, limit, page };
    let list = api.registry.list(&who, &request).await?;
    let items: Vec<Value> = list.items.iter().map(to_json).collect();
    Ok(Json(json!({"items": items, "revision": list.revision, "next": list.next})).into_response())
}

async fn watch(api: Api, who: Identity, request: WatchRequest) -> Answer {
    let changes = api.registry.watch(&who, &request).await?;
    let events = changes
        .flat_map(|response| stream::iter(events(response)))
        .take_until(api.shutdown.clone().cancelled_owned())
        .map(Ok::<_, Infallible>);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response())
}

/// `put`, `deleted` and `progress`; an `error` with a problem document is the last.
fn events(response: Result<WatchResponse, Error>) -> Vec<Event> {
    let response = match response {
        Ok(response) => response,
        Err(error) => {
            let problem = serde_json::to_string(&Problem::from(error)).unwrap_or_default();
            return vec![Event::default().event("error").data(problem)];
        }
    };
    let mut events = Vec::with_capacity(response.changes.len() + 1);
    for change in response.changes {
        let name = if change.r#type() == change::Type::Deleted { "deleted" } else { "put" };
        let resource = change.resource.unwrap_or_default();
        events.push(Event::default().event(name).data(to_json(&resource).to_string()));
    }
    // The id comes last, so that a client that was cut in the middle of a transaction gets all of it again.
    let revision = response.revision.to_string();
    events.push(
        Event::default().event("progress").id(&revision).data(json!({"revision": response.revision}).to_string()),
    );
    events
}

async fn read(State(api): State<Api>, Caller(who): Caller, Path(at): Path<At>) -> Answer {
    Ok(answer(StatusCode::OK, api.registry.get(&who, &at.key()?).await?))
}

async fn create(
    State(api): State<Api>,
    Caller(who): Caller,
    Path(at): Path<At>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let resource = resource(&at, &body)?;
    let idempotency_key = text(&headers, "idempotency-key")?;
    let made = api.registry.create(&who, CreateRequest { resource: Some(resource), idempotency_key }).await?;
    let place = if at.project.is_empty() { String::new() } else { format!("/projects/{}", at.project) };
    let location = format!("/v1{place}/{}/{}", at.kinds, made.name);
    let mut response = answer(StatusCode::CREATED, made);
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn apply(
    State(api): State<Api>,
    Caller(who): Caller,
    Path(at): Path<At>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let mut resource = resource(&at, &body)?;
    if text(&headers, "if-none-match")? == "*" {
        let request = CreateRequest { resource: Some(resource), idempotency_key: String::new() };
        return match api.registry.create(&who, request).await {
            Ok(made) => Ok(answer(StatusCode::CREATED, made)),
            // RFC 9110, section 13.1.2.
            Err(error @ Error::AlreadyExists(_)) => {
                Err(Problem::new(StatusCode::PRECONDITION_FAILED, "already-exists", error.to_string()))
            }
            Err(error) => Err(error.into()),
        };
    }
    match if_match(&headers)? {
        Some(IfMatch::Revision(revision)) => resource.revision = revision,
        Some(IfMatch::Any) => resource.uid = api.registry.get(&who, &at.key()?).await?.uid,
        None => {}
    }
    let (applied, is_new) = api.registry.apply(&who, resource).await?;
    Ok(answer(if is_new { StatusCode::CREATED } else { StatusCode::OK }, applied))
}

async fn status(
    State(api): State<Api>,
    Caller(who): Caller,
    Path(at): Path<At>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let mut resource = resource(&at, &body)?;
    if let Some(IfMatch::Revision(revision)) = if_match(&headers)? {
        resource.revision = revision;
    }
    let request = UpdateStatusRequest { resource: Some(resource), lease: 0 };
    Ok(answer(StatusCode::OK, api.registry.update_status(&who, request).await?))
}

async fn delete(State(api): State<Api>, Caller(who): Caller, Path(at): Path<At>, headers: HeaderMap) -> Answer {
    let revision = match if_match(&headers)? {
        Some(IfMatch::Revision(revision)) => revision,
        Some(IfMatch::Any) | None => 0,
    };
    let request = DeleteRequest { key: Some(at.key()?), revision, uid: String::new() };
    let gone = api.registry.delete(&who, request).await?;
    let status = if gone.deletion_requested_at.is_some() { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok(answer(status, gone))
}

/// A `formation.v1.JoinRequest` in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Join {
    token: String,
    #[serde(default)]
    node: String,
    requests: Vec<Signing>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signing {
    service: String,
    /// In base64.
    csr: String,
}

async fn join(State(api): State<Api>, remote: Option<Extension<Remote>>, body: Body) -> Answer {
    let body = axum::body::to_bytes(body, MOST_OF_A_JOIN).await.map_err(|_| {
        let text = format!("the body is larger than the limit, {MOST_OF_A_JOIN} bytes, or was cut off");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", text)
    })?;
    let asked: Join =
        serde_json::from_slice(&body).map_err(|error| Problem::bad_request(format!("the body is not it: {error}")))?;
    // What is no base64 is no signing request either, and is told so where the token is known.
    let csr = |text: &str| BASE64.decode(text.as_bytes()).unwrap_or_default();
    let signing = |asked: Signing| SigningRequest { csr: csr(&asked.csr), service: asked.service };
    let requests = asked.requests.into_iter().map(signing).collect();
    let request = JoinRequest { token: asked.token, node: asked.node, requests };
    let joined = api.registry.join(&request, remote.map(|Extension(Remote(from))| from.ip())).await?;
    Ok(Json(json!({"node": joined.node, "certificates": joined.certificates})).into_response())
}

/// The body as a resource of this address; what the address says need not be repeated in it.
fn resource(at: &At, body: &[u8]) -> Result<Resource, Problem> {
    let kind = at.kind()?;
    let json: Value =
        serde_json::from_slice(body).map_err(|error| Problem::bad_request(format!("the body is not JSON: {error}")))?;
    let Value::Object(mut json) = json else {
        return Err(Error::from(Invalid::at("", "a resource is a JSON object")).into());
    };
    for (field, value) in [("kind", kind.name), ("project", &at.project), ("name", &at.name)] {
        if value.is_empty() {
            continue;
        }
        match json.get(field) {
            None => {
                json.insert(field.to_owned(), value.into());
            }
            Some(given) if given == value => {}
            Some(given) => {
                let text = format!("{given} is not what the address says, {value:?}");
                return Err(Error::from(Invalid::at(field, text)).into());
            }
        }
    }
    Ok(from_json(Value::Object(json)).map_err(Error::from)?)
}

fn answer(status: StatusCode, resource: Resource) -> Response {
    let tag = HeaderValue::from_str(&format!("\"{}\"", resource.revision));
    let mut response = (status, Json(to_json(&resource))).into_response();
    if let Ok(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// RFC 9110, section 13.1.1.
enum IfMatch {
    /// `"42"`
    Revision(u64),
    /// `*`: whatever is there, but something.
    Any,
}

fn if_match(headers: &HeaderMap) -> Result<Option<IfMatch>, Problem> {
    let given = text(headers, "if-match")?;
    if given.is_empty() {
        return Ok(None);
    }
    if given == "*" {
        return Ok(Some(IfMatch::Any));
    }
    let revision = given.trim_matches('"').parse().ok().filter(|revision| *revision > 0);
    revision.map(|revision| Some(IfMatch::Revision(revision))).ok_or_else(|| {
        Problem::bad_request(format!("If-Match: {given:?} is not an ETag of ours, a revision in quotes"))
    })
}

fn text(headers: &HeaderMap, name: &str) -> Result<String, Problem> {
    let value = headers.get(name).map(|value| value.to_str().map(str::to_owned)).transpose();
    value
        .map(Option::unwrap_or_default)
        .map_err(|_| Problem::bad_request(format!("the header {name} is not plain text")))
}
