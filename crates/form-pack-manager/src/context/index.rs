use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use tar::EntryType;

use crate::layer::until_nul;
use crate::tree::{self, Contents, Kind, Piece, Tree};

/// A build context: an index in memory, and the contents of its files in an unnamed scratch file.
#[derive(Debug)]
pub struct Context {
    nodes: BTreeMap<String, Node>,
    spool: Arc<File>,
}

/// One entry of a build context, or of the file system of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Where its contents are.
        contents: Extent,
        /// Whether its mode is 0755; else it is 0644.
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as it was written.
        target: String,
    },
}

/// Bytes in the scratch file of a [`Context`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// How much a build context may ask of the builder.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the whole tar stream.
    pub bytes: u64,
    /// Files, directories and links, directories that are only implied by a path included.
    pub entries: usize,
    /// Bytes of all names and link targets: what the index costs in memory.
    pub name_bytes: usize,
}

impl Default for Limits {
    /// 4 GiB, 200 000 entries, 64 MiB of names.
    fn default() -> Self {
        Self { bytes: 4 << 30, entries: 200_000, name_bytes: 64 << 20 }
    }
}

impl Context {
    /// Reads a build context from the untrusted tar stream `tar`; its contents go into an unnamed file in `scratch`.
    ///
    /// Blocks. Fails at the first entry that breaks a rule of the [module](crate::context) or a limit.
    pub fn read(tar: impl Read, scratch: &Path, limits: &Limits) -> Result<Self, ContextError> {
        let spool = tempfile::tempfile_in(scratch).map_err(ContextError::Spool)?;
        let mut indexer = Indexer {
            nodes: BTreeMap::new(),
            names: 0,
            limits,
            spool: BufWriter::with_capacity(256 << 10, spool),
            end: 0,
        };
        let mut archive = tar::Archive::new(Metered { inner: tar, left: limits.bytes, exhausted: false });
        let walked = indexer.walk(&mut archive);
        let metered = archive.into_inner();
        if metered.exhausted {
            return Err(ContextError::TooLarge { limit: limits.bytes });
        }
        // tar ends in blocks of zeros. If none was read, the stream was cut between two entries.
        if limits.bytes.saturating_sub(metered.left) <= walked? {
            return Err(ContextError::Cut);
        }
        let spool = indexer.spool.into_inner().map_err(|e| ContextError::Spool(e.into_error()))?;
        Ok(Self { nodes: indexer.nodes, spool: Arc::new(spool) })
    }

    /// The entry at `path`: relative and normalised, as a COPY has it. The empty path is the
    /// context itself.
    pub fn get(&self, path: &str) -> Option<&Node> {
        if path.is_empty() { Some(&Node::Directory) } else { self.nodes.get(path) }
    }

    /// All that is below the directory `path`, parents first, by paths relative to it.
    pub fn below<'c>(&'c self, path: &str) -> impl Iterator<Item = (&'c str, &'c Node)> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let from = prefix.clone();
        self.nodes.range(from..).map_while(move |(name, node)| Some((name.strip_prefix(&prefix)?, node)))
    }

    /// As what COPY copies from: all of it root's.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        for (path, node) in &self.nodes {
            let directory = tree::Node::directory(0);
            let node = match node {
                Node::Directory => directory,
                Node::File { contents: Extent { offset, len }, executable } => tree::Node {
                    kind: Kind::File(Arc::new(Contents { file: Arc::clone(&self.spool), offset: *offset, len: *len })),
                    mode: if *executable { 0o755 } else { 0o644 },
                    ..directory
                },
                Node::Symlink { target } => {
                    tree::Node { kind: Kind::Symlink(target.clone()), mode: 0o777, ..directory }
                }
            };
            tree.insert(path.clone(), node);
        }
        tree
    }

    /// Reads the contents of a file.
    pub fn open(&self, contents: Extent) -> impl Read + use<'_> {
        Piece { file: &self.spool, at: contents.offset, left: contents.len }
    }
}

/// Why a build context was refused.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The stream broke off, or is not tar.
    #[error("the build context cannot be read; it must be a tar archive")]
    Read(#[source] io::Error),
    /// The stream ended too early.
    #[error("the build context ends before the end of its tar archive; send it again")]
    Cut,
    /// The scratch file cannot be written.
    #[error("cannot keep the build context in the scratch directory")]
    Spool(#[source] io::Error),
    /// The stream is too long.
    #[error("the build context has more than the {limit} bytes that are allowed; leave out what no COPY needs")]
    TooLarge {
        /// Bytes.
        limit: u64,
    },
    /// There are too many files.
    #[error("the build context has more than the {limit} entries that are allowed; leave out what no COPY needs")]
    TooMany {
        /// Entries.
        limit: usize,
    },
    /// The names are too long together.
    #[error("the names in the build context have more than the {limit} bytes that are allowed")]
    NamesTooLong {
        /// Bytes.
        limit: usize,
    },
    /// One entry breaks a rule.
    #[error("`{name}` in the build context {what}")]
    Entry {
        /// Name of the entry, as far as it is text.
        name: String,
        /// Which rule.
        what: &'static str,
    },
}

/// Longest path that Linux takes, and longest name in it.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;
/// Room for two paths in an extension header, and for the times and attributes that we ignore.
const MAX_EXTENSION: u64 = 64 << 10;

struct Indexer<'l, W> {
    nodes: BTreeMap<String, Node>,
    names: usize,
    limits: &'l Limits,
    spool: W,
    end: u64,
}

/// What extension headers say of the entry after them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<W: Write> Indexer<'_, W> {
    /// Returns where in the stream the last entry ends.
    fn walk(&mut self, archive: &mut tar::Archive<impl Read>) -> Result<u64, ContextError> {
        // Raw, because the crate would otherwise read an extension header into memory whatever its size.
        let entries = archive.entries().map_err(ContextError::Read)?.raw(true);
        let mut extensions = Extensions::default();
        let mut end = 0;
        for entry in entries {
            let mut entry = entry.map_err(ContextError::Read)?;
            end = entry.raw_file_position().saturating_add(entry.size());
            let kind = entry.header().entry_type();
            match kind {
                EntryType::XGlobalHeader => continue,
                EntryType::GNULongName => extensions.path = Some(until_nul(extension(&mut entry)?)),
                EntryType::GNULongLink => extensions.link = Some(until_nul(extension(&mut entry)?)),
                EntryType::XHeader => read_pax(&extension(&mut entry)?, &mut extensions)?,
                _ => {
                    let Extensions { path, link } = std::mem::take(&mut extensions);
                    let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
                    let link = link.or_else(|| entry.link_name_bytes().map(Into::into));
                    self.entry(&path, link, &mut entry)?;
                }
            }
        }
        Ok(end.checked_next_multiple_of(512).unwrap_or(end))
    }

    fn entry(
        &mut self,
        path: &[u8],
        link: Option<Vec<u8>>,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), ContextError> {
        let name = String::from_utf8_lossy(path);
        let refuse = |what| ContextError::Entry { name: name.chars().take(256).collect(), what };
        let path = normalised(path).map_err(refuse)?;
        let target = |link: Option<Vec<u8>>| match link {
            Some(link) if !link.is_empty() => {
                String::from_utf8(link).map_err(|_| refuse("points to a name that is not UTF-8"))
            }
            _ => Err(refuse("is a link to nothing")),
        };
        let node = match entry.header().entry_type() {
            EntryType::Directory => Node::Directory,
            EntryType::Regular | EntryType::Continuous => {
                let mode = entry.header().mode().map_err(ContextError::Read)?;
                Node::File { contents: self.spool(entry)?, executable: mode & 0o100 != 0 }
            }
            EntryType::Symlink => {
                let target = target(link)?;
                check_symlink(&path, &target).map_err(refuse)?;
                Node::Symlink { target }
            }
            EntryType::Link => {
                let of = normalised(target(link)?.as_bytes()).map_err(refuse)?;
                match self.nodes.get(&of) {
                    Some(file @ Node::File { .. }) => file.clone(),
                    _ => return Err(refuse("is a hard link to no file that came before it")),
                }
            }
            EntryType::Char | EntryType::Block => return Err(refuse("is a device; a package holds none")),
            EntryType::Fifo => return Err(refuse("is a pipe or a socket; a package holds none")),
            EntryType::GNUSparse => return Err(refuse("is packed as a sparse file; pack it without `--sparse`")),
            _ => return Err(refuse("is of a kind that is not known")),
        };
        if path.is_empty() {
            return match node {
                Node::Directory => Ok(()),
                _ => Err(refuse("stands where the context itself should be a directory")),
            };
        }
        for (at, _) in path.match_indices('/') {
            match path.get(..at).map(|parent| (parent, self.nodes.get(parent))) {
                Some((_, Some(Node::Directory))) => {}
                Some((parent, None)) => self.insert(parent.to_owned(), Node::Directory)?,
                _ => return Err(refuse("is below a name that is not a directory")),
            }
        }
        match (self.nodes.get(&path), &node) {
            (Some(Node::Directory), Node::Directory) => return Ok(()),
            (Some(Node::Directory), _) | (Some(_), Node::Directory) => {
                return Err(refuse("is a directory in one place and none in another"));
            }
            _ => {}
        }
        self.insert(path, node)
    }

    fn insert(&mut self, path: String, node: Node) -> Result<(), ContextError> {
        let target = if let Node::Symlink { target } = &node { target.len() } else { 0 };
        self.names = self.names.saturating_add(path.len()).saturating_add(target);
        self.nodes.insert(path, node);
        if self.nodes.len() > self.limits.entries {
            return Err(ContextError::TooMany { limit: self.limits.entries });
        }
        if self.names > self.limits.name_bytes {
            return Err(ContextError::NamesTooLong { limit: self.limits.name_bytes });
        }
        Ok(())
    }

    fn spool(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<Extent, ContextError> {
        let extent = Extent { offset: self.end, len: entry.size() };
        let mut writing = Writing { inner: &mut self.spool, failed: false };
        match io::copy(entry, &mut writing) {
            Ok(copied) if copied == extent.len => {}
            Ok(_) => return Err(ContextError::Cut),
            Err(e) if writing.failed => return Err(ContextError::Spool(e)),
            Err(e) => return Err(ContextError::Read(e)),
        }
        self.end = self.end.saturating_add(extent.len);
        Ok(extent)
    }
}

/// The path as the index has it, or what is wrong with it.
fn normalised(path: &[u8]) -> Result<String, &'static str> {
    let path = str::from_utf8(path).map_err(|_| "has a name that is not UTF-8")?;
    if path.starts_with('/') {
        return Err("has an absolute name; pack it relative to its directory");
    }
    if path.contains('\0') {
        return Err("has a NUL in its name");
    }
    let parts: Vec<_> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err("has `..` in its name");
    }
    if path.len() > MAX_PATH || parts.iter().any(|part| part.len() > MAX_NAME) {
        return Err("has a name that is too long: at most 255 bytes for each part, 4095 in all");
    }
    Ok(parts.join("/"))
}

/// A link is only text to us and means something in the guest, so an absolute target is fine: it names a path there.
/// A relative one that climbs out of the context cannot mean what its author saw.
fn check_symlink(path: &str, target: &str) -> Result<(), &'static str> {
    if target.len() > MAX_PATH || target.contains('\0') {
        return Err("is a symbolic link whose target is too long, or has a NUL in it");
    }
    if target.starts_with('/') {
        return Ok(());
    }
    let mut depth = path.matches('/').count();
    for part in target.split('/') {
        depth = match part {
            "" | "." => depth,
            ".." => depth.checked_sub(1).ok_or("is a symbolic link that leads out of the build context")?,
            _ => depth.saturating_add(1),
        };
    }
    Ok(())
}

fn extension(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, ContextError> {
    if entry.size() > MAX_EXTENSION {
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        return Err(ContextError::Entry { name, what: "is an extension header of more than 64 KiB" });
    }
    let mut data = Vec::new();
    entry.read_to_end(&mut data).map_err(ContextError::Read)?;
    Ok(data)
}

fn read_pax(data: &[u8], extensions: &mut Extensions) -> Result<(), ContextError> {
    for record in tar::PaxExtensions::new(data) {
        let record = record.map_err(ContextError::Read)?;
        match record.key_bytes() {
            b"path" => extensions.path = Some(record.value_bytes().to_vec()),
            b"linkpath" => extensions.link = Some(record.value_bytes().to_vec()),
            key if key == b"size" || key.starts_with(b"GNU.sparse.") => {
                let name = String::from_utf8_lossy(extensions.path.as_deref().unwrap_or(b"an entry")).into_owned();
                return Err(ContextError::Entry {
                    name,
                    what: "has a PAX size, or is sparse; pack it as GNU tar does",
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads at most `left` bytes, and remembers whether there was more.
struct Metered<R> {
    inner: R,
    left: u64,
    exhausted: bool,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.left = match self.left.checked_sub(read as u64) {
            Some(left) => left,
            None => {
                self.exhausted = true;
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        };
        Ok(read)
    }
}

/// Tells an error of the writer from one of the reader, which `io::copy` does not.
struct Writing<W> {
    inner: W,
    failed: bool,
}

impl<W: Write> Write for Writing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.inner.write(buf).inspect_err(|_| self.failed = true)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
