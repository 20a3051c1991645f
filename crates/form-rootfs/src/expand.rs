use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::raw::{CHUNK, RawHasher, is_zero};
use crate::{Digest, RawImage};

/// Expands the compressed root disk `blob` into a sparse file at `out`, and proves that it is `expected`.
///
/// `out` appears whole, verified and on disk, or not at all: the work happens in `out` with `.partial` added, which the
/// next call for the same `out` takes over after a crash. Blocks of zeros become holes. No more than
/// `expected.size` bytes are ever written, whatever `blob` expands to.
///
/// Blocks; call it from a thread that may.
pub fn expand_rootfs(blob: impl Read, out: &Path, expected: &RawImage) -> Result<(), ExpandError> {
    let partial = Partial::create(out)?;
    let (mut sink, mut raw) = (SparseWriter { file: &partial.file, at: 0 }, RawHasher::default());
    let mut image = zstd::Decoder::new(blob).map_err(ExpandError::Read)?;

    let mut buffer = vec![0; CHUNK];
    loop {
        let chunk = match fill(&mut image, &mut buffer).map_err(ExpandError::Read)? {
            [] => break,
            chunk => chunk,
        };
        if sink.at.saturating_add(chunk.len() as u64) > expected.size {
            return Err(ExpandError::TooLong { expected: expected.size });
        }
        if is_zero(chunk) {
            raw.zeros(chunk);
        } else {
            raw.chunk(chunk);
        }
        sink.write(chunk).map_err(partial.write_error())?;
    }

    let (digest, size) = (raw.finish(), sink.at);
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

impl SparseWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for (zero, run) in runs(bytes) {
            if !zero {
                self.file.write_all_at(run, self.at)?;
            }
            self.at = self.at.saturating_add(run.len() as u64);
        }
        Ok(())
    }
}

/// Splits into runs of whole blocks, each run all zeros or with something in every block.
fn runs(mut rest: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
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
        let (raw, _) = compress_rootfs(&file(image), &mut blob, |_| None).unwrap();
        (blob, raw)
    }

    /// With holes where there are zeros.
    fn file(image: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        SparseWriter { file: &file, at: 0 }.write(image).unwrap();
        file.set_len(image.len() as u64).unwrap();
        file
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
    fn holes_zeros_and_the_last_piece_are_what_they_are_read_as() {
        let dir = tempfile::tempdir().unwrap();
        for len in [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 4097] {
            for data in [vec![], vec![0], vec![len / 2], vec![0, len.saturating_sub(1)]] {
                let mut image = vec![0; len];
                data.iter().filter(|at| **at < len).for_each(|at| image[*at] = 7);
                let (blob, raw) = compressed(&image);
                let out = dir.path().join("disk.img");
                expand_rootfs(&blob[..], &out, &raw).unwrap();
                assert!(fs::read(&out).unwrap() == image, "{len} {data:?}");
                // Written out, zeros are the same as holes.
                let full = tempfile::tempfile().unwrap();
                full.write_all_at(&image, 0).unwrap();
                let mut again = Vec::new();
                assert_eq!(compress_rootfs(&full, &mut again, |_| None).unwrap().0, raw);
                assert!(again == blob, "{len} {data:?}");
            }
        }
    }

    #[test]
    fn frames_of_before_give_the_same_blob() {
        let mut blob = Vec::new();
        let (raw, frames) = compress_rootfs(&file(&image()), &mut blob, |_| None).unwrap();
        let mut asked = 0;
        let mut again = Vec::new();
        let known = |digest: &Digest| {
            asked += 1;
            let frame = frames.iter().find(|frame| frame.chunk == *digest)?;
            Some(blob[frame.start as usize..][..frame.len as usize].to_vec())
        };
        assert_eq!(compress_rootfs(&file(&image()), &mut again, known).unwrap(), (raw, frames.clone()));
        assert!(again == blob);
        assert_eq!((asked, frames.len()), (2, 2), "the third chunk is all zeros");
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
