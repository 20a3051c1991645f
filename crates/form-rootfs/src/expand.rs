use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::{Digest, Hasher, RawImage};

/// Expands the compressed root disk `blob` into a sparse file at `out`, and proves that it is `expected`.
///
/// `out` appears whole, verified and on disk, or not at all: the work happens in `out` with `.partial` added, which the
/// next call for the same `out` takes over after a crash. Blocks of zeros become holes. No more than
/// `expected.size` bytes are ever written, whatever `blob` expands to.
///
/// Blocks; call it from a thread that may.
pub fn expand_rootfs(blob: impl Read, out: &Path, expected: &RawImage) -> Result<(), ExpandError> {
    let partial = Partial::create(out)?;
    let mut sink = Hasher::new(SparseWriter { file: &partial.file, at: 0 });
    let mut image = zstd::Decoder::new(blob).map_err(ExpandError::Read)?;

    let mut buffer = vec![0; CHUNK];
    loop {
        let chunk = match fill(&mut image, &mut buffer).map_err(ExpandError::Read)? {
            [] => break,
            chunk => chunk,
        };
        if sink.size().saturating_add(chunk.len() as u64) > expected.size {
            return Err(ExpandError::TooLong { expected: expected.size });
        }
        sink.write_all(chunk).map_err(partial.write_error())?;
    }

    let (_, digest, size) = sink.finish();
    if size != expected.size {
        return Err(ExpandError::TooShort { expected: expected.size, found: size });
    }
    if digest != expected.digest {
        return Err(ExpandError::Corrupt { expected: Box::new(expected.digest), found: Box::new(digest) });
    }
    partial.publish(out, size)
}

/// Why a root disk was not expanded. Nothing is at the wanted path then.
#[derive(Debug, thiserror::Error)]
pub enum ExpandError {
    /// The blob could not be read, or is not zstd.
    #[error("the root disk blob cannot be decompressed")]
    Read(#[source] io::Error),
    /// The file could not be written.
    #[error("cannot write the root disk to {}", path.display())]
    Write {
        /// The file, or the directory that holds it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another writer is expanding to the same path right now.
    #[error("{} is being written by someone else; wait for it to finish", .0.display())]
    Busy(PathBuf),
    /// The blob holds more than it should.
    #[error("the root disk is longer than the {expected} bytes it should have; fetch the package again")]
    TooLong {
        /// Bytes that the package promises.
        expected: u64,
    },
    /// The blob holds less than it should.
    #[error("the root disk has {found} bytes and should have {expected}; fetch the package again")]
    TooShort {
        /// Bytes that the package promises.
        expected: u64,
        /// Bytes that the blob held.
        found: u64,
    },
    /// The blob holds something else.
    #[error("the root disk has the digest {found} and should have {expected}; fetch the package again")]
    Corrupt {
        /// The digest that the package promises.
        expected: Box<Digest>,
        /// The digest of what the blob held.
        found: Box<Digest>,
    },
}

/// What is read at once: large enough to make few system calls, small enough for the cache.
const CHUNK: usize = 256 * 1024;
/// The grain of holes: the block size of ext4 here, and of most file systems below.
const BLOCK: usize = 4096;

/// Reads until `buffer` is full or the input ends, so that blocks of zeros stay aligned.
fn fill<'b>(input: &mut impl Read, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(n) => filled = filled.saturating_add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(buffer.get(..filled).unwrap_or_default())
}

/// The file under way. The lock tells a writer at work from the leftover of one that died.
struct Partial {
    file: File,
    path: PathBuf,
}

impl Partial {
    fn create(out: &Path) -> Result<Self, ExpandError> {
        let mut name = out.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        let write_error = |source| ExpandError::Write { path: path.clone(), source };

        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(write_error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ExpandError::Busy(path)),
            Err(TryLockError::Error(e)) => return Err(write_error(e)),
        }
        file.set_len(0).map_err(write_error)?;
        Ok(Self { file, path })
    }

    fn write_error(&self) -> impl Fn(io::Error) -> ExpandError + '_ {
        |source| ExpandError::Write { path: self.path.clone(), source }
    }

    fn publish(&self, out: &Path, size: u64) -> Result<(), ExpandError> {
        // The image may end in a hole, which no write has reached.
        self.file.set_len(size).map_err(self.write_error())?;
        self.file.sync_data().map_err(self.write_error())?;
        fs::rename(&self.path, out).map_err(self.write_error())?;
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let sync = File::open(parent).and_then(|dir| dir.sync_all());
        sync.map_err(|source| ExpandError::Write { path: parent.to_owned(), source })
    }
}

/// Writes all but the blocks of zeros.
struct SparseWriter<'f> {
    file: &'f File,
    at: u64,
}

impl Write for SparseWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut at = self.at;
        for (zero, run) in runs(buf) {
            if !zero {
                self.file.write_all_at(run, at)?;
            }
            at = at.saturating_add(run.len() as u64);
        }
        self.at = at;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Splits into runs of whole blocks, each run all zeros or with something in every block.
fn runs(mut rest: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    let is_zero = |block: &[u8]| block.iter().all(|&b| b == 0);
    std::iter::from_fn(move || {
        let zero = is_zero(rest.chunks(BLOCK).next()?);
        let blocks = rest.chunks(BLOCK).take_while(|block| is_zero(block) == zero).count();
        let (run, after) = rest.split_at_checked(blocks.saturating_mul(BLOCK)).unwrap_or((rest, &[]));
        rest = after;
        Some((zero, run))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::compress_rootfs;

    /// 3 MiB: a little data in the first, middle and no last block.
    fn image() -> Vec<u8> {
        let mut image = vec![0; 3 << 20];
        image[..5].copy_from_slice(b"first");
        image[(1 << 20) + 4095..][..2].copy_from_slice(b"xy");
        image
    }

    fn compressed(image: &[u8]) -> (Vec<u8>, RawImage) {
        let mut blob = Vec::new();
        let raw = compress_rootfs(image, &mut blob).unwrap();
        (blob, raw)
    }

    #[test]
    fn an_image_comes_back_as_it_was_and_its_zeros_take_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("disk.img");
        let (blob, raw) = compressed(&image());
        expand_rootfs(&blob[..], &out, &raw).unwrap();
        assert!(fs::read(&out).unwrap() == image());
        let allocated = fs::metadata(&out).unwrap().blocks() * 512;
        assert!(allocated <= 64 * 1024, "{allocated} bytes allocated for three blocks");
    }

    #[test]
    fn a_wrong_digest_a_wrong_length_and_a_cut_blob_leave_nothing_at_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("disk.img");
        let (blob, raw) = compressed(&image());
        let other = RawImage { digest: Digest::of(b"other"), ..raw };
        assert!(matches!(expand_rootfs(&blob[..], &out, &other), Err(ExpandError::Corrupt { .. })));
        let short = RawImage { size: raw.size - 1, ..raw };
        assert!(matches!(expand_rootfs(&blob[..], &out, &short), Err(ExpandError::TooLong { .. })));
        let long = RawImage { size: raw.size + 1, ..raw };
        assert!(matches!(expand_rootfs(&blob[..], &out, &long), Err(ExpandError::TooShort { .. })));
        let cut = &blob[..blob.len() - 3];
        assert!(matches!(expand_rootfs(cut, &out, &raw), Err(ExpandError::Read(_))));
        assert!(!out.exists());
    }

    #[test]
    fn a_leftover_of_a_crash_is_taken_over_and_a_writer_at_work_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("disk.img");
        let (blob, raw) = compressed(&image());
        let leftover = dir.path().join("disk.img.partial");
        fs::write(&leftover, vec![7; 5 << 20]).unwrap();

        let other = File::open(&leftover).unwrap();
        other.try_lock().unwrap();
        assert!(matches!(expand_rootfs(&blob[..], &out, &raw), Err(ExpandError::Busy(_))));
        drop(other);

        expand_rootfs(&blob[..], &out, &raw).unwrap();
        assert!(fs::read(&out).unwrap() == image());
        assert!(!leftover.exists());
    }
}
