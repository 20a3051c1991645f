//! What a manifest says of itself (image-spec: manifest.md, image-index.md; Docker's schema 2 has the same shape).

use form_rootfs::Digest;
use http::StatusCode;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Error;

/// The most bytes of a manifest, as the specification asks registries to take.
pub(super) const MOST_BYTES: u64 = 4 << 20;

const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest or an index, as far as a registry has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    /// Its config and layers, without those that are never pushed.
    pub(crate) blobs: Vec<Digest>,
    /// The manifests that an index names.
    pub(crate) manifests: Vec<Digest>,
    /// The manifest that it says something about.
    pub(crate) subject: Option<Digest>,
    artifact_type: Option<String>,
    annotations: Option<Value>,
}

/// What tells the kinds apart. Only this much is read twice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    annotations: Option<Map<String, Value>>,
}

impl Manifest {
    /// `content_type`: what it was sent as; empty: it says itself what it is.
    pub(crate) fn parse(content_type: &str, bytes: &[u8]) -> Result<Self, Error> {
        let invalid = |error: &dyn std::fmt::Display| Error::bad("MANIFEST_INVALID", format!("the manifest: {error}"));
        let kind: Kind = serde_json::from_slice(bytes).map_err(|error| invalid(&error))?;
        if kind.schema_version != 2 {
            return Err(invalid(&"schemaVersion is not 2; manifests of Docker's schema 1 are not taken"));
        }
        let sent_as = content_type.split(';').next().unwrap_or_default().trim();
        let guess = if kind.manifests.is_some() { OCI_INDEX } else { OCI_IMAGE };
        let own = kind.media_type.as_deref();
        let media_type = if sent_as.is_empty() { own.unwrap_or(guess) } else { sent_as };
        if own.is_some_and(|own| own != media_type) {
            return Err(invalid(&format_args!("its mediaType is not its Content-Type, {media_type}")));
        }
        let mut manifest = Self {
            media_type: media_type.to_owned(),
            blobs: Vec::new(),
            manifests: Vec::new(),
            subject: None,
            artifact_type: None,
            annotations: kind.annotations.map(Value::Object),
        };
        let subject;
        match media_type {
            OCI_IMAGE | DOCKER_IMAGE => {
                let image: ImageManifest = serde_json::from_slice(bytes).map_err(|error| invalid(&error))?;
                for descriptor in std::iter::once(image.config()).chain(image.layers()) {
                    if is_pushed(descriptor) {
                        manifest.blobs.push(digest_of(descriptor)?);
                    }
                }
                let own = image.artifact_type().as_ref().map(ToString::to_string).filter(|own| !own.is_empty());
                manifest.artifact_type = Some(own.unwrap_or_else(|| image.config().media_type().to_string()));
                subject = image.subject().clone();
            }
            OCI_INDEX | DOCKER_INDEX => {
                let index: ImageIndex = serde_json::from_slice(bytes).map_err(|error| invalid(&error))?;
                manifest.manifests = index.manifests().iter().map(digest_of).collect::<Result<_, _>>()?;
                manifest.artifact_type =
                    index.artifact_type().as_ref().map(ToString::to_string).filter(|own| !own.is_empty());
                subject = index.subject().clone();
            }
            other => {
                let text = format!(
                    "{other:?} is no manifest that is known here; send {OCI_IMAGE}, {OCI_INDEX}, {DOCKER_IMAGE} or {DOCKER_INDEX}"
                );
                return Err(Error::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "MANIFEST_INVALID", text));
            }
        }
        manifest.subject = subject.as_ref().map(digest_of).transpose()?;
        Ok(manifest)
    }

    /// How the list of its subject's referrers shows it (distribution-spec, "Listing Referrers").
    pub(super) fn as_referrer(&self, digest: &Digest, size: usize) -> Value {
        let mut descriptor = json!({"mediaType": self.media_type, "digest": digest.to_string(), "size": size});
        let more = [
            ("artifactType", self.artifact_type.clone().map(Value::String)),
            ("annotations", self.annotations.clone()),
        ];
        if let Some(members) = descriptor.as_object_mut() {
            members.extend(more.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        }
        descriptor
    }
}

/// Layers that may not be distributed stay where their `urls` say.
fn is_pushed(descriptor: &Descriptor) -> bool {
    let kind = descriptor.media_type().to_string();
    !kind.contains(".nondistributable.") && !kind.contains(".rootfs.foreign.")
}

fn digest_of(descriptor: &Descriptor) -> Result<Digest, Error> {
    super::name::digest(descriptor.digest().as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(kind: &str, contents: &str) -> Value {
        json!({"mediaType": kind, "digest": Digest::of(contents.as_bytes()).to_string(), "size": contents.len()})
    }

    fn parse(content_type: &str, manifest: &Value) -> Result<Manifest, Error> {
        Manifest::parse(content_type, manifest.to_string().as_bytes())
    }

    #[test]
    fn an_image_of_either_dialect_names_its_config_and_the_layers_that_are_pushed() {
        for (kind, foreign) in [
            (OCI_IMAGE, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
            (DOCKER_IMAGE, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        ] {
            let image = json!({"schemaVersion": 2, "mediaType": kind, "config": descriptor("a/config", "c"),
                "layers": [descriptor("a/layer", "1"), descriptor(foreign, "2")]});
            let found = parse(kind, &image).unwrap();
            assert_eq!(found.blobs, [Digest::of(b"c"), Digest::of(b"1")]);
            assert_eq!((found.subject, found.artifact_type.as_deref()), (None, Some("a/config")));
            assert_eq!(parse("", &image).unwrap(), found, "it says itself what it is");
            assert_eq!(parse(&format!("{kind}; charset=utf-8"), &image).unwrap(), found);
        }
    }

    #[test]
    fn an_index_names_manifests_and_no_blobs() {
        for kind in [OCI_INDEX, DOCKER_INDEX] {
            let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [descriptor(OCI_IMAGE, "m")]});
            let found = parse(kind, &index).unwrap();
            assert_eq!((found.manifests, found.blobs, found.artifact_type), (vec![Digest::of(b"m")], vec![], None));
        }
    }

    #[test]
    fn a_referrer_is_shown_with_its_type_and_its_annotations() {
        let image = json!({"schemaVersion": 2, "mediaType": OCI_IMAGE, "artifactType": "a/sbom", "layers": [],
            "config": descriptor("application/vnd.oci.empty.v1+json", "{}"), "subject": descriptor(OCI_IMAGE, "s"),
            "annotations": {"by": "us"}});
        let found = parse(OCI_IMAGE, &image).unwrap();
        assert_eq!(found.subject, Some(Digest::of(b"s")));
        let shown = found.as_referrer(&Digest::of(b"me"), 7);
        assert_eq!(
            (&shown["artifactType"], &shown["annotations"]["by"], &shown["size"]),
            (&json!("a/sbom"), &json!("us"), &json!(7))
        );
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let image = json!({"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": descriptor("a/b", "c"), "layers": []});
        assert!(parse(OCI_INDEX, &image).is_err(), "it is another than it was sent as");
        assert!(parse("text/plain", &json!({"schemaVersion": 2})).is_err());
        assert!(
            parse(OCI_IMAGE, &json!({"schemaVersion": 1, "config": descriptor("a/b", "c"), "layers": []})).is_err()
        );
        assert!(parse(OCI_IMAGE, &json!({"schemaVersion": 2, "layers": []})).is_err());
        assert!(parse(OCI_IMAGE, &json!({"schemaVersion": 2, "layers": [], "config": {"mediaType": "a/b", "digest": "sha256:../..", "size": 1}})).is_err());
        for noise in [&b""[..], b"{", b"[]", b"\xff", b"null"] {
            assert!(Manifest::parse(OCI_IMAGE, noise).is_err());
        }
    }
}
