//! Consoles, for people with a token.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use form_client::{Access, Client, Name};
use form_service::{CancellationToken, Problem};
use futures::{StreamExt as _, stream};
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;

use super::instances::Instances;

/// The machines whose consoles are shown, once they are taken up.
#[derive(Clone, Default)]
pub(super) struct Consoles(Arc<OnceLock<Arc<Instances>>>);

impl Consoles {
    pub(super) fn show(&self, instances: &Arc<Instances>) {
        self.0.get_or_init(|| Arc::clone(instances));
    }
}

#[derive(Clone)]
struct Api {
    client: Client,
    consoles: Consoles,
    shutdown: CancellationToken,
}

pub(super) fn routes(client: Client, consoles: Consoles, shutdown: CancellationToken) -> Router {
    Router::new().route("/v1/projects/{project}/instances/{name}/logs", get(logs)).with_state(Api {
        client,
        consoles,
        shutdown,
    })
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LogQuery {
    follow: bool,
    tail: Option<usize>,
}

async fn logs(
    State(api): State<Api>,
    Path((project, name)): Path<(String, String)>,
    query: Result<Query<LogQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    api.client.authorize(&headers, Access::Read, &project).await?;
    let Query(LogQuery { follow, tail }) = query.map_err(|error| Problem::bad_request(error.body_text()))?;
    let instances = api.consoles.0.get().ok_or_else(|| {
        let detail = "this node has not taken up its machines yet; its /readyz says what it waits for";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    })?;
    let machine = instances.machine(&Name { project: project.clone(), name: name.clone() });
    let machine =
        machine.ok_or_else(|| Problem::not_found(format!("instance {project}/{name} has no machine on this node")))?;
    let log = machine.logs(tail, follow).await.map_err(|error| {
        tracing::error!(error = form_service::run::chain(&error), "a console cannot be read");
        Problem::internal()
    })?;
    let pieces = stream::try_unfold(log, |mut log| async {
        Ok::<_, crate::Error>(log.next().await?.map(|bytes| (Bytes::from(bytes), log)))
    });
    let body = Body::from_stream(pieces.take_until(api.shutdown.cancelled_owned()));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}
