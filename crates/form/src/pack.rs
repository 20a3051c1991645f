//! Packages, and the images that they are.

use std::io;

use form_rootfs::{Digest, Hasher};
use form_types::{Kind as _, kinds};
use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::MultiProgress;
use oci_client::RegistryOperation;
use serde_json::Value;

use crate::api::{Api, Service};
use crate::cli::Pack;
use crate::error::Error;
use crate::output::say;
use crate::registry::{Descriptor, Repository};
use crate::{formfile, progress, run, verbs};

const LATEST: &str = "latest";
/// Blobs of an image that are moved at the same time.
const AT_ONCE: usize = 4;
/// How deep indexes may name indexes.
const MOST_DEPTH: usize = 4;

/// `api` is asked for where a cloud is needed.
pub(crate) async fn pack(api: impl FnOnce() -> Result<Api, Error>, args: Pack) -> Result<(), Error> {
    match args {
        Pack::Lint(args) => formfile::lint(args),
        Pack::Fmt(args) => formfile::format(args),
        Pack::Build(args) => run::build_package(api()?, args).await,
        Pack::Log { name, follow, project } => run::log(&api()?, &project.project, &name, follow).await,
        Pack::Cancel { name, project } => run::cancel(&api()?, &project.project, &name).await,
        Pack::List { project, output } => verbs::list_packages(api()?, project.project, output.output).await,
        Pack::Inspect { name, project } => verbs::inspect_package(api()?, project.project, name).await,
        Pack::Push { image, to, outside, project } => {
            let (api, image) = (api()?, Image::parse(&image, &project.project)?);
            let (from, to) = (image.repository(&api).await?, Repository::of(&to, &outside)?);
            to.log_in(RegistryOperation::Push).await?;
            let tag = to.asked().unwrap_or(&image.at).to_owned();
            let manifest = copy(&from, &image.at, &to, &tag).await?;
            say(format_args!("pushed {image} {manifest}"))
        }
        Pack::Pull { from, image, outside, project } => {
            let (api, from) = (api()?, Repository::of(&from, &outside)?);
            from.log_in(RegistryOperation::Pull).await?;
            let at = from.asked().unwrap_or(LATEST).to_owned();
            let named = match (&image, &from) {
                (Some(image), _) => image.clone(),
                (None, Repository::Theirs { reference, .. }) => {
                    let name = reference.repository().rsplit('/').next().unwrap_or_default();
                    if at.contains(':') { name.to_owned() } else { format!("{name}:{at}") }
                }
                (None, Repository::Ours { .. }) => return Err(Error::NoContext),
            };
            let image = Image::parse(&named, &project.project)?;
            let manifest = copy(&from, &at, &image.repository(&api).await?, &image.at).await?;
            say(format_args!("pulled {image} {manifest}"))
        }
        Pack::Tag { image, tags, project } => {
            let image = Image::parse(&image, &project.project)?;
            let repository = image.repository(&api()?).await?;
            let manifest = repository.manifest(&image.at).await?;
            for tag in &tags {
                repository.put_manifest(tag, &manifest).await?;
                say(format_args!("{}/{}:{tag} {}", image.project, image.name, Digest::of(&manifest.bytes)))?;
            }
            Ok(())
        }
        Pack::Rm { image, project } => rm(&api()?, &image, &project.project).await,
        Pack::Gc => gc(&api()?).await,
        Pack::History { image, project } => history(&api()?, &Image::parse(&image, &project.project)?).await,
        Pack::Verify { image, project } => verify(&api()?, &Image::parse(&image, &project.project)?).await,
    }
}

/// An image of the cloud's registry.
struct Image {
    project: String,
    name: String,
    /// A tag or a digest.
    at: String,
}

impl Image {
    /// `NAME`, `NAME:TAG`, `NAME@DIGEST`, each also as `PROJECT/NAME…`.
    fn parse(text: &str, project: &str) -> Result<Self, Error> {
        let (path, at) = match text.split_once('@') {
            Some((path, digest)) => {
                digest.parse::<Digest>().map_err(|error| Error::Usage(format!("{text}: {error}")))?;
                (path, digest)
            }
            None => text.split_once(':').unwrap_or((text, LATEST)),
        };
        let (project, name) = path.split_once('/').unwrap_or((project, path));
        if project.is_empty() || name.is_empty() || at.is_empty() {
            return Err(Error::Usage(format!("{text:?} names no image; write NAME, NAME:TAG or NAME@DIGEST")));
        }
        Ok(Self { project: project.to_owned(), name: name.to_owned(), at: at.to_owned() })
    }

    async fn repository(&self, api: &Api) -> Result<Repository, Error> {
        Ok(Repository::Ours { service: store(api).await?, name: format!("{}/{}", self.project, self.name) })
    }
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = if self.at.contains(':') { '@' } else { ':' };
        write!(f, "{}/{}{mark}{}", self.project, self.name, self.at)
    }
}

/// The package store.
pub(crate) async fn store(api: &Api) -> Result<Service, Error> {
    let nodes = api.list(form_types::KindInfo::find("Node").ok_or(Error::NoContext)?, "", "").await?;
    let url = nodes.items.iter().find_map(|node| node.pointer("/spec/pack_url")?.as_str());
    let url =
        url.ok_or_else(|| Error::Failed("no node says where its package store is; see `form status`".to_owned()))?;
    api.service("form-pack-manager", url)
}

/// Copies the image at `at` with all that it names; answers with its digest.
async fn copy(from: &Repository, at: &str, to: &Repository, tag: &str) -> Result<Digest, Error> {
    let bars = MultiProgress::new();
    let root = from.manifest(at).await?;
    let copied = Digest::of(&root.bytes);
    let (mut next, mut depth) = (root.descriptors("manifests")?, 0);
    let mut manifests = vec![(root, tag.to_owned())];
    while !next.is_empty() {
        depth += 1;
        if depth > MOST_DEPTH {
            return Err(Error::Failed("the image is an index of indexes of indexes, and too deep".to_owned()));
        }
        let mut below = Vec::new();
        for descriptor in next {
            let digest = descriptor.digest.to_string();
            let manifest = from.manifest(&digest).await?;
            below.extend(manifest.descriptors("manifests")?);
            manifests.push((manifest, digest));
        }
        next = below;
    }
    // Blobs before the manifests that name them, and manifests before their indexes.
    for (manifest, at) in manifests.iter().rev() {
        let blobs = [manifest.descriptors("config")?, manifest.descriptors("layers")?].concat();
        let blobs = blobs.into_iter().filter(|blob| !blob.is_foreign);
        let moved = futures::stream::iter(blobs.map(|blob| Ok(move_blob(from, to, blob, &bars))));
        moved.try_for_each_concurrent(AT_ONCE, |moved| moved).await?;
        to.put_manifest(at, manifest).await?;
    }
    Ok(copied)
}

async fn move_blob(from: &Repository, to: &Repository, blob: Descriptor, bars: &MultiProgress) -> Result<(), Error> {
    let bar = bars.add(progress::bytes(short(&blob.digest), blob.size));
    if to.has(&blob.digest).await? {
        bar.finish_with_message(format!("{} is there already", short(&blob.digest)));
        return Ok(());
    }
    let moved = bar.clone();
    let contents = from.blob(&blob).await?.inspect_ok(move |bytes| moved.inc(bytes.len() as u64));
    to.put_blob(&blob, Box::pin(contents)).await?;
    bar.finish();
    Ok(())
}

async fn rm(api: &Api, text: &str, project: &str) -> Result<(), Error> {
    let image = Image::parse(text, project)?;
    if text.contains([':', '@']) {
        let path = format!("/v2/{}/{}/manifests/{}", image.project, image.name, image.at);
        store(api).await?.send(|http, url| http.delete(url), &path).await?;
        return say(format_args!("{image} is gone"));
    }
    api.delete(kinds::Package::INFO, &image.project, &image.name).await?;
    say(format_args!("package {} is gone", image.name))
}

async fn gc(api: &Api) -> Result<(), Error> {
    let bar = progress::waiting("sweeping the package store");
    let answer = store(api).await?.post("/v1/sweeps", reqwest::Body::default()).await?;
    bar.finish_and_clear();
    let swept: Value = answer.json().await.map_err(|error| Error::Answer(error.to_string()))?;
    let count = |name: &str| swept.get(name).and_then(Value::as_u64).unwrap_or_default();
    say(format_args!(
        "freed {}: {} blobs, {} manifests, {} tags, {} uploads, {} builds",
        indicatif::BinaryBytes(count("bytes")),
        count("blobs"),
        count("manifests"),
        count("tags"),
        count("uploads"),
        count("builds")
    ))
}

/// The newest step first, as other tools show it.
async fn history(api: &Api, image: &Image) -> Result<(), Error> {
    let repository = image.repository(api).await?;
    let manifest = repository.manifest(&image.at).await?;
    let config = manifest.descriptors("config")?.into_iter().next();
    let config = config.ok_or_else(|| Error::Usage(format!("{image} is an index; name one of its manifests")))?;
    let mut text = Vec::new();
    let mut contents = repository.blob(&config).await?;
    while let Some(bytes) = contents.next().await {
        text.extend_from_slice(&bytes.map_err(|error| Error::Answer(error.to_string()))?);
        if text.len() as u64 > config.size {
            return Err(Error::Answer(format!("the configuration {} is longer than its manifest says", config.digest)));
        }
    }
    let json: Value = serde_json::from_slice(&text).map_err(|error| Error::Answer(error.to_string()))?;
    let mut layers = manifest.descriptors("layers")?.into_iter();
    let mut lines = Vec::new();
    for step in json.get("history").and_then(Value::as_array).into_iter().flatten() {
        let is_empty = step.get("empty_layer").and_then(Value::as_bool).unwrap_or_default();
        let layer = if is_empty { None } else { layers.next() };
        let by = step.get("created_by").and_then(Value::as_str).unwrap_or("(not said)");
        lines.push(match layer {
            Some(layer) => {
                format!("{:<19}  {:>10}  {by}", short(&layer.digest), indicatif::BinaryBytes(layer.size).to_string())
            }
            None => format!("{:<19}  {:>10}  {by}", "", "-"),
        });
    }
    // An image need not say; the layers are there all the same.
    lines.extend(layers.map(|layer| {
        format!("{:<19}  {:>10}  (not said)", short(&layer.digest), indicatif::BinaryBytes(layer.size).to_string())
    }));
    say(format_args!("{:<19}  {:>10}  STEP", "LAYER", "SIZE"))?;
    lines.iter().rev().try_for_each(say)
}

async fn verify(api: &Api, image: &Image) -> Result<(), Error> {
    let repository = image.repository(api).await?;
    let bars = MultiProgress::new();
    let mut wrong = Vec::new();
    let (mut parts, mut bytes) = (0_u64, 0_u64);
    let mut next = vec![(image.at.clone(), 0)];
    while let Some((at, depth)) = next.pop() {
        // Asked for by its digest, a manifest is compared with it.
        let manifest = repository.manifest(&at).await?;
        (parts, bytes) = (parts + 1, bytes + manifest.bytes.len() as u64);
        if depth < MOST_DEPTH {
            next.extend(
                manifest.descriptors("manifests")?.into_iter().map(|below| (below.digest.to_string(), depth + 1)),
            );
        }
        for blob in [manifest.descriptors("config")?, manifest.descriptors("layers")?].concat() {
            if blob.is_foreign {
                continue;
            }
            let found = read(&repository, &blob, &bars).await;
            (parts, bytes) = (parts + 1, bytes + blob.size);
            match found {
                Ok((digest, size)) if digest == blob.digest && size == blob.size => {}
                Ok((digest, size)) => {
                    wrong.push(format!("{}: it has {size} bytes and the digest {digest}", blob.digest))
                }
                Err(error) => wrong.push(format!("{}: {}", blob.digest, form_service::run::chain(&error))),
            }
        }
    }
    if wrong.is_empty() {
        return say(format_args!("{image} is whole: {parts} parts, {}", indicatif::BinaryBytes(bytes)));
    }
    Err(Error::Failed(format!("{image} is damaged; push it again:\n{}", wrong.join("\n"))))
}

async fn read(repository: &Repository, blob: &Descriptor, bars: &MultiProgress) -> Result<(Digest, u64), Error> {
    let bar = bars.add(progress::bytes(short(&blob.digest), blob.size));
    let mut hasher = Hasher::with(blob.digest.algorithm(), io::sink());
    let mut contents = repository.blob(blob).await?;
    while let Some(bytes) = contents.next().await {
        let bytes = bytes.map_err(|error| Error::Failed(format!("it broke off: {error}")))?;
        io::Write::write_all(&mut hasher, &bytes).map_err(Error::file("its digest"))?;
        bar.inc(bytes.len() as u64);
    }
    bar.finish_and_clear();
    let (_, digest, size) = hasher.finish();
    Ok((digest, size))
}

/// As much of a digest as people compare.
fn short(digest: &Digest) -> String {
    digest.to_string().chars().take(19).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_with_or_without_its_project_and_tag() {
        let digest = Digest::of(b"x");
        for (text, shown) in [
            ("web", "p/web:latest".to_owned()),
            ("web:v1", "p/web:v1".to_owned()),
            ("q/web:v1", "q/web:v1".to_owned()),
            (&format!("web@{digest}"), format!("p/web@{digest}")),
        ] {
            assert_eq!(Image::parse(text, "p").unwrap().to_string(), shown);
        }
        for text in ["", ":v1", "web:", "/web", "web@v1", "web@sha256:12"] {
            assert!(Image::parse(text, "p").is_err(), "{text}");
        }
    }
}
