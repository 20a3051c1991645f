use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use formfile::Ignore;
use tar::{EntryType, Header};
use walkdir::WalkDir;

/// Packs the directory `dir` as a build context into `out`; returns `out`.
///
/// The same files give the same bytes: entries are sorted by name, times and owners are zero, and of a mode only
/// whether the owner may execute the file is kept. Links are packed as links. A build context holds no devices, pipes
/// or sockets, so these fail, as does a file that changes its length meanwhile. What a `.formignore` in the directory
/// leaves out is not looked at; the Formfile always goes along.
pub fn pack_context<W: Write>(dir: &Path, out: W) -> Result<W, PackError> {
    let mut tar = tar::Builder::new(out);
    let ignore = ignore(dir)?;
    let excludes = |path: &Path| {
        let name = path.strip_prefix(dir).ok().and_then(Path::to_str);
        name.is_some_and(|name| !name.is_empty() && name != "Formfile" && ignore.excludes(name))
    };
    // Directories that are left out, and through which something below them may come in again.
    let mut held: Vec<PathBuf> = Vec::new();
    let walk = WalkDir::new(dir).min_depth(1).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| ignore.takes_in_again() || !excludes(entry.path())) {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(dir).to_owned();
            PackError::Read { path, source: e.into() }
        })?;
        let name = entry.path().strip_prefix(dir).unwrap_or(entry.path());
        held.retain(|directory| entry.path().starts_with(directory));
        if excludes(entry.path()) {
            if entry.file_type().is_dir() {
                held.push(entry.path().to_owned());
            }
            continue;
        }
        for directory in held.drain(..) {
            let name = directory.strip_prefix(dir).unwrap_or(&directory);
            pack_entry(&mut tar, &directory, name)?;
        }
        pack_entry(&mut tar, entry.path(), name)?;
    }
    tar.into_inner().map_err(PackError::Write)
}

fn ignore(dir: &Path) -> Result<Ignore, PackError> {
    let path = dir.join(".formignore");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ignore::default()),
        Err(source) => return Err(PackError::Read { path, source }),
    };
    Ignore::parse(".formignore", &text).map_err(|errors| {
        let errors: Vec<_> = errors.iter().map(formfile::Diagnostic::plain).collect();
        PackError::Ignore(errors.join("\n"))
    })
}

/// Why a directory was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Something in the directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the build context")]
    Write(#[source] io::Error),
    /// A package holds no such thing.
    #[error("{} is a device, a pipe or a socket; move it out of the build context", .0.display())]
    Kind(PathBuf),
    /// A package holds only names in UTF-8.
    #[error("the name of {} is not UTF-8; rename it", .0.display())]
    Name(PathBuf),
    /// The `.formignore` is wrong; what is said of each mistake.
    #[error("the .formignore cannot be followed:\n{0}")]
    Ignore(String),
    /// A file was written to meanwhile.
    #[error("{} changed while it was packed; pack it again when nothing writes to it", .0.display())]
    Changed(PathBuf),
}

fn pack_entry(tar: &mut tar::Builder<impl Write>, path: &Path, name: &Path) -> Result<(), PackError> {
    let read_error = |source| PackError::Read { path: path.to_owned(), source };
    if name.to_str().is_none() {
        return Err(PackError::Name(path.to_owned()));
    }
    let metadata = fs::symlink_metadata(path).map_err(read_error)?;
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mode(0o755);

    if metadata.is_dir() {
        header.set_entry_type(EntryType::Directory);
        tar.append_data(&mut header, name, io::empty()).map_err(PackError::Write)
    } else if metadata.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        let target = fs::read_link(path).map_err(read_error)?;
        if target.to_str().is_none() {
            return Err(PackError::Name(path.to_owned()));
        }
        tar.append_link(&mut header, name, &target).map_err(PackError::Write)
    } else if metadata.is_file() {
        let file = File::open(path).map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        header.set_entry_type(EntryType::Regular);
        header.set_mode(if metadata.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 });
        header.set_size(metadata.len());
        let mut contents = Exactly { file, left: metadata.len(), fault: None };
        let appended = tar.append_data(&mut header, name, &mut contents);
        match contents.fault {
            None => appended.map_err(PackError::Write),
            Some(Fault::Length) => Err(PackError::Changed(path.to_owned())),
            Some(Fault::Read(source)) => Err(read_error(source)),
        }
    } else {
        Err(PackError::Kind(path.to_owned()))
    }
}

/// Reads the length that the header promises, and keeps what went wrong: a wrong length would shift all that follows.
struct Exactly {
    file: File,
    left: u64,
    fault: Option<Fault>,
}

enum Fault {
    Length,
    Read(io::Error),
}

impl Read for Exactly {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match self.file.read(buf) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                self.fault = Some(Fault::Read(e));
                return Err(io::ErrorKind::Other.into());
            }
        };
        match self.left.checked_sub(read as u64) {
            Some(left) if read > 0 || left == 0 || buf.is_empty() => {
                self.left = left;
                Ok(read)
            }
            _ => {
                self.fault = Some(Fault::Length);
                Err(io::ErrorKind::Other.into())
            }
        }
    }
}
