//! Moves bytes: build contexts in, blobs out. What is wanted goes through form-state, not through here.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use form_client::{Access, Client};
use form_rootfs::Digest;
use form_service::{Peer, Problem};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;

use crate::registry::is_full;
use crate::store::{Blob, BlobStore as _, DirStore, StoreError};
use crate::stream::{self, WriteError};

#[derive(Clone)]
struct Api {
    client: Client,
    store: DirStore,
    /// The most bytes of a build context.
    context_bytes: u64,
    /// How long a body may pause.
    idle: Duration,
}

/// Bodies of any length: their limits are here.
pub(crate) fn streams(client: Client, store: DirStore, context_bytes: u64, idle: Duration) -> Router {
    Router::new()
        .route("/v1/projects/{project}/contexts", post(upload))
        .route("/v1/blobs/{digest}", get(download))
        .with_state(Api { client, store, context_bytes, idle })
}

/// Takes a tar; answers with the digest that a Build names it by.
async fn upload(
    State(api): State<Api>,
    Path(project): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    api.client.authorize(&headers, Access::Write, &project).await?;
    let most = api.context_bytes;
    let too_large = || {
        let text = format!("the build context is larger than the limit, {most} bytes; leave out what is not needed");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", text)
    };
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most) {
        return Err(too_large());
    }
    let body = Body::new(http_body_util::Limited::new(body, usize::try_from(most).unwrap_or(usize::MAX)));
    let store = api.store.clone();
    let writer = blocking(move || store.writer()).await?;
    let writer = match stream::write(body, writer, api.idle).await {
        Ok(writer) => writer,
        Err(WriteError::Out(error)) => return Err(failed(&error)),
        Err(error) => {
            let mut causes = std::iter::successors(Some(&error as &dyn std::error::Error), |cause| cause.source());
            if causes.any(|cause| cause.is::<http_body_util::LengthLimitError>()) {
                return Err(too_large());
            }
            let text = format!("the build context did not come whole: {}", form_service::run::chain(&error));
            return Err(Problem::bad_request(text));
        }
    };
    let blob = blocking(move || writer.commit(None)).await?;
    let digest = blob.digest.to_string();
    Ok((StatusCode::CREATED, Json(json!({"digest": digest, "size": blob.size}))).into_response())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
}

/// Gives a blob to another service of the cluster.
async fn download(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    Path(digest): Path<String>,
) -> Result<Response, Problem> {
    if peer.is_none_or(|Extension(peer)| peer.service != "vmm-service") {
        return Err(Problem::forbidden("blobs are for the cluster's own services, which show a certificate"));
    }
    let digest: Digest = digest.parse().map_err(|error| Problem::bad_request(format!("{digest:?}: {error}")))?;
    let blob = blocking(move || api.store.get(&digest)).await?;
    let Blob { size, reader } = blob.ok_or_else(|| Problem::not_found(format!("there is no blob {digest} here")))?;
    let mut response = stream::body(reader, size, api.idle).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    Ok(response)
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Problem {
    tracing::error!(error = form_service::run::chain(error), "a request failed");
    if is_full(error) {
        let text = "the disk of the package store is full; nothing was taken";
        return Problem::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", text);
    }
    Problem::internal()
}
