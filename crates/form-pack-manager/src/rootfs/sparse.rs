use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Reads a sparse file from its start, and its holes without asking the kernel to fill pages with zeros: on a root
/// disk that is nearly empty, that takes as long as hashing it.
///
/// The file must not change meanwhile, and its own position is moved.
#[derive(Debug)]
pub struct SparseReader {
    file: File,
    at: u64,
    end: u64,
    /// Where the run of data or of zeros ends that `at` is in, and which of them it is.
    run_end: u64,
    is_data: bool,
}

impl SparseReader {
    /// Fails if the length of the file cannot be read.
    pub fn new(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(Self { file, at: 0, end, run_end: 0, is_data: false })
    }

    /// Length of the file in bytes.
    pub fn size(&self) -> u64 {
        self.end
    }

    fn next_run(&mut self) -> io::Result<()> {
        let data = match seek(&self.file, SeekFrom::Data(self.at)) {
            Ok(data) => data,
            // There is only a hole from here to the end.
            Err(Errno::NXIO) => self.end,
            Err(e) => return Err(e.into()),
        };
        self.is_data = data == self.at;
        let run_end = if self.is_data { seek(&self.file, SeekFrom::Hole(self.at))? } else { data };
        self.run_end = run_end.min(self.end);
        Ok(())
    }
}

impl Read for SparseReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.run_end && self.at < self.end {
            self.next_run()?;
        }
        let left = self.run_end.saturating_sub(self.at);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let piece = buf.get_mut(..most).unwrap_or_default();
        let read = if self.is_data {
            self.file.read_at(piece, self.at)?
        } else {
            piece.fill(0);
            most
        };
        self.at = self.at.saturating_add(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(writes: &[(u64, &[u8])], len: u64) -> (Vec<u8>, Vec<u8>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        for (at, bytes) in writes {
            file.write_all_at(bytes, *at).unwrap();
        }
        let mut plain = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut plain, 0).unwrap();
        let mut sparse = Vec::new();
        SparseReader::new(file).unwrap().read_to_end(&mut sparse).unwrap();
        (sparse, plain)
    }

    #[test]
    fn a_sparse_file_reads_as_any_other_wherever_its_holes_are() {
        let data = [7; 5000];
        for writes in [
            &[][..],
            &[(0, &data[..])],
            &[(100_000, &data[..])],
            &[(0, &data[..]), (40_960, &data[..]), (195_000, &data[..])],
        ] {
            let (sparse, plain) = read(writes, 200_000);
            assert!(sparse == plain, "{} writes", writes.len());
        }
        assert!(read(&[], 0).0.is_empty());
    }
}
