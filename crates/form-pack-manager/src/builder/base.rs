//! What a stage begins with: nothing, another stage, or an image.

use std::collections::HashMap;
use std::io::Read as _;
use std::rc::Rc;

use form_rootfs::Digest;
use formfile::Span;
use serde::Deserialize;

use super::remote::Remote;
use super::stage::Chain;
use super::{BuildError, Engine, find};
use crate::image::{Config, History, Layer};
use crate::layer::apply;
use crate::registry::{Reference, Repository};
use crate::store::{BlobInfo, BlobStore as _};
use crate::tree::{Kind, Node};

/// The most bytes of a manifest or a configuration.
pub(super) const MOST_DOCUMENT: u64 = 4 << 20;
/// As many as Docker takes; and a page of mount options names them all.
const MOST_LAYERS: usize = 127;

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct ImageConfig {
    #[serde(default)]
    config: Option<Config>,
    rootfs: RootFs,
    #[serde(default)]
    history: Option<Vec<History>>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// Where the blobs of an image are.
enum Home {
    /// Ours, which the project may read.
    Repository(Repository),
    /// A directory of the build context.
    Layout(String),
    /// Another registry.
    Remote(Box<Remote>),
}

impl Engine<'_, '_> {
    /// What `FROM name` of the stage with this number begins with.
    pub(super) fn base(&mut self, name: &str, span: Span, stage: usize) -> Result<Chain, BuildError> {
        if name == "scratch" {
            return Ok(Chain::scratch());
        }
        self.image(name, span, stage).map(|chain| (*chain).clone())
    }

    /// What `--from=name` of the stage with this number copies from.
    pub(super) fn image(&mut self, name: &str, span: Span, stage: usize) -> Result<Rc<Chain>, BuildError> {
        if let Some(found) = find(self.request.formfile, name, stage) {
            // They are built in order, and all that may be needed are.
            return self.done.get(&found).map(Rc::clone).ok_or_else(|| BuildError::NoStage(name.to_owned()));
        }
        if name.parse::<usize>().is_ok() {
            return Err(BuildError::at(
                span,
                format!("there is no stage {name} before this one"),
                "name one by its AS",
            ));
        }
        if let Some(suite) = name.strip_prefix("debian:")
            && !self.is_here("debian", suite)?
        {
            return self.debian(suite, span).map(Rc::new);
        }
        let (home, manifest) = if let Some(path) = name.strip_prefix("oci:") {
            let path = formfile::value::source_path(path, false, span)?;
            let index = self.context_file(&format!("{path}/index.json"), span)?;
            (Home::Layout(path), index)
        } else if is_foreign(name) {
            let (remote, manifest) = self.remote(name, span)?;
            (Home::Remote(Box::new(remote)), manifest)
        } else {
            self.ours(name, span)?
        };
        self.read_image(&home, manifest, name, span).map(Rc::new)
    }

    /// Whether the project has an image of its own that is called so.
    fn is_here(&self, name: &str, tag: &str) -> Result<bool, BuildError> {
        let repository = Repository::parse(&format!("{}/{name}", self.request.project));
        let (Ok(repository), Ok(reference)) = (repository, Reference::parse(tag)) else { return Ok(false) };
        Ok(self.names.manifest(&repository, &reference)?.is_some())
    }

    /// The manifest of an image in our own registry.
    fn ours(&self, name: &str, span: Span) -> Result<(Home, Vec<u8>), BuildError> {
        let (path, digest) = name.split_once('@').map_or((name, None), |(path, digest)| (path, Some(digest)));
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (path, crate::registry::LATEST),
        };
        let project = self.request.project;
        let full = if path.contains('/') { path.to_owned() } else { format!("{project}/{path}") };
        let hint = "name a stage before this one, a package of the project, or an image as PROJECT/NAME:TAG";
        let (Ok(repository), Ok(reference)) = (Repository::parse(&full), Reference::parse(digest.unwrap_or(tag)))
        else {
            return Err(BuildError::at(span, format!("`{name}` is no image"), hint));
        };
        if repository.project() != project {
            let hint = format!("tag or push it into the project {project}");
            return Err(BuildError::at(span, format!("`{name}` is not of the project {project}"), hint));
        }
        match self.names.manifest(&repository, &reference)? {
            Some(stored) => Ok((Home::Repository(repository), stored.bytes.to_vec())),
            None => Err(BuildError::at(span, format!("there is no image `{name}` here"), hint)),
        }
    }

    fn context_file(&self, path: &str, span: Span) -> Result<Vec<u8>, BuildError> {
        let missing = || {
            BuildError::at(
                span,
                format!("there is no file `{path}` in the build context"),
                "name the directory of an OCI layout",
            )
        };
        self.context.read(path, MOST_DOCUMENT).map_err(BuildError::Scratch)?.ok_or_else(missing)
    }

    /// A document of an image, by its descriptor.
    fn document(&self, home: &Home, descriptor: &Descriptor, span: Span) -> Result<Vec<u8>, BuildError> {
        if descriptor.size > MOST_DOCUMENT {
            return Err(bad(span, "a document of it is too large"));
        }
        let blob = self.fetched(home, descriptor, span)?;
        let mut bytes = Vec::new();
        let found = self.workshop.store().get(&blob.digest)?;
        let Some(found) = found else { return Err(bad(span, "one of its blobs is gone")) };
        found.reader.take(MOST_DOCUMENT).read_to_end(&mut bytes).map_err(BuildError::Scratch)?;
        Ok(bytes)
    }

    /// A blob of an image, in the store.
    fn fetched(&self, home: &Home, descriptor: &Descriptor, span: Span) -> Result<BlobInfo, BuildError> {
        let Ok(digest) = descriptor.digest.parse::<Digest>() else {
            return Err(bad(span, "it names a blob by no digest"));
        };
        let store = self.workshop.store();
        match home {
            Home::Repository(repository) => {
                if let Some(stored) = self.names.manifest(repository, &Reference::Digest(digest))? {
                    return Ok(store.put(&mut &stored.bytes[..], Some(&digest))?);
                }
                if !self.names.is_linked(repository, &digest)? {
                    return Err(bad(span, "it names a blob that its repository does not have"));
                }
                store.touch(&digest)?;
                store.head(&digest)?.ok_or_else(|| bad(span, "one of its blobs is gone"))
            }
            Home::Layout(path) => {
                let path = format!("{path}/blobs/{}/{}", digest.algorithm().name(), digest.hex());
                let Some(Node { kind: Kind::File(contents), .. }) = self.context.get(&path) else {
                    return Err(bad(span, &format!("there is no `{path}` in the build context")));
                };
                if contents.len != descriptor.size {
                    return Err(bad(span, "a blob of it has another length than it says"));
                }
                Ok(store.put(&mut contents.open(), Some(&digest))?)
            }
            Home::Remote(remote) => self.remote_blob(remote, &digest, descriptor.size, span),
        }
    }

    fn read_image(&mut self, home: &Home, mut manifest: Vec<u8>, name: &str, span: Span) -> Result<Chain, BuildError> {
        let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let mut depth = 0;
        // An index may hold an index; nobody makes three.
        while let Ok(Index { manifests }) = serde_json::from_slice::<Index>(&manifest)
            && !manifests.is_empty()
        {
            depth += 1;
            if depth > 3 {
                return Err(bad(span, "it is an index of indexes"));
            }
            let fits = |entry: &&Descriptor| {
                entry.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == arch)
            };
            let Some(entry) = manifests.iter().find(fits) else {
                return Err(bad(span, &format!("it has nothing for linux/{arch}")));
            };
            manifest = match (home, entry.digest.parse::<Digest>()) {
                (Home::Remote(remote), Ok(digest)) => self.remote_child(remote, &digest, span)?,
                _ => self.document(home, entry, span)?,
            };
        }
        let Ok(Manifest { config, layers }) = serde_json::from_slice::<Manifest>(&manifest) else {
            return Err(bad(span, "its manifest is not one of an image"));
        };
        let document = self.document(home, &config, span)?;
        let Ok(image) = serde_json::from_slice::<ImageConfig>(&document) else {
            return Err(bad(span, "its configuration is not one of an image"));
        };
        if image.rootfs.diff_ids.len() != layers.len() || layers.len() > MOST_LAYERS {
            return Err(bad(span, "its configuration has another number of layers than its manifest, or too many"));
        }
        let mut chain = Chain::scratch();
        for (descriptor, diff_id) in layers.iter().zip(&image.rootfs.diff_ids) {
            self.check_time()?;
            let Ok(diff_id) = diff_id.parse::<Digest>() else { return Err(bad(span, "it names a layer by no digest")) };
            let blob = self.fetched(home, descriptor, span)?;
            let file = self.workshop.expanded(&diff_id, &blob.digest, &descriptor.media_type)?;
            let number = chain.next();
            let diff = apply(&mut chain.tree, &file, number, self.workshop.limits())?;
            let diff = diff.with_parents(&chain.tree);
            chain.push(Layer { diff_id, blob, media_type: media_type(&descriptor.media_type) }, diff);
        }
        chain.config = image.config.unwrap_or_default();
        chain.history = image.history.unwrap_or_default();
        tracing::debug!(name, layers = layers.len(), entries = chain.tree.len(), "a base");
        Ok(chain)
    }
}

/// Whether it begins with the host of a registry.
fn is_foreign(name: &str) -> bool {
    name.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost")
}

/// In a manifest of ours Docker's names for layers have no place.
fn media_type(theirs: &str) -> String {
    let known = HashMap::from([
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
    ]);
    known.get(theirs).map_or(theirs, |ours| ours).to_owned()
}

pub(super) fn bad(span: Span, what: &str) -> BuildError {
    BuildError::at(span, format!("the image cannot be used: {what}"), "push it again, or take another one")
}
