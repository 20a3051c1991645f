//! Root disks: fetched once from a package store, kept by digest, and dropped when no machine is made from them.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use form_rootfs::{Digest, ExpandError, ParseDigestError, RawImage, expand_rootfs};
use form_service::Identity;
use form_types::v1::{PackageSpec, PackageStatus};
use futures::TryStreamExt as _;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::io::{StreamReader, SyncIoBridge};

const STORE: &str = "form-pack-manager";

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("root disks in {}", .path.display())]
    Dir { path: PathBuf, source: io::Error },
    #[error("setting up a client of the package store")]
    Setup(#[source] reqwest::Error),
    #[error("the package's root disk")]
    Digest(#[from] ParseDigestError),
    #[error("the package names no root disk and size")]
    Incomplete,
    #[error("no package store has blob {digest}; asked were {asked}")]
    NoSource { digest: String, asked: String },
    #[error("expanding a root disk")]
    Expand(#[from] ExpandError),
    #[error("expanding a root disk was cut off")]
    CutOff,
}

/// The directory of the root disks.
pub(super) struct Images {
    dir: PathBuf,
    identity: Identity,
    /// Held while a disk is fetched and until the machine that needs it is written down, so that no sweep comes between.
    busy: Mutex<()>,
}

impl Images {
    pub(super) fn open(dir: PathBuf, identity: &Identity) -> Result<Self, ImageError> {
        let fail = |source| ImageError::Dir { path: dir.clone(), source };
        // Packages are their projects' alone, and no machine's user opens one by name.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(fail)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).map_err(fail)?;
        let dir = dir.canonicalize().map_err(fail)?;
        Ok(Self { dir, identity: identity.clone(), busy: Mutex::new(()) })
    }

    pub(super) async fn lock(&self) -> MutexGuard<'_, ()> {
        self.busy.lock().await
    }

    /// The package's root disk, here on this node. Fetches it where it is not. To be called with the lock.
    pub(super) async fn ensure(&self, spec: &PackageSpec, status: &PackageStatus) -> Result<PathBuf, ImageError> {
        let (disk, sizes) = match (&spec.root_disk, &spec.sizes) {
            (Some(disk), Some(sizes)) => (disk, sizes),
            _ => return Err(ImageError::Incomplete),
        };
        let raw: Digest = disk.image_digest.parse()?;
        let path = self.dir.join(format!("{}.ext4", raw.hex()));
        // It got this name only once it was whole and on disk.
        if path.exists() {
            return Ok(path);
        }
        let image = RawImage { digest: raw, size: u64::from(sizes.disk_mib) << 20 };
        for source in &status.sources {
            match self.fetch(source, &disk.digest, &path, image).await {
                Ok(()) => return Ok(path),
                Err(error) => {
                    tracing::warn!(
                        source,
                        error = form_service::run::chain(&*error),
                        "a root disk cannot be had there"
                    );
                }
            }
        }
        Err(ImageError::NoSource { digest: disk.digest.clone(), asked: status.sources.join(", ") })
    }

    async fn fetch(
        &self,
        source: &str,
        digest: &str,
        path: &Path,
        image: RawImage,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let address = form_client::address_of(source)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(self.identity.client()?)
            .resolve(STORE, address)
            .no_proxy()
            .build()?;
        let url = format!("https://{STORE}:{}/v1/blobs/{digest}", address.port());
        let answer = http.get(url).send().await?.error_for_status()?;
        let stream = answer.bytes_stream().map_err(io::Error::other);
        let blob = SyncIoBridge::new(StreamReader::new(Box::pin(stream)));
        let out = path.to_owned();
        tokio::task::spawn_blocking(move || expand_rootfs(blob, &out, &image)).await??;
        Ok(())
    }

    /// Drops what no machine is made from. To be called with the lock.
    pub(super) fn sweep(&self, used: &HashSet<PathBuf>) {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => return tracing::warn!(%error, "root disks cannot be listed"),
        };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !used.contains(path)) {
            tracing::info!(path = %path.display(), "a root disk that no machine needs is dropped");
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "it cannot be dropped");
            }
        }
    }
}
