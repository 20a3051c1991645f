//! The file system of a package: layers, one over the other, and what `COPY` puts there.
//!
//! Nothing of it is ever on the host by its name. What a file holds is a piece of some file that the builder has open;
//! a name is text, and is looked up here, links included, as it will be in the guest.
//!
//! `COPY` follows Docker's rules: of a directory the contents are copied; a file goes into a destination that ends in
//! `/` or is a directory, and else becomes it; parents are made; links among them are followed inside of the tree. Where
//! these rules would silently replace a directory by a file, the step is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Files, directories and links by path: relative, normalised, parents before what is in them.
#[derive(Debug, Default, Clone)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    root: Option<Node>,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Node {
    pub kind: Kind,
    /// Permissions, with set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds of Unix time.
    pub mtime: i64,
    /// The file's capabilities, as the attribute `security.capability` has them.
    pub capability: Option<Arc<[u8]>>,
    /// The number of the layer that brought it: what does not change between builds stands before what does.
    pub layer: u32,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Directory,
    /// Names that share it are hard links of one file.
    File(Arc<Contents>),
    /// Where it points, as it was written.
    Symlink(String),
}

/// A piece of an open file.
#[derive(Debug)]
pub struct Contents {
    pub file: Arc<File>,
    pub offset: u64,
    pub len: u64,
}

impl Contents {
    /// Reads it from its start.
    pub fn open(&self) -> impl Read + use<'_> {
        Piece { file: &self.file, at: self.offset, left: self.len }
    }

    /// `bytes`, in an unnamed file in `scratch`.
    pub fn of(bytes: &[u8], scratch: &std::path::Path) -> io::Result<Self> {
        let mut file = tempfile::tempfile_in(scratch)?;
        io::Write::write_all(&mut file, bytes)?;
        Ok(Self { file: Arc::new(file), offset: 0, len: bytes.len() as u64 })
    }

    /// All of it; for small files.
    pub fn read(&self, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open().take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The bytes of a file from `at` on, `left` of them; the file's own position stays where it is.
pub(crate) struct Piece<'f> {
    pub(crate) file: &'f File,
    pub(crate) at: u64,
    pub(crate) left: u64,
}

impl Read for Piece<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let read = self.file.read_at(buf.get_mut(..most).unwrap_or_default(), self.at)?;
        self.at = self.at.saturating_add(read as u64);
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

impl Node {
    /// A directory of root's that all may enter.
    pub fn directory(layer: u32) -> Self {
        Self { kind: Kind::Directory, mode: 0o755, uid: 0, gid: 0, mtime: 0, capability: None, layer }
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }

    /// Whether the two are the same but for the layer that brought them.
    pub fn is_same(&self, other: &Self) -> bool {
        let kind = match (&self.kind, &other.kind) {
            (Kind::Directory, Kind::Directory) => true,
            (Kind::File(a), Kind::File(b)) => Arc::ptr_eq(a, b),
            (Kind::Symlink(a), Kind::Symlink(b)) => a == b,
            _ => false,
        };
        kind && (self.mode, self.uid, self.gid, self.mtime) == (other.mode, other.uid, other.gid, other.mtime)
            && self.capability == other.capability
    }
}

/// What one layer changes.
#[derive(Debug, Default, Clone)]
pub struct Diff {
    pub changes: BTreeMap<String, Change>,
    /// Directories that hide all that the layers below have in them.
    pub opaque: BTreeSet<String>,
    /// The root directory itself.
    pub root: Option<Node>,
}

#[derive(Debug, Clone)]
pub enum Change {
    Put(Node),
    /// It is not there any more, nor what was below it.
    Remove,
}

impl Diff {
    /// With the directories on the way to what it changes, as `tree` has them now: so that it says the same whatever it
    /// is put over.
    #[must_use]
    pub fn with_parents(mut self, tree: &Tree) -> Self {
        let mut missing = BTreeMap::new();
        for path in self.changes.keys() {
            for (at, _) in path.match_indices('/') {
                let Some(parent) = path.get(..at) else { continue };
                if !self.changes.contains_key(parent) && !missing.contains_key(parent) {
                    let node = tree.get(parent).cloned().unwrap_or_else(|| Node::directory(0));
                    missing.insert(parent.to_owned(), Change::Put(node));
                }
            }
        }
        self.changes.extend(missing);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.opaque.is_empty() && self.root.is_none()
    }
}

/// As Linux: more links than these on one way are a loop.
const MOST_LINKS: usize = 40;

/// Why a path cannot be had in a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("`/{0}` is a file or a link in the package already, so nothing can be put below it")]
    Blocked(String),
    #[error("`/{0}` is a directory in the package already, and a file cannot take its place")]
    Replaces(String),
    #[error("`/lost+found` belongs to the file system")]
    Reserved,
    #[error("`/{0}` goes through too many symbolic links")]
    Loop(String),
}

impl Tree {
    /// All entries, parents before what is in them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// The directory that all is in, if a layer says something of it.
    pub fn root(&self) -> Option<&Node> {
        self.root.as_ref()
    }

    /// The entry at `path`, relative and normalised; no link is followed.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    pub fn is_directory(&self, path: &str) -> bool {
        path.is_empty() || self.nodes.get(path).is_some_and(Node::is_directory)
    }

    /// All that is below the directory `path`, parents first, by paths relative to it.
    pub fn below<'t>(&'t self, path: &str) -> impl Iterator<Item = (&'t str, &'t Node)> + use<'t> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let from = prefix.clone();
        self.nodes.range(from..).map_while(move |(name, node)| Some((name.strip_prefix(&prefix)?, node)))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Bytes of all files; of hard links, the first is counted.
    pub fn bytes(&self) -> u64 {
        let mut seen = std::collections::HashSet::new();
        self.nodes.values().fold(0, |sum: u64, node| match &node.kind {
            Kind::File(contents) if seen.insert(Arc::as_ptr(contents)) => sum.saturating_add(contents.len),
            _ => sum,
        })
    }

    /// Where `path` leads, links followed as the guest would. With `is_last_followed` off, what `path` itself names stays
    /// a link. What is missing, and what is below it, is as it is written.
    pub fn resolve(&self, path: &str, is_last_followed: bool) -> Result<String, PathError> {
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut done = String::new();
        let mut links = 0_usize;
        while let Some(part) = rest.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.truncate(done.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = join(&done, &part);
            match self.nodes.get(&next).map(|node| &node.kind) {
                Some(Kind::Symlink(target)) if is_last_followed || rest.iter().any(|part| !part.is_empty()) => {
                    links = links.saturating_add(1);
                    if links > MOST_LINKS {
                        return Err(PathError::Loop(path.to_owned()));
                    }
                    if target.starts_with('/') {
                        done.clear();
                    }
                    rest.extend(target.split('/').rev().map(str::to_owned));
                }
                _ => done = next,
            }
        }
        Ok(done)
    }

    /// What a small file holds, wherever its links lead.
    pub fn read(&self, path: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        let Ok(path) = self.resolve(path, true) else { return Ok(None) };
        match self.nodes.get(&path).map(|node| &node.kind) {
            Some(Kind::File(contents)) => contents.read(most).map(Some),
            _ => Ok(None),
        }
    }

    /// Removes `path` and all below it.
    pub(crate) fn remove(&mut self, path: &str) {
        self.nodes.remove(path);
        self.remove_below(path, u32::MAX);
    }

    /// Removes what layers before `layer` have below `path`.
    pub(crate) fn remove_below(&mut self, path: &str, layer: u32) {
        let old: Vec<String> = self
            .below(path)
            .filter(|(_, node)| node.layer < layer || layer == u32::MAX)
            .map(|(name, _)| join(path, name))
            .collect();
        for path in old {
            self.nodes.remove(&path);
        }
    }

    pub(crate) fn insert(&mut self, path: String, node: Node) {
        if path.is_empty() {
            self.root = Some(node);
        } else {
            if !node.is_directory() && self.is_directory(&path) {
                self.remove_below(&path, u32::MAX);
            }
            self.nodes.insert(path, node);
        }
    }

    /// Puts `node` at `path`, as COPY does, and notes what that changes.
    pub(crate) fn put(&mut self, path: &str, node: Node, diff: &mut Diff) -> Result<(), PathError> {
        let path = self.resolve(path, false)?;
        if node.is_directory() {
            if self.is_directory(&self.resolve(&path, true)?) {
                return Ok(());
            }
            return self.make_directory(&path, &node, diff).map(drop);
        }
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.make_directory(parent, &Node { mtime: 0, ..Node::directory(node.layer) }, diff)?;
        if self.is_directory(&path) {
            return Err(PathError::Replaces(path));
        }
        self.note(path, node, diff)
    }

    /// Makes the directory `path` as `like` and the parents it needs; says where that is, links followed.
    pub(crate) fn make_directory(&mut self, path: &str, like: &Node, diff: &mut Diff) -> Result<String, PathError> {
        let path = self.resolve(path, true)?;
        if self.is_directory(&path) {
            return Ok(path);
        }
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).collect();
        for part in ends.into_iter().filter_map(|end| path.get(..end)) {
            match self.nodes.get(part) {
                None => self.note(part.to_owned(), like.clone(), diff)?,
                Some(node) if node.is_directory() => {}
                Some(_) => return Err(PathError::Blocked(part.to_owned())),
            }
        }
        Ok(path)
    }

    fn note(&mut self, path: String, node: Node, diff: &mut Diff) -> Result<(), PathError> {
        // ext4 makes it, and mkext4 would make it twice.
        if path == "lost+found" {
            return Err(PathError::Reserved);
        }
        diff.changes.insert(path.clone(), Change::Put(node.clone()));
        self.nodes.insert(path, node);
        Ok(())
    }
}

pub(crate) fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// What a COPY says.
#[derive(Debug, Clone)]
pub struct Copy<'s> {
    /// Where it is copied from.
    pub from: &'s Tree,
    /// Paths in it: relative, normalised, links followed.
    pub sources: &'s [String],
    /// Absolute.
    pub destination: &'s str,
    /// Whether the destination is a directory by its spelling, or because there are several sources.
    pub into_directory: bool,
    /// `None`: root, of a context; as it is, of another tree.
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u32>,
    pub layer: u32,
}

/// Why a COPY cannot be done, and whether that shows in a source (by its number) or in the destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct CopyError {
    pub source_number: Option<usize>,
    #[source]
    pub what: CopyWhat,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyWhat {
    #[error("`{0}` is not there to be copied")]
    Missing(String),
    #[error("`{0}` is a symbolic link")]
    Link(String),
    #[error(transparent)]
    Path(#[from] PathError),
}

impl CopyWhat {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing(_) => "check its spelling, and that the context is the right directory",
            Self::Link(_) => "COPY what it points to, or the directory that holds it",
            Self::Path(PathError::Reserved) => "leave it out of the build context, or copy it elsewhere",
            Self::Path(PathError::Loop(_)) => "correct the links",
            Self::Path(_) => "copy to another path, or leave out what is there",
        }
    }
}

impl Copy<'_> {
    /// Does it, and adds to `diff` what it changes.
    pub fn apply(&self, tree: &mut Tree, diff: &mut Diff) -> Result<(), CopyError> {
        // Hard links among what is copied stay so.
        let mut files = std::collections::HashMap::new();
        for (number, source) in self.sources.iter().enumerate() {
            let of_source = |what| CopyError { source_number: Some(number), what };
            let of_destination = |what: PathError| CopyError { source_number: None, what: what.into() };
            let to = self.destination.trim_matches('/');
            let node = match self.from.get(source) {
                _ if source.is_empty() => None,
                None => return Err(of_source(CopyWhat::Missing(source.clone()))),
                Some(Node { kind: Kind::Symlink(_), .. }) => return Err(of_source(CopyWhat::Link(source.clone()))),
                Some(node) => Some(node).filter(|node| !node.is_directory()),
            };
            if let Some(file) = node {
                let name = source.rsplit('/').next().unwrap_or(source);
                let resolved = tree.resolve(to, true).map_err(of_destination)?;
                let is_directory = self.into_directory || tree.is_directory(&resolved);
                let path = if is_directory { join(to, name) } else { to.to_owned() };
                tree.put(&path, self.copied(file, &mut files), diff).map_err(of_destination)?;
                continue;
            }
            let to = tree.make_directory(to, &self.made(), diff).map_err(of_destination)?;
            for (name, node) in self.from.below(source) {
                tree.put(&join(&to, name), self.copied(node, &mut files), diff).map_err(of_destination)?;
            }
        }
        Ok(())
    }

    /// A directory that is made on the way.
    fn made(&self) -> Node {
        let (uid, gid) = self.owner.unwrap_or_default();
        Node { uid, gid, ..Node::directory(self.layer) }
    }

    fn copied(&self, node: &Node, files: &mut std::collections::HashMap<*const Contents, Arc<Contents>>) -> Node {
        let (uid, gid) = self.owner.unwrap_or((node.uid, node.gid));
        let kind = match &node.kind {
            Kind::File(contents) => {
                let copy = || Arc::new(Contents { file: Arc::clone(&contents.file), ..**contents });
                Kind::File(Arc::clone(files.entry(Arc::as_ptr(contents)).or_insert_with(copy)))
            }
            other => other.clone(),
        };
        let mode = self.mode.filter(|_| !matches!(kind, Kind::Symlink(_))).unwrap_or(node.mode);
        Node { kind, mode, uid, gid, layer: self.layer, ..node.clone() }
    }
}

#[cfg(test)]
mod tests;
