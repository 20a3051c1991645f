//! Images where they are kept: in the cloud's own registry, or in another one.
//!
//! Both speak the OCI distribution-spec. Ours is asked by the name in its certificate and with the cloud's token; for
//! another, oci-client does it, with the logins that docker, podman and skopeo have left in their files.

use std::pin::Pin;

use bytes::Bytes;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use form_rootfs::Digest;
use futures::{Stream, StreamExt as _};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use reqwest::header;
use serde_json::Value;

use crate::api::Service;
use crate::cli::Outside;
use crate::error::Error;

/// What a client of a registry takes for a manifest.
const KINDS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

pub(crate) type Contents = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// A manifest, byte for byte.
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
    pub(crate) json: Value,
}

impl Manifest {
    fn new(media_type: String, bytes: Bytes) -> Result<Self, Error> {
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|error| Error::Answer(format!("a manifest: {error}")))?;
        Ok(Self { media_type, bytes, json })
    }

    /// The members of `config` and `layers`, or of `manifests`.
    pub(crate) fn descriptors(&self, member: &str) -> Result<Vec<Descriptor>, Error> {
        match self.json.get(member) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(Descriptor::parse).collect(),
            Some(one) => Ok(vec![Descriptor::parse(one)?]),
        }
    }
}

/// What a manifest says of a blob, or an index of a manifest.
#[derive(Clone, Debug)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Kept elsewhere, for it may not be distributed.
    pub(crate) is_foreign: bool,
}

impl Descriptor {
    fn parse(json: &Value) -> Result<Self, Error> {
        let text = |name| json.get(name).and_then(Value::as_str).unwrap_or_default();
        let digest = text("digest");
        let digest = digest
            .parse()
            .map_err(|error| Error::Answer(format!("a manifest names the digest {digest:?}: {error}")))?;
        let kind = text("mediaType");
        Ok(Self {
            digest,
            size: json.get("size").and_then(Value::as_u64).unwrap_or_default(),
            is_foreign: kind.contains(".nondistributable.") || kind.contains(".rootfs.foreign."),
        })
    }
}

/// A repository.
pub(crate) enum Repository {
    Ours { service: Service, name: String },
    Theirs { client: Client, reference: Reference, auth: RegistryAuth },
}

impl Repository {
    /// The repository that `image` is in, of another registry.
    pub(crate) fn of(image: &str, outside: &Outside) -> Result<Self, Error> {
        let wrong =
            |error: &dyn std::fmt::Display| Error::Usage(format!("{image}: {error}; write HOST/REPOSITORY:TAG"));
        // Without a host it would be one of a public registry, which nobody has named.
        let host = image.split_once('/').map_or("", |(host, _)| host);
        if !host.contains(['.', ':']) && host != "localhost" {
            return Err(wrong(&"it names no registry"));
        }
        let reference: Reference = image.parse().map_err(|error| wrong(&error))?;
        let mut config = ClientConfig::default();
        if outside.plain_http {
            config.protocol = ClientProtocol::Http;
        }
        if let Some(path) = &outside.ca_file {
            let data = std::fs::read(path).map_err(Error::file(path))?;
            config.extra_root_certificates.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
        let auth = match docker_credential::get_credential(reference.registry()) {
            Ok(DockerCredential::UsernamePassword(user, password)) => RegistryAuth::Basic(user, password),
            Ok(DockerCredential::IdentityToken(_)) => {
                let text = format!("the login for {} is an identity token", reference.registry());
                return Err(Error::Usage(format!("{text}; log in with a password or an access token")));
            }
            Err(
                CredentialRetrievalError::ConfigNotFound
                | CredentialRetrievalError::ConfigReadError
                | CredentialRetrievalError::NoCredentialConfigured,
            ) => RegistryAuth::Anonymous,
            Err(error) => return Err(Error::Usage(format!("the login for {}: {error}", reference.registry()))),
        };
        Ok(Self::Theirs { client: Client::new(config), reference, auth })
    }

    fn reference(base: &Reference, at: &str) -> Reference {
        let (registry, repository) = (base.registry().to_owned(), base.repository().to_owned());
        match at.parse::<Digest>() {
            Ok(digest) => Reference::with_digest(registry, repository, digest.to_string()),
            Err(_) => Reference::with_tag(registry, repository, at.to_owned()),
        }
    }

    /// The tag or digest that the name of another registry's image ended in.
    pub(crate) fn asked(&self) -> Option<&str> {
        match self {
            Self::Ours { .. } => None,
            Self::Theirs { reference, .. } => reference.digest().or_else(|| reference.tag()),
        }
    }

    /// The manifest at a tag or digest.
    pub(crate) async fn manifest(&self, at: &str) -> Result<Manifest, Error> {
        let manifest = match self {
            Self::Ours { service, name } => {
                let path = format!("/v2/{name}/manifests/{at}");
                let answer = service.send(|http, url| http.get(url).header(header::ACCEPT, KINDS.join(", ")), &path);
                let answer = answer.await?;
                let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
                let kind = kind.unwrap_or_default().to_owned();
                Manifest::new(kind, answer.bytes().await.map_err(|error| Error::Answer(error.to_string()))?)?
            }
            Self::Theirs { client, reference, auth } => {
                let pulled = client.pull_manifest_raw(&Self::reference(reference, at), auth, &KINDS).await;
                let (bytes, _) = pulled.map_err(|error| theirs(reference, &error))?;
                let mut manifest = Manifest::new(String::new(), bytes)?;
                let own = manifest.json.get("mediaType").and_then(Value::as_str);
                let [image, index, ..] = KINDS;
                let guess = if manifest.json.get("manifests").is_some() { index } else { image };
                manifest.media_type = own.unwrap_or(guess).to_owned();
                manifest
            }
        };
        match at.parse::<Digest>() {
            Ok(digest) if digest.algorithm().digest(&manifest.bytes) != digest => {
                Err(Error::Failed(format!("the manifest {at} is not what its digest says")))
            }
            _ => Ok(manifest),
        }
    }

    pub(crate) async fn put_manifest(&self, at: &str, manifest: &Manifest) -> Result<(), Error> {
        let bytes = manifest.bytes.clone();
        match self {
            Self::Ours { service, name } => {
                let path = format!("/v2/{name}/manifests/{at}");
                let put = |http: &reqwest::Client, url: String| {
                    http.put(url).header(header::CONTENT_TYPE, &manifest.media_type).body(bytes)
                };
                service.send(put, &path).await.map(drop)
            }
            Self::Theirs { client, reference, .. } => {
                let kind = manifest.media_type.parse().map_err(|_| Error::Answer("a manifest's media type".into()))?;
                let pushed = client.push_manifest_raw(&Self::reference(reference, at), bytes, kind).await;
                pushed.map(drop).map_err(|error| theirs(reference, &error))
            }
        }
    }

    pub(crate) async fn has(&self, digest: &Digest) -> Result<bool, Error> {
        match self {
            Self::Ours { service, name } => {
                let path = format!("/v2/{name}/blobs/{digest}");
                match service.send(|http, url| http.head(url), &path).await {
                    Ok(_) => Ok(true),
                    Err(Error::Refused(problem)) if problem.status == 404 => Ok(false),
                    Err(error) => Err(error),
                }
            }
            Self::Theirs { client, reference, .. } => {
                let found = client.blob_exists(reference, &digest.to_string()).await;
                found.map_err(|error| theirs(reference, &error))
            }
        }
    }

    pub(crate) async fn blob(&self, blob: &Descriptor) -> Result<Contents, Error> {
        Ok(match self {
            Self::Ours { service, name } => {
                let answer = service.get(&format!("/v2/{name}/blobs/{}", blob.digest), &[]).await?;
                Box::pin(answer.bytes_stream().map(|bytes| bytes.map_err(std::io::Error::other)))
            }
            Self::Theirs { client, reference, .. } => {
                let digest = blob.digest.to_string();
                let pulled = client.pull_blob_stream(reference, digest.as_str()).await;
                pulled.map_err(|error| theirs(reference, &error))?.stream
            }
        })
    }

    pub(crate) async fn put_blob(&self, blob: &Descriptor, contents: Contents) -> Result<(), Error> {
        match self {
            Self::Ours { service, name } => {
                let path = format!("/v2/{name}/blobs/uploads/?digest={}", blob.digest);
                let body = reqwest::Body::wrap_stream(contents);
                let post =
                    |http: &reqwest::Client, url| http.post(url).header(header::CONTENT_LENGTH, blob.size).body(body);
                service.send(post, &path).await.map(drop)
            }
            Self::Theirs { client, reference, .. } => {
                let contents = contents.map(|bytes| bytes.map_err(OciDistributionError::from));
                let digest = blob.digest.to_string();
                let pushed = client.push_blob_stream(reference, contents, &digest, Some(blob.size)).await;
                pushed.map(drop).map_err(|error| theirs(reference, &error))
            }
        }
    }

    /// Shows the login, where there is one, before many requests do so at once.
    pub(crate) async fn log_in(&self, access: oci_client::RegistryOperation) -> Result<(), Error> {
        match self {
            Self::Ours { .. } => Ok(()),
            Self::Theirs { client, reference, auth } => {
                let login = client.auth(reference, auth, access).await;
                login.map(drop).map_err(|error| theirs(reference, &error))
            }
        }
    }
}

fn theirs(reference: &Reference, error: &OciDistributionError) -> Error {
    let hint = match error {
        OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
            "; log in with docker, podman or skopeo login"
        }
        OciDistributionError::RegistryError { envelope, .. }
            if envelope.errors.iter().any(|error| matches!(error.code, OciErrorCode::Unauthorized)) =>
        {
            "; log in with docker, podman or skopeo login"
        }
        _ => "",
    };
    Error::Failed(format!("{}: {}{hint}", reference.registry(), form_service::run::chain(error)))
}
