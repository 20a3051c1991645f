use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::raw::{CHUNK, RawHasher, is_zero};
use crate::{Digest, RawImage};

/// zstd's own default: on ext4 images, higher levels cost several times the time for a few percent.
const LEVEL: i32 = 3;

/// A chunk of an image that is not all zeros, as it stands in a blob: a zstd frame of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// SHA-256 of the chunk.
    pub chunk: Digest,
    /// Where the frame starts in the blob.
    pub start: u64,
    /// How long it is.
    pub len: u64,
}

/// Compresses the raw image `image` into `out`; returns what it must be once it is expanded again, and its frames.
///
/// `known` may have the frame of a chunk from before; what it gives is not looked into. The same image gives the same
/// bytes, for one version of zstd. Holes of the file are not read; it must not change meanwhile.
pub fn compress_rootfs(
    image: &File,
    out: &mut impl Write,
    mut known: impl FnMut(&Digest) -> Option<Vec<u8>>,
) -> io::Result<(RawImage, Vec<Frame>)> {
    let size = image.metadata()?.len();
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    let mut raw = RawHasher::default();
    let mut frames = Vec::new();
    let mut buffer = vec![0; CHUNK];
    let zeros = compressor.compress(&buffer)?;
    let (mut at, mut written, mut data) = (0_u64, 0_u64, 0_u64);
    while at < size {
        let len = size.saturating_sub(at).min(CHUNK as u64);
        let end = at.saturating_add(len);
        if data < at {
            data = match seek(image, SeekFrom::Data(at)) {
                Ok(data) => data,
                // There is only a hole from here to the end.
                Err(Errno::NXIO) => size,
                Err(e) => return Err(e.into()),
            };
        }
        let chunk = buffer.get_mut(..usize::try_from(len).unwrap_or(CHUNK)).unwrap_or_default();
        if data >= end {
            chunk.fill(0);
        } else {
            image.read_exact_at(chunk, at)?;
        }
        at = end;
        let is_whole = chunk.len() == CHUNK;
        if data >= end && is_whole || is_zero(chunk) {
            raw.zeros(chunk);
            let short = if is_whole { None } else { Some(compressor.compress(chunk)?) };
            let frame = short.as_ref().unwrap_or(&zeros);
            out.write_all(frame)?;
            written = written.saturating_add(frame.len() as u64);
            continue;
        }
        let digest = raw.chunk(chunk);
        let frame = known(&digest).map_or_else(|| compressor.compress(chunk), Ok)?;
        out.write_all(&frame)?;
        frames.push(Frame { chunk: digest, start: written, len: frame.len() as u64 });
        written = written.saturating_add(frame.len() as u64);
    }
    out.flush()?;
    Ok((RawImage { digest: raw.finish(), size }, frames))
}
