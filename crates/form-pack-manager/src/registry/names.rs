//! What a repository holds: which blobs may be pulled from it, its manifests, its tags.
//!
//! ```text
//! repositories/PROJECT/NAME/_blobs/sha256/HEX                 empty: the blob was pushed or mounted here
//!                          /_manifests/sha256/HEX             its media type, a line's end, the manifest
//!                          /_tags/TAG                         the digest of a manifest; a Package's, then ` package`
//!                          /_referrers/sha256/HEX/sha256/HEX  of a subject, of a manifest: the descriptor that is listed
//! ```
//!
//! No part of a repository's name begins with `_`. Each is a document of its own, so a push costs what it changes.
//! Written in this order: links, the referrer's entry, the manifest, the tag; removed in the other: so a kill in between
//! leaves nothing that points at what is not there, and what is left over is the sweep's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use form_rootfs::Digest;
use serde_json::Value;

use super::manifest::Manifest;
use super::name::{Reference, Repository};
use crate::builder::Package;
use crate::store::{BlobStore as _, DirStore, Documents as _, StoreError};

pub(super) const ROOT: &str = "repositories";
/// The tag that a Package is the image of.
pub(crate) const LATEST: &str = "latest";

const OF_PACKAGE: &str = " package";

/// Manifests that are kept in memory, bytes.
const MOST_CACHED: usize = 16 << 20;

/// All repositories. Its calls block, but for [`Names::cached`].
#[derive(Clone)]
pub(crate) struct Names {
    pub(crate) store: DirStore,
    cache: Arc<Mutex<Cache>>,
}

/// A manifest as it was pushed.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

#[derive(Default)]
struct Cache {
    /// By repository and reference. Full, it starts anew: to know what was used last would cost every pull.
    found: HashMap<String, Arc<Stored>>,
    bytes: usize,
    /// How often something changed. What was read before a change is not kept after it.
    changes: u64,
}

impl Names {
    pub(crate) fn new(store: DirStore) -> Self {
        Self { store, cache: Arc::default() }
    }

    pub(super) fn cached(&self, repository: &Repository, reference: &Reference) -> Option<Arc<Stored>> {
        self.cache().found.get(&format!("{repository}@{reference}")).map(Arc::clone)
    }

    pub(crate) fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<Arc<Stored>>, StoreError> {
        let changes = self.cache().changes;
        let digest = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(tag) => self.tagged(repository, tag)?,
        };
        let Some(digest) = digest else { return Ok(None) };
        let Some(mut document) = self.store.read(&manifest(repository, &digest))? else { return Ok(None) };
        let end = document.iter().position(|byte| *byte == b'\n').unwrap_or(document.len());
        let media_type = String::from_utf8_lossy(document.get(..end).unwrap_or_default()).into_owned();
        document.drain(..document.len().min(end.saturating_add(1)));
        let stored = Arc::new(Stored { digest, media_type, bytes: document.into() });
        let mut cache = self.cache();
        if cache.changes == changes {
            if cache.bytes > MOST_CACHED {
                *cache = Cache { changes, ..Cache::default() };
            }
            cache.bytes = cache.bytes.saturating_add(stored.bytes.len()).saturating_add(1024);
            cache.found.insert(format!("{repository}@{reference}"), Arc::clone(&stored));
        }
        Ok(Some(stored))
    }

    /// The digest that a tag stands for.
    pub(super) fn tagged(&self, repository: &Repository, tag: &str) -> Result<Option<Digest>, StoreError> {
        Ok(self.tag_of(repository, tag)?.map(|(digest, _)| digest))
    }

    /// The digest that a tag stands for, and whether it is there only for a Package.
    pub(super) fn tag_of(&self, repository: &Repository, tag: &str) -> Result<Option<(Digest, bool)>, StoreError> {
        let document = self.store.read(&self::tag(repository, tag))?.unwrap_or_default();
        let text = String::from_utf8_lossy(&document);
        let (digest, is_package) = text.strip_suffix(OF_PACKAGE).map_or((&*text, false), |digest| (digest, true));
        Ok(digest.parse().ok().map(|digest| (digest, is_package)))
    }

    pub(crate) fn is_linked(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.store.read(&link(repository, digest))?.is_some())
    }

    /// Whether the blob is in this repository; if so, no sweep takes it for a while.
    pub(super) fn renew_link(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        self.store.renew(&link(repository, digest))
    }

    /// As [`Names::renew_link`], of a manifest.
    pub(super) fn renew_manifest(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        self.store.renew(&manifest(repository, digest))
    }

    /// Puts a blob that is in the store into a repository; `false`: it is not in the store.
    pub(super) fn link(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        // A sweep may be about to take it, of which nobody had a use until now.
        if !self.store.touch(digest)? {
            return Ok(false);
        }
        self.store.write(&link(repository, digest), b"")?;
        Ok(true)
    }

    pub(super) fn unlink(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        self.store.remove(&link(repository, digest), None)
    }

    pub(super) fn put_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        parsed: &Manifest,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        if let Some(subject) = &parsed.subject {
            let descriptor = parsed.as_referrer(digest, bytes.len()).to_string();
            self.store.write(&referrer(repository, subject, digest), descriptor.as_bytes())?;
        }
        let mut document = Vec::with_capacity(parsed.media_type.len().saturating_add(bytes.len()).saturating_add(1));
        document.extend_from_slice(parsed.media_type.as_bytes());
        document.push(b'\n');
        document.extend_from_slice(bytes);
        self.store.write(&manifest(repository, digest), &document)?;
        self.changed(repository, |_, stored| stored.digest == *digest);
        Ok(())
    }

    pub(super) fn put_tag(&self, repository: &Repository, tag: &str, digest: &Digest) -> Result<(), StoreError> {
        self.write_tag(repository, tag, &digest.to_string())
    }

    fn write_tag(&self, repository: &Repository, tag: &str, document: &str) -> Result<(), StoreError> {
        let written = self.store.write(&self::tag(repository, tag), document.as_bytes());
        self.changed(repository, |reference, _| reference == tag);
        written
    }

    pub(super) fn delete_tag(&self, repository: &Repository, tag: &str) -> Result<bool, StoreError> {
        let removed = self.store.remove(&self::tag(repository, tag), None);
        self.changed(repository, |reference, _| reference == tag);
        removed
    }

    /// Removes a manifest and the tags that stand for it; says which, or `None` if it is not here.
    pub(super) fn delete_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Vec<String>>, StoreError> {
        let Some(stored) = self.manifest(repository, &Reference::Digest(*digest))? else { return Ok(None) };
        let mut tags = self.tags(repository)?;
        let mut failed = None;
        tags.retain(|tag| match self.tagged(repository, tag) {
            Ok(tagged) => tagged == Some(*digest),
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        for tag in &tags {
            self.delete_tag(repository, tag)?;
        }
        let removed = self.store.remove(&manifest(repository, digest), None);
        self.changed(repository, |_, stored| stored.digest == *digest);
        let subject = Manifest::parse(&stored.media_type, &stored.bytes).ok().and_then(|parsed| parsed.subject);
        if let Some(subject) = subject {
            self.store.remove(&referrer(repository, &subject, digest), None)?;
        }
        Ok(removed?.then_some(tags))
    }

    /// Whether anything is in this repository.
    pub(super) fn exists(&self, repository: &Repository) -> Result<bool, StoreError> {
        for part in ["_manifests", "_tags", "_blobs"] {
            if !self.store.under(&format!("{ROOT}/{repository}/{part}"))?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// In the order of their bytes.
    pub(super) fn tags(&self, repository: &Repository) -> Result<Vec<String>, StoreError> {
        let tags = self.store.under(&format!("{ROOT}/{repository}/_tags"))?;
        let mut tags: Vec<String> =
            tags.into_iter().filter_map(|tag| Some(tag.name.rsplit_once('/')?.1.to_owned())).collect();
        tags.sort();
        Ok(tags)
    }

    /// The descriptors of the manifests that have `subject` for theirs, in the order of their digests.
    pub(super) fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Value>, StoreError> {
        let prefix = format!("{ROOT}/{repository}/_referrers/{}", path_of(subject));
        let mut entries: Vec<String> = self.store.under(&prefix)?.into_iter().map(|entry| entry.name).collect();
        entries.sort();
        let mut descriptors = Vec::new();
        for entry in entries {
            let Some(digest) = digest_at(&entry) else { continue };
            // A push that did not get to the manifest left only this.
            if self.store.read(&manifest(repository, &digest))?.is_none() {
                continue;
            }
            let document = self.store.read(&entry)?;
            descriptors.extend(document.and_then(|document| serde_json::from_slice::<Value>(&document).ok()));
        }
        Ok(descriptors)
    }

    /// Makes what was built the image `latest` of the repository of its name. It stays for as long as the Package does.
    pub(crate) fn publish(&self, repository: &Repository, package: &Package) -> Result<(), StoreError> {
        for blob in std::iter::once(&package.config).chain(package.layers.iter().map(|layer| &layer.blob)) {
            self.link(repository, &blob.digest)?;
        }
        let digest = package.manifest.digest;
        let Some(mut blob) = self.store.get(&digest)? else { return Ok(()) };
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut blob.reader, &mut bytes).map_err(StoreError::Source)?;
        let parsed = Manifest::parse("", &bytes)
            .map_err(|error| StoreError::Source(std::io::Error::other(format!("{error:?}"))))?;
        self.put_manifest(repository, &digest, &parsed, &bytes)?;
        self.write_tag(repository, LATEST, &format!("{digest}{OF_PACKAGE}"))
    }

    /// Forgets what changed. Called after the change: what is read from now on is new.
    pub(super) fn changed(&self, repository: &Repository, is_old: impl Fn(&str, &Stored) -> bool) {
        let mut cache = self.cache();
        cache.changes = cache.changes.wrapping_add(1);
        let mut freed = 0_usize;
        cache.found.retain(|key, stored| {
            let reference = key.strip_prefix(repository.as_str()).and_then(|rest| rest.strip_prefix('@'));
            let goes = reference.is_some_and(|reference| is_old(reference, stored));
            freed = freed.saturating_add(if goes { stored.bytes.len().saturating_add(1024) } else { 0 });
            !goes
        });
        cache.bytes = cache.bytes.saturating_sub(freed);
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn path_of(digest: &Digest) -> String {
    format!("{}/{}", digest.algorithm().name(), digest.hex())
}

/// The digest that a document's name ends with.
pub(super) fn digest_at(name: &str) -> Option<Digest> {
    let (rest, hex) = name.rsplit_once('/')?;
    let algorithm = rest.rsplit_once('/')?.1;
    format!("{algorithm}:{hex}").parse().ok()
}

fn link(repository: &Repository, digest: &Digest) -> String {
    format!("{ROOT}/{repository}/_blobs/{}", path_of(digest))
}

fn manifest(repository: &Repository, digest: &Digest) -> String {
    format!("{ROOT}/{repository}/_manifests/{}", path_of(digest))
}

fn tag(repository: &Repository, tag: &str) -> String {
    format!("{ROOT}/{repository}/_tags/{tag}")
}

fn referrer(repository: &Repository, subject: &Digest, digest: &Digest) -> String {
    format!("{ROOT}/{repository}/_referrers/{}/{}", path_of(subject), path_of(digest))
}
