use std::sync::LazyLock;

use crate::Digest;

/// What of an image is hashed and compressed by itself.
pub(crate) const CHUNK: usize = 1 << 20;

static ZEROS: LazyLock<Digest> = LazyLock::new(|| Digest::of(&vec![0; CHUNK]));

/// What a root disk must be once it is expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawImage {
    /// SHA-256 of the SHA-256 of each MiB of the raw image, one after the other; the last may be shorter. Of a disk that
    /// is nearly empty, nothing has to be hashed but what is on it.
    pub digest: Digest,
    /// Length of the raw image in bytes.
    pub size: u64,
}

/// Makes [`RawImage::digest`], chunk by chunk.
#[derive(Default)]
pub(crate) struct RawHasher(Vec<u8>);

impl RawHasher {
    /// Of at most [`CHUNK`] bytes; only the last may have less.
    pub(crate) fn chunk(&mut self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.0.extend_from_slice(digest.as_bytes());
        digest
    }

    /// As [`RawHasher::chunk`], of bytes that are all zero.
    pub(crate) fn zeros(&mut self, bytes: &[u8]) {
        if bytes.len() == CHUNK {
            self.0.extend_from_slice(ZEROS.as_bytes());
        } else {
            self.chunk(bytes);
        }
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::of(&self.0)
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // memcmp of it with itself, one byte further: the fastest there is without a trick, also in a build for debugging.
    bytes.first().is_none_or(|first| *first == 0 && bytes.get(1..) == bytes.get(..bytes.len().saturating_sub(1)))
}
