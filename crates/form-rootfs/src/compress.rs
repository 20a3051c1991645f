use std::io::{self, BufReader, Read, Write};

use crate::{Hasher, RawImage};

/// zstd's own default: on ext4 images, higher levels cost several times the time for a few percent.
const LEVEL: i32 = 3;
const CHUNK: usize = 1 << 20;

/// Compresses the raw image that `image` yields into `out`; returns what it must be once it is expanded again.
///
/// The same image gives the same bytes, for one version of zstd. Fails when `image` or `out` does.
pub fn compress_rootfs(image: impl Read, out: impl Write) -> io::Result<RawImage> {
    let mut hashed = Hasher::new(zstd::Encoder::new(out, LEVEL)?);
    // Large pieces, which `io::copy` takes from a `BufReader` only: zstd has a price for each call.
    io::copy(&mut BufReader::with_capacity(CHUNK, image), &mut hashed)?;
    let (encoder, digest, size) = hashed.finish();
    encoder.finish()?.flush()?;
    Ok(RawImage { digest, size })
}
