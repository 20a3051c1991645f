//! An OCI registry: the distribution-spec v1.1, whole, over the same store that builds write to.
//!
//! [`name`] reads what a request is about, [`auth`] who sends it, [`manifest`] what a manifest names. [`names`] keeps
//! what a repository holds, [`uploads`] what is on its way in, and [`sweep`] frees what nothing holds any more.

mod auth;
mod error;
mod manifest;
mod name;
mod names;
pub(crate) mod packages;
pub(crate) mod sweep;
mod uploads;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use form_client::{Access, Client};
use form_rootfs::{Algorithm, Digest};
use futures::StreamExt as _;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::json;
use uuid::Uuid;

pub(crate) use error::{Error, is_full};
pub(crate) use name::{Reference, Repository};
pub(crate) use names::{LATEST, Names};
pub(crate) use uploads::Limits;

use self::auth::Gate;
use self::manifest::{MOST_BYTES, Manifest, OCI_INDEX};
use self::name::Target;
use self::names::Stored;
use self::packages::Packages;
use self::uploads::{Upload, Uploads, joined, location, out_of_order, range};
use crate::store::{Blob, BlobStore as _, StoreError};
use crate::stream;

const DOCKER_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Descriptors in one answer, of which each is below a manifest's 4 MiB and most are of a few hundred bytes.
const REFERRERS_PAGE: usize = 1000;

#[derive(Clone)]
pub(crate) struct Registry(Arc<Inner>);

struct Inner {
    gate: Gate,
    names: Names,
    uploads: Uploads,
    packages: Packages,
}

impl Registry {
    pub(crate) fn new(client: Client, names: Names, packages: Packages, limits: Limits) -> Self {
        Self(Arc::new(Inner { gate: Gate::new(client), names, uploads: Uploads::new(limits), packages }))
    }

    /// What is under `/v2/`. Its bodies are streams: their limits are here.
    pub(crate) fn routes(&self) -> Router {
        Router::new()
            .route("/v2/", get(support))
            .route("/v2", get(support))
            .route("/v2/token", get(token))
            .route("/v2/{*path}", any(serve))
            .with_state(self.clone())
    }

    /// Drops abandoned uploads; says how many.
    pub(crate) fn expire_uploads(&self) -> usize {
        self.0.uploads.expire()
    }
}

async fn support(State(registry): State<Registry>, request: Request) -> Result<Response, Error> {
    registry.0.gate.known(&request.into_parts().0).await?;
    let version = HeaderName::from_static("docker-distribution-api-version");
    Ok(([(version, "registry/2.0")], axum::Json(json!({}))).into_response())
}

async fn token(State(registry): State<Registry>, request: Request) -> Result<Response, Error> {
    registry.0.gate.token(&request.into_parts().0).await
}

async fn serve(
    State(registry): State<Registry>,
    Path(path): Path<String>,
    request: Request,
) -> Result<Response, Error> {
    let (asked, body) = request.into_parts();
    let (repository, target) = Target::parse(&path)?;
    let is_read = matches!(asked.method, Method::GET | Method::HEAD) && !matches!(target, Target::Upload(_));
    let access = if is_read { Access::Read } else { Access::Write };
    registry.0.gate.admit(&asked, access, &repository).await?;
    let ask = Ask { query: Query::of(&asked), registry: registry.0, repository, asked };
    if is_read {
        return ask.answer(target, body).await;
    }
    // On a task of its own: where the client hangs up, a write still comes to its end, and what was received stays.
    tokio::spawn(ask.answer(target, body)).await.map_err(|error| Error::internal(&error))?
}

/// A request that may be answered.
struct Ask {
    registry: Arc<Inner>,
    repository: Repository,
    asked: Parts,
    query: Query,
}

/// The query of a request, in order.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(asked: &Parts) -> Self {
        Self(form_urlencoded::parse(asked.uri.query().unwrap_or_default().as_bytes()).into_owned().collect())
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    fn digest(&self) -> Result<Option<Digest>, Error> {
        self.get("digest").map(name::digest).transpose()
    }
}

impl Ask {
    async fn answer(self, target: Target, body: Body) -> Result<Response, Error> {
        let is_head = self.asked.method == Method::HEAD;
        match (self.asked.method.as_str(), target) {
            ("GET" | "HEAD", Target::Manifest(reference)) => self.manifest(reference, is_head).await,
            ("PUT", Target::Manifest(reference)) => self.put_manifest(reference, body).await,
            ("DELETE", Target::Manifest(reference)) => self.delete_manifest(reference).await,
            ("GET" | "HEAD", Target::Blob(digest)) => self.blob(digest, is_head).await,
            ("DELETE", Target::Blob(digest)) => self.delete_blob(digest).await,
            ("POST", Target::Uploads) => self.start(body).await,
            ("GET", Target::Upload(id)) => self.status(id),
            ("PATCH", Target::Upload(id)) => self.chunk(id, body).await,
            ("PUT", Target::Upload(id)) => self.finish(id, body).await,
            ("DELETE", Target::Upload(id)) => {
                self.registry.uploads.cancel(&self.repository, id)?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            ("GET", Target::Tags) => self.tags().await,
            ("GET", Target::Referrers(subject)) => self.referrers(subject).await,
            (method, _) => {
                let text = format!("{method} is no way to ask for {}", self.asked.uri.path());
                Err(Error::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", text))
            }
        }
    }

    /// Runs what blocks on a thread that may.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Names, &Repository) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Error> {
        let (names, repository) = (self.registry.names.clone(), self.repository.clone());
        joined(tokio::task::spawn_blocking(move || work(&names, &repository)).await)
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.asked.headers.get(name)?.to_str().ok()
    }

    /// "Pulling manifests".
    async fn manifest(&self, reference: Reference, is_head: bool) -> Result<Response, Error> {
        let stored = match self.registry.names.cached(&self.repository, &reference) {
            Some(stored) => stored,
            None => {
                let wanted = reference.clone();
                let found = self.blocking(move |names, repository| names.manifest(repository, &wanted)).await?;
                found.ok_or_else(|| {
                    let text = format!("there is no {reference} in {}", self.repository);
                    Error::unknown("MANIFEST_UNKNOWN", text)
                })?
            }
        };
        let Stored { digest, media_type, bytes } = &*stored;
        let body = if is_head { Body::empty() } else { Body::from(bytes.clone()) };
        if !is_head {
            pulled("manifest", bytes.len() as u64);
        }
        let response = Response::builder()
            .header(header::CONTENT_TYPE, media_type)
            .header(header::CONTENT_LENGTH, bytes.len())
            .header(header::ETAG, format!("\"{digest}\""))
            .header(DOCKER_DIGEST, digest.to_string());
        response.body(body).map_err(|error| Error::internal(&error))
    }

    /// "Pushing Manifests".
    async fn put_manifest(&self, reference: Reference, body: Body) -> Result<Response, Error> {
        let bytes = self.whole(body).await?;
        let parsed = Manifest::parse(self.header(header::CONTENT_TYPE).unwrap_or_default(), &bytes)?;
        let mut tags = self.query.all("tag").map(name::tag).collect::<Result<Vec<_>, _>>()?;
        let more_tags = tags.clone();
        let digest = match &reference {
            Reference::Tag(tag) => {
                tags.push(tag.clone());
                // Beside the tag, a client may say by which digest it will ask.
                self.query.digest()?.unwrap_or_else(|| Digest::of(&bytes))
            }
            Reference::Digest(digest) => *digest,
        };
        let found = digest.algorithm().digest(&bytes);
        if found != digest {
            return Err(Error::bad("DIGEST_INVALID", format!("the manifest has the digest {found}, and not {digest}")));
        }
        let subject = parsed.subject;
        let size = bytes.len() as u64;
        let is_sparse = self.registry.uploads.limits().sparse;
        self.blocking(move |names, repository| {
            for blob in &parsed.blobs {
                if !names.renew_link(repository, blob)? && !is_sparse {
                    return Ok(Err(*blob));
                }
            }
            for manifest in &parsed.manifests {
                if !names.renew_manifest(repository, manifest)? && !is_sparse {
                    return Ok(Err(*manifest));
                }
            }
            names.put_manifest(repository, &digest, &parsed, &bytes)?;
            tags.iter().try_for_each(|tag| names.put_tag(repository, tag, &digest))?;
            Ok(Ok(()))
        })
        .await?
        .map_err(|missing| {
            let text = format!("the manifest names {missing}, which is not in {}; push it first", self.repository);
            Error::unknown("MANIFEST_BLOB_UNKNOWN", text)
        })?;
        pushed("manifest");
        metrics::counter!("form_registry_bytes_total", "direction" => "in").increment(size);
        let mut response = self.created(&format!("manifests/{digest}"), digest)?;
        if let Some(subject) = subject {
            set(&mut response, HeaderName::from_static("oci-subject"), &subject.to_string())?;
        }
        if !more_tags.is_empty() {
            set(&mut response, HeaderName::from_static("oci-tag"), &more_tags.join(", "))?;
        }
        Ok(response)
    }

    /// The body of a manifest.
    async fn whole(&self, body: Body) -> Result<Vec<u8>, Error> {
        let idle = self.registry.uploads.limits().idle;
        let mut stream = body.into_data_stream();
        let mut bytes = Vec::new();
        while let Some(next) = tokio::time::timeout(idle, stream.next()).await.map_err(|_| {
            Error::new(StatusCode::REQUEST_TIMEOUT, "MANIFEST_INVALID", "nothing came for too long; send it again")
        })? {
            let next = next
                .map_err(|_| Error::bad("SIZE_INVALID", "the body ended before its Content-Length; send it again"))?;
            if bytes.len().saturating_add(next.len()) as u64 > MOST_BYTES {
                return Err(Error::too_large("the manifest", MOST_BYTES));
            }
            bytes.extend_from_slice(&next);
        }
        Ok(bytes)
    }

    /// "Deleting tags", "Deleting Manifests".
    async fn delete_manifest(&self, reference: Reference) -> Result<Response, Error> {
        let wanted = reference.clone();
        let tags = self.blocking(move |names, repository| match wanted {
            Reference::Tag(tag) => Ok(names.delete_tag(repository, &tag)?.then(|| vec![tag])),
            Reference::Digest(digest) => names.delete_manifest(repository, &digest),
        });
        let tags = tags.await?.ok_or_else(|| {
            Error::unknown("MANIFEST_UNKNOWN", format!("there is no {reference} in {}", self.repository))
        })?;
        if tags.iter().any(|tag| tag == LATEST) {
            self.registry.packages.untagged(&self.repository).await?;
        }
        Ok(StatusCode::ACCEPTED.into_response())
    }

    /// "Pulling blobs", with the ranges of RFC 9110, section 14.
    async fn blob(&self, digest: Digest, is_head: bool) -> Result<Response, Error> {
        let unknown = || Error::unknown("BLOB_UNKNOWN", format!("there is no blob {digest} in {}", self.repository));
        if is_head {
            // Who asks is about to push a manifest that names it.
            let found = self.blocking(move |names, repository| {
                if names.renew_link(repository, &digest)? { names.store.head(&digest) } else { Ok(None) }
            });
            let size = found.await?.ok_or_else(unknown)?.size;
            return answer_blob(StatusCode::OK, &digest, size, Body::empty()).map_err(|error| Error::internal(&error));
        }
        let asked = self.header(header::RANGE).and_then(|text| http_range_header::parse_range_header(text).ok());
        let found = self.blocking(move |names, repository| {
            if !names.is_linked(repository, &digest)? {
                return Ok(None);
            }
            let Some(size) = names.store.head(&digest)?.map(|info| info.size) else { return Ok(None) };
            // What is no range is as if it were not there; several at once may be answered by all of it.
            let part = match asked.map(|asked| asked.validate(size)) {
                Some(Ok(parts)) if parts.len() == 1 => parts.into_iter().next(),
                Some(Err(_)) => return Ok(Some(Err(size))),
                _ => None,
            };
            let start = part.as_ref().map_or(0, |part| *part.start());
            Ok(names.store.get_from(&digest, start)?.map(|blob| Ok((blob, part))))
        });
        let (Blob { size, reader }, part) = found.await?.ok_or_else(unknown)?.map_err(|size| {
            let text = format!("the blob has {size} bytes, and the range lies outside of them");
            Error::new(StatusCode::RANGE_NOT_SATISFIABLE, "UNSUPPORTED", text)
                .with(header::CONTENT_RANGE, &format!("bytes */{size}"))
        })?;
        let (status, length) = match &part {
            Some(part) => (StatusCode::PARTIAL_CONTENT, part.end().saturating_sub(*part.start()).saturating_add(1)),
            None => (StatusCode::OK, size),
        };
        pulled("blob", length);
        let body = stream::body(reader, length, self.registry.uploads.limits().idle);
        let mut response = answer_blob(status, &digest, length, body).map_err(|error| Error::internal(&error))?;
        if let Some(part) = part {
            set(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", part.start(), part.end()))?;
        }
        Ok(response)
    }

    /// "Deleting Blobs": from this repository. The bytes go when no repository has them.
    async fn delete_blob(&self, digest: Digest) -> Result<Response, Error> {
        if self.blocking(move |names, repository| names.unlink(repository, &digest)).await? {
            return Ok(StatusCode::ACCEPTED.into_response());
        }
        Err(Error::unknown("BLOB_UNKNOWN", format!("there is no blob {digest} in {}", self.repository)))
    }

    /// "Obtain a session ID", "Single POST", "Mounting a blob from another repository".
    async fn start(&self, body: Body) -> Result<Response, Error> {
        if let (Some(mount), Some(from)) = (self.query.get("mount"), self.query.get("from")) {
            let (digest, from) = (name::digest(mount)?, Repository::parse(from)?);
            if self.registry.gate.may_read(&self.asked, &from).await {
                let mounted = self.blocking(move |names, repository| {
                    Ok(names.renew_link(&from, &digest)? && names.link(repository, &digest)?)
                });
                if mounted.await? {
                    metrics::counter!("form_registry_mounts_total").increment(1);
                    return self.created(&format!("blobs/{digest}"), digest);
                }
            }
        } else if let Some(digest) = self.query.digest()? {
            let (store, limits) = (self.registry.names.store.clone(), self.registry.uploads.limits());
            let (upload, received) =
                Upload::new(digest.algorithm()).receive(&store, body, self.content_length(), limits).await;
            received?;
            return self.keep(upload, digest).await;
        }
        let algorithm = match self.query.get("digest-algorithm") {
            Some(text) => text.parse().map_err(|error| Error::bad("DIGEST_INVALID", format!("{text:?}: {error}")))?,
            None => Algorithm::Sha256,
        };
        let id = self.registry.uploads.start(&self.repository, algorithm)?;
        self.at(StatusCode::ACCEPTED, id, 0)
    }

    fn status(&self, id: Uuid) -> Result<Response, Error> {
        self.at(StatusCode::NO_CONTENT, id, self.registry.uploads.size(&self.repository, id)?)
    }

    /// "Pushing a blob in chunks".
    async fn chunk(&self, id: Uuid, body: Body) -> Result<Response, Error> {
        let (upload, received) = self.receive(id, body, None).await?;
        let size = upload.as_ref().map(|upload| upload.size);
        self.registry.uploads.put_back(id, upload);
        received?;
        self.at(StatusCode::ACCEPTED, id, size.unwrap_or_default())
    }

    /// The closing PUT, with the last chunk, all of it, or nothing.
    async fn finish(&self, id: Uuid, body: Body) -> Result<Response, Error> {
        let digest = self.query.digest()?;
        let digest = digest.ok_or_else(|| Error::bad("DIGEST_INVALID", "say which blob this was: ?digest=DIGEST"))?;
        let (upload, received) = self.receive(id, body, Some(digest)).await?;
        if received.is_err() {
            self.registry.uploads.put_back(id, upload);
            received?;
            return Err(Error::unavailable());
        }
        let kept = self.keep(upload, digest).await;
        self.registry.uploads.put_back(id, None);
        kept
    }

    /// Takes the body of a PATCH, or of a PUT that says the blob's digest. Not even begun, the upload stays as it was.
    async fn receive(
        &self,
        id: Uuid,
        body: Body,
        digest: Option<Digest>,
    ) -> Result<(Option<Upload>, Result<(), Error>), Error> {
        let Inner { names, uploads, .. } = &*self.registry;
        let mut upload = uploads.take(&self.repository, id)?;
        let length = match self.chunk_length(id, upload.size) {
            Ok(length) => length,
            Err(error) => {
                uploads.put_back(id, Some(upload));
                return Err(error);
            }
        };
        if let Some(digest) = &digest {
            upload.expect(digest);
        }
        Ok(upload.receive(&names.store, body, length, uploads.limits()).await)
    }

    /// How long the chunk is, where that is said; an error where its Content-Range is not what comes next.
    fn chunk_length(&self, id: Uuid, size: u64) -> Result<Option<u64>, Error> {
        let length = self.content_length();
        let Some(text) = self.header(header::CONTENT_RANGE) else { return Ok(length) };
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
        let bounds = text.split_once('-').and_then(|(first, last)| Some((number(first)?, number(last)?)));
        let Some((first, last)) = bounds.filter(|(first, last)| first <= last) else {
            let text = format!("Content-Range: {text:?} is not FIRST-LAST");
            return Err(out_of_order(&text, &self.repository, id, size));
        };
        if first != size {
            let text = format!("the chunk begins at {first}, and the next byte is {size}");
            return Err(out_of_order(&text, &self.repository, id, size));
        }
        let said = last.saturating_sub(first).saturating_add(1);
        if length.is_some_and(|length| length != said) {
            return Err(Error::bad("SIZE_INVALID", "the chunk's Content-Range is not as long as its Content-Length"));
        }
        Ok(Some(said))
    }

    fn content_length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.parse().ok()
    }

    /// Makes what was received a blob of this repository.
    async fn keep(&self, upload: Option<Upload>, digest: Digest) -> Result<Response, Error> {
        let upload = upload.ok_or_else(Error::unavailable)?;
        upload.commit(&self.registry.names.store, digest).await?;
        if !self.blocking(move |names, repository| names.link(repository, &digest)).await? {
            return Err(Error::unavailable());
        }
        pushed("blob");
        self.created(&format!("blobs/{digest}"), digest)
    }

    fn created(&self, what: &str, digest: Digest) -> Result<Response, Error> {
        let mut response = StatusCode::CREATED.into_response();
        set(&mut response, header::LOCATION, &format!("/v2/{}/{what}", self.repository))?;
        set(&mut response, DOCKER_DIGEST, &digest.to_string())?;
        Ok(response)
    }

    /// Where an upload is.
    fn at(&self, status: StatusCode, id: Uuid, size: u64) -> Result<Response, Error> {
        let mut response = status.into_response();
        set(&mut response, header::LOCATION, &location(&self.repository, id))?;
        set(&mut response, header::RANGE, &range(size))?;
        set(&mut response, HeaderName::from_static("docker-upload-uuid"), &id.to_string())?;
        Ok(response)
    }

    /// "Listing Tags".
    async fn tags(&self) -> Result<Response, Error> {
        let mut tags = self.blocking(|names, repository| names.tags(repository)).await?;
        if tags.is_empty() && !self.blocking(|names, repository| names.exists(repository)).await? {
            return Err(Error::unknown("NAME_UNKNOWN", format!("there is no repository {}", self.repository)));
        }
        if let Some(last) = self.query.get("last") {
            tags.drain(..tags.partition_point(|tag| tag.as_str() <= last));
        }
        let most = self.query.get("n").map(|text| {
            text.parse::<usize>().map_err(|_| Error::bad("UNSUPPORTED", format!("n={text:?} is no number of tags")))
        });
        let most = most.transpose()?.unwrap_or(usize::MAX);
        let is_cut = tags.len() > most;
        tags.truncate(most);
        let next = tags.last().filter(|_| is_cut).map(|last| {
            let query = form_urlencoded::Serializer::new(String::new())
                .append_pair("n", &most.to_string())
                .append_pair("last", last)
                .finish();
            format!("</v2/{}/tags/list?{query}>; rel=\"next\"", self.repository)
        });
        let mut response = axum::Json(json!({"name": self.repository.as_str(), "tags": tags})).into_response();
        if let Some(next) = next {
            set(&mut response, header::LINK, &next)?;
        }
        Ok(response)
    }

    /// "Listing Referrers".
    async fn referrers(&self, subject: Digest) -> Result<Response, Error> {
        let mut found = self.blocking(move |names, repository| names.referrers(repository, &subject)).await?;
        let filter = self.query.get("artifactType");
        if let Some(kind) = filter {
            found.retain(|descriptor| descriptor.get("artifactType").is_some_and(|own| own == kind));
        }
        let digest_of = |descriptor: &serde_json::Value| -> String {
            descriptor.get("digest").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
        };
        if let Some(last) = self.query.get("last") {
            found.retain(|descriptor| digest_of(descriptor).as_str() > last);
        }
        let is_cut = found.len() > REFERRERS_PAGE;
        found.truncate(REFERRERS_PAGE);
        let next = found.last().filter(|_| is_cut).map(|last| {
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.append_pair("last", &digest_of(last));
            if let Some(kind) = filter {
                query.append_pair("artifactType", kind);
            }
            format!("</v2/{}/referrers/{subject}?{}>; rel=\"next\"", self.repository, query.finish())
        });
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found});
        let mut response = axum::Json(index).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(OCI_INDEX));
        if filter.is_some() {
            set(&mut response, HeaderName::from_static("oci-filters-applied"), "artifactType")?;
        }
        if let Some(next) = next {
            set(&mut response, header::LINK, &next)?;
        }
        Ok(response)
    }
}

fn answer_blob(status: StatusCode, digest: &Digest, length: u64, body: Body) -> http::Result<Response> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, length)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(DOCKER_DIGEST, digest.to_string())
        .body(body)
}

fn set(response: &mut Response, name: HeaderName, value: &str) -> Result<(), Error> {
    let value = HeaderValue::from_str(value).map_err(|error| Error::internal(&error))?;
    response.headers_mut().insert(name, value);
    Ok(())
}

fn pulled(what: &'static str, bytes: u64) {
    metrics::counter!("form_registry_pulls_total", "what" => what).increment(1);
    metrics::counter!("form_registry_bytes_total", "direction" => "out").increment(bytes);
}

fn pushed(what: &'static str) {
    metrics::counter!("form_registry_pushes_total", "what" => what).increment(1);
}
