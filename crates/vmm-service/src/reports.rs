//! Reading what a guest reports, out of the file that QEMU keeps.
//!
//! It is a file, not a socket, so that nothing is lost while no daemon runs.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use form_guest::{Report, ReportDecoder};
use tracing::warn;

use crate::error::{Result, file};
use crate::store::append_to;

/// An honest guest writes some hundred bytes. One that writes more than this is cut off.
const LIMIT: u64 = 64 * 1024;

/// The reports of one run, from its beginning.
#[derive(Debug)]
pub(crate) struct Reports {
    path: PathBuf,
    position: u64,
    decoder: ReportDecoder,
}

impl Reports {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, position: 0, decoder: ReportDecoder::default() }
    }

    /// Forgets the last run's reports. Must not be called while its QEMU lives.
    pub(crate) fn clear(path: &Path) -> Result<()> {
        append_to(path)?.set_len(0).map_err(file("clear", path))
    }

    /// The reports since the last call.
    pub(crate) fn read(&mut self) -> Result<Vec<Report>> {
        let bytes = self.read_bytes().map_err(file("read", &self.path))?;
        let mut reports = Vec::new();
        for report in self.decoder.push(&bytes) {
            match report {
                Ok(report) => reports.push(report),
                Err(error) => warn!(path = %self.path.display(), %error, "ignored"),
            }
        }
        Ok(reports)
    }

    fn read_bytes(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(bytes),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.position))?;
        file.by_ref().take(LIMIT).read_to_end(&mut bytes)?;
        self.position += u64::try_from(bytes.len()).unwrap_or(LIMIT);
        if file.metadata()?.len() > LIMIT {
            // QEMU appends, so it goes on from the new end.
            warn!(path = %self.path.display(), "the guest floods its report port; its reports are dropped");
            file.set_len(0)?;
            self.position = 0;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn reports_are_read_once_and_from_the_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reports.jsonl");
        let mut reports = Reports::new(path.clone());
        assert_eq!(reports.read().unwrap(), []);
        std::fs::write(&path, Report::Booting.to_line()).unwrap();
        assert_eq!(reports.read().unwrap(), [Report::Booting]);
        assert_eq!(reports.read().unwrap(), []);
    }

    #[test]
    fn a_flood_costs_no_disk_and_the_guest_is_heard_again_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reports.jsonl");
        let mut reports = Reports::new(path.clone());
        let mut guest = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        guest.write_all(&vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(reports.read().unwrap(), []);
        assert_eq!(path.metadata().unwrap().len(), 0);
        guest.write_all(format!("\n{}", Report::Stopping.to_line()).as_bytes()).unwrap();
        assert_eq!(reports.read().unwrap(), [Report::Stopping]);
    }
}
