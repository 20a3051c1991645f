//! Looking into the mesh, for people with a token that is good for the whole cluster.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use form_client::{Access, Client};
use form_service::Problem;
use form_service::run::chain;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::endpoints::Endpoints;
use super::explain;
use super::probe::{PATIENCE, Probe};
use crate::config::Config;
use crate::links::Links;
use crate::plane::Plane;
use crate::rules;
use crate::view::{MeshView, ObjectView, PeerView, PingView, StepView};

/// Probes that one call may ask for.
const MOST_PROBES: usize = 20;

/// What there is to see, once it is made.
#[derive(Clone, Default)]
pub(super) struct Sight(Arc<OnceLock<Mesh>>);

struct Mesh {
    config: Arc<Config>,
    plane: Plane,
    endpoints: Arc<Endpoints>,
    probe: Arc<Probe>,
}

impl Sight {
    pub(super) fn show(&self, config: &Arc<Config>, plane: &Plane, endpoints: &Arc<Endpoints>, probe: &Arc<Probe>) {
        self.0.get_or_init(|| Mesh {
            config: Arc::clone(config),
            plane: plane.clone(),
            endpoints: Arc::clone(endpoints),
            probe: Arc::clone(probe),
        });
    }

    fn mesh(&self) -> Result<&Mesh, Problem> {
        self.0.get().ok_or_else(|| {
            let detail = "this node has no mesh yet; its /readyz says what it waits for";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
        })
    }
}

#[derive(Clone)]
struct Api {
    client: Client,
    sight: Sight,
}

pub(super) fn routes(client: Client, sight: Sight) -> Router {
    Router::new()
        .route("/v1/mesh", get(mesh))
        .route("/v1/mesh/objects", get(objects))
        .route("/v1/mesh/ping", post(ping))
        .route("/v1/mesh/trace", get(trace))
        .with_state(Api { client, sight })
}

impl Api {
    async fn open(&self, headers: &HeaderMap, access: Access) -> Result<&Mesh, Problem> {
        self.client.authorize(headers, access, "").await?;
        self.sight.mesh()
    }
}

impl Mesh {
    /// All that there should be, and, where WireGuard does not say what there is, why not.
    async fn peers(&self) -> (Vec<PeerView>, Option<String>) {
        let (states, trouble) = match self.plane.peers().await {
            Ok(states) => (states, None),
            Err(error) => (Vec::new(), Some(chain(&error))),
        };
        let probed = self.endpoints.all();
        (self.plane.view(|view| explain::peers(view, &states, &probed, SystemTime::now())), trouble)
    }

    async fn objects(&self) -> Result<Vec<ObjectView>, Problem> {
        let links = Links::connect().map_err(failed)?;
        let made = links.objects().await.map_err(failed)?.into_iter();
        let mut objects: Vec<ObjectView> =
            made.map(|it| ObjectView { kind: it.kind.to_owned(), name: it.name, owner: it.owner }).collect();
        objects.extend(rules::TABLES.iter().map(|table| ObjectView {
            kind: "table".to_owned(),
            name: (*table).to_owned(),
            owner: "rules".to_owned(),
        }));
        objects.sort();
        Ok(objects)
    }
}

async fn mesh(State(api): State<Api>, headers: HeaderMap) -> Result<Json<MeshView>, Problem> {
    let mesh = api.open(&headers, Access::Read).await?;
    let (peers, trouble) = mesh.peers().await;
    Ok(Json(mesh.plane.view(|view| MeshView {
        node: mesh.config.node.clone(),
        interface: mesh.config.interface.clone(),
        backend: view.backend.to_owned(),
        mtu: view.mtu,
        repairs: view.repairs,
        trouble: trouble.or(view.trouble.clone()),
        peers,
    })))
}

async fn objects(State(api): State<Api>, headers: HeaderMap) -> Result<Json<Vec<ObjectView>>, Problem> {
    Ok(Json(api.open(&headers, Access::Read).await?.objects().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PingQuery {
    node: String,
    #[serde(default = "one")]
    count: usize,
    #[serde(default)]
    size: usize,
}

fn one() -> usize {
    1
}

async fn ping(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Result<Query<PingQuery>, QueryRejection>,
) -> Result<Json<PingView>, Problem> {
    // It sends packets, so it is no mere look; but who may look at the cluster may ask whether it works.
    let mesh = api.open(&headers, Access::Read).await?;
    let Query(PingQuery { node, count, size }) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    if !(1..=MOST_PROBES).contains(&count) || size > 65_535 {
        return Err(Problem::bad_request(format!("count is 1 to {MOST_PROBES}, and size at most 65535 bytes")));
    }
    let peer = mesh.endpoints.all().remove(&node);
    let peer = peer.ok_or_else(|| Problem::not_found(format!("node {node} is not in the mesh of this one")))?;
    let mut times_ms = Vec::with_capacity(count);
    for _ in 0..count {
        // One that is lost takes its whole patience, so a call ends within that times its count.
        let time = tokio::time::timeout(PATIENCE * 2, mesh.probe.ping(peer.address, size)).await.ok().flatten();
        times_ms.push(time.map(|time| time.as_secs_f64() * 1e3));
    }
    Ok(Json(PingView { from: mesh.config.node.clone(), to: node, address: peer.address, size, times_ms }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceQuery {
    from: std::net::IpAddr,
    to: std::net::IpAddr,
}

async fn trace(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Result<Query<TraceQuery>, QueryRejection>,
) -> Result<Json<Vec<StepView>>, Problem> {
    let mesh = api.open(&headers, Access::Read).await?;
    let Query(TraceQuery { from, to }) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let (peers, _) = mesh.peers().await;
    let names = mesh.objects().await?.into_iter().map(|object| object.name).collect();
    Ok(Json(mesh.plane.view(|view| explain::trace(view, &peers, &names, from, to))))
}

fn failed(error: crate::Error) -> Problem {
    tracing::error!(error = chain(&error), "the kernel's network cannot be read");
    Problem::internal()
}
