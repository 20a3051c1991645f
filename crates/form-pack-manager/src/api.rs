//! Moves bytes: build contexts in, blobs out. What is wanted goes through form-state, not through here.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use form_client::{Access, Client};
use form_rootfs::Digest;
use form_service::{Peer, Problem};
use form_types::kinds;
use form_types::v1::build_status::Phase;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::bytes::BytesMut;

use crate::builds::Known;
use crate::logs::Logs;
use crate::registry::is_full;
use crate::secrets::{self, Secrets};
use crate::store::{Blob, BlobStore as _, DirStore, StoreError};
use crate::stream::{self, WriteError};

#[derive(Clone)]
struct Api {
    client: Client,
    store: DirStore,
    logs: Logs,
    secrets: Secrets,
    builds: Known,
    /// The most bytes of a build context.
    context_bytes: u64,
    /// How long a body may pause.
    idle: Duration,
}

/// Bodies of any length: their limits are here.
pub(crate) fn streams(
    client: Client,
    store: DirStore,
    logs: Logs,
    secrets: Secrets,
    builds: Known,
    context_bytes: u64,
    idle: Duration,
) -> Router {
    Router::new()
        .route("/v1/projects/{project}/contexts", post(upload))
        .route("/v1/projects/{project}/secrets", post(keep))
        .route("/v1/projects/{project}/builds/{name}/log", get(log))
        .route("/v1/blobs/{digest}", get(download))
        .with_state(Api { client, store, logs, secrets, builds, context_bytes, idle })
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

/// Takes a secret; answers with the handle that a Build names it by.
async fn keep(
    State(api): State<Api>,
    Path(project): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    api.client.authorize(&headers, Access::Write, &project).await?;
    let read = tokio::time::timeout(api.idle, axum::body::to_bytes(body, secrets::MOST_BYTES)).await;
    let Ok(Ok(contents)) = read else {
        let text = format!("the secret did not come whole, or has more than {} bytes", secrets::MOST_BYTES);
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", text));
    };
    let handle = api.secrets.put(&project, contents.to_vec()).ok_or_else(|| {
        let text = "too many secrets of this project wait for their builds; wait until those have ended";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many", text)
    })?;
    Ok((StatusCode::CREATED, Json(json!({"handle": handle}))).into_response())
}

#[derive(Deserialize)]
struct Follow {
    #[serde(default)]
    follow: bool,
}

/// What a build wrote; with `?follow=true`, until it has ended.
async fn log(
    State(api): State<Api>,
    Path((project, name)): Path<(String, String)>,
    Query(Follow { follow }): Query<Follow>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    api.client.authorize(&headers, Access::Read, &project).await?;
    // From before the first look on, so that no change is missed.
    let (mut builds, mut begun) = (api.builds.subscribe(), api.logs.begun());
    loop {
        let build = match api.client.get::<kinds::Build>(&project, &name).await {
            Ok(build) => build,
            Err(form_client::Error::NotFound(_)) => {
                return Err(Problem::not_found(format!("there is no build {name} in {project}")));
            }
            Err(error) => return Err(failed(&error)),
        };
        let has_ended = matches!(build.status.phase(), Phase::Succeeded | Phase::Failed | Phase::Cancelled);
        match api.logs.read(&build.meta.uid).map_err(|error| failed(&error))? {
            // Of before a kill: it is begun anew soon.
            Some((_, None)) if follow && !has_ended => {}
            Some((file, growing)) => {
                let growing = growing.filter(|_| follow);
                let lines = futures::stream::try_unfold((tokio::fs::File::from_std(file), growing), piece);
                return Ok(
                    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(lines)).into_response()
                );
            }
            None if follow && !has_ended => {}
            None => return Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], "").into_response()),
        }
        tokio::select! {
            _ = builds.changed() => {}
            _ = begun.changed() => {}
        }
    }
}

type Growing = (tokio::fs::File, Option<watch::Receiver<u64>>);

/// The next piece of a log.
async fn piece((mut file, mut growing): Growing) -> io::Result<Option<(Bytes, Growing)>> {
    use tokio::io::AsyncReadExt as _;
    loop {
        // Before the read: what comes after it is seen as a change.
        if let Some(growing) = &mut growing {
            growing.borrow_and_update();
        }
        let mut buffer = BytesMut::with_capacity(16 << 10);
        if file.read_buf(&mut buffer).await? > 0 {
            return Ok(Some((buffer.freeze(), (file, growing))));
        }
        match &mut growing {
            None => return Ok(None),
            Some(more) => {
                if more.changed().await.is_err() {
                    growing = None;
                }
            }
        }
    }
}

/// Gives a blob to another service of the cluster.
async fn download(
    State(api): State<Api>,
    peer: Option<Extension<Peer>>,
    Path(digest): Path<String>,
) -> Result<Response, Problem> {
    let peer = peer.map(|Extension(peer)| peer).filter(|peer| peer.service == "vmm-service");
    let peer =
        peer.ok_or_else(|| Problem::forbidden("blobs are for the cluster's own services, which show a certificate"))?;
    api.client.admit(&peer).await?;
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
