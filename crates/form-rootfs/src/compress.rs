use std::io::{self, Read, Write};

use crate::{Hasher, RawImage};

/// zstd's own default: on ext4 images, higher levels cost several times the time for a few percent.
const LEVEL: i32 = 3;

/// Compresses the raw image that `image` yields into `out`; returns what it must be once it is expanded again.
///
/// The same image gives the same bytes, for one version of zstd. Fails when `image` or `out` does.
pub fn compress_rootfs(mut image: impl Read, out: impl Write) -> io::Result<RawImage> {
    let mut hashed = Hasher::new(zstd::Encoder::new(out, LEVEL)?);
    io::copy(&mut image, &mut hashed)?;
    let (encoder, digest, size) = hashed.finish();
    encoder.finish()?.flush()?;
    Ok(RawImage { digest, size })
}
