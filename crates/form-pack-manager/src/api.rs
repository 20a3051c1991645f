//! Moves bytes: build contexts in, blobs out. What is wanted goes through form-state, not through here.

use std::io::{self, Read};

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use form_client::{Access, Client};
use form_rootfs::Digest;
use form_service::{Peer, Problem};
use futures::TryStreamExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::store::{Blob, BlobStore as _, DirStore, StoreError};

const CHUNK: usize = 256 << 10;
/// Chunks of a blob that wait for a slow reader.
const AHEAD: usize = 4;

#[derive(Clone)]
struct Api {
    client: Client,
    store: DirStore,
}

pub(crate) fn routes(client: Client, store: DirStore) -> Router {
    Router::new()
        .route("/v1/projects/{project}/contexts", post(upload))
        .route("/v1/blobs/{digest}", get(download))
        .with_state(Api { client, store })
}

/// Takes a tar; answers with the digest that a Build names it by.
async fn upload(
    State(api): State<Api>,
    Path(project): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    api.client.authorize(&headers, Access::Write, &project).await?;
    let stream = body.into_data_stream().map_err(io::Error::other);
    let mut reader = SyncIoBridge::new(StreamReader::new(stream));
    let put = tokio::task::spawn_blocking(move || api.store.put(&mut reader, None));
    match put.await {
        Ok(Ok(blob)) => {
            let digest = blob.digest.to_string();
            Ok((StatusCode::CREATED, Json(json!({"digest": digest, "size": blob.size}))).into_response())
        }
        Ok(Err(StoreError::Source(error))) => {
            let text =
                format!("the build context did not come whole, or is too large: {}", form_service::run::chain(&error));
            Err(Problem::bad_request(text))
        }
        Ok(Err(error)) => Err(failed(&error)),
        Err(error) => Err(failed(&error)),
    }
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
    let found = tokio::task::spawn_blocking(move || api.store.get(&digest)).await;
    let blob = found.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    let Blob { size, reader } = blob.ok_or_else(|| Problem::not_found(format!("there is no blob {digest} here")))?;
    let mut response = Body::from_stream(ReceiverStream::new(chunks(reader))).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    Ok(response)
}

/// Reads on a thread that may block, no further ahead than a few chunks.
fn chunks(mut reader: Box<dyn Read + Send>) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = reader.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
            let end = matches!(read, Ok(0) | Err(_));
            let item = read.map(|_| Bytes::from(chunk));
            if matches!(item, Ok(ref chunk) if chunk.is_empty()) || sender.blocking_send(item).is_err() || end {
                return;
            }
        }
    });
    receiver
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Problem {
    tracing::error!(error = form_service::run::chain(error), "a request failed");
    let is_full = |cause: &(dyn std::error::Error + 'static)| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    };
    if std::iter::successors(Some(error), |cause| cause.source()).any(is_full) {
        let text = "the disk of the package store is full; nothing was taken";
        return Problem::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", text);
    }
    Problem::internal()
}
