//! The file system of a package: what the steps of a Formfile make of a build context.
//!
//! `COPY` follows Docker's rules: of a directory the contents are copied; a file goes into a destination that ends in
//! `/` or is a directory, and else becomes it; parents are made. Where these rules would silently replace a directory
//! by a file, or follow a symbolic link, the step is refused.

use std::collections::BTreeMap;

use crate::context::{Context, Node};
use crate::formfile::{Diagnostic, Span, Step};

/// Files, directories and links by path: relative, normalised, parents before what is in them. All belong to root.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Takes the steps one by one. Contents stay in `context`, which the tree must be read with.
    pub fn assemble(steps: &[Step], context: &Context) -> Result<Self, CopyError> {
        let mut tree = Self::default();
        for step in steps {
            match step {
                Step::Workdir(place) => {
                    tree.make_directory(relative(&place.path)).map_err(|what| CopyError { span: place.span, what })?
                }
                Step::Copy { sources, destination, into_directory } => {
                    for source in sources {
                        let copied = tree.copy(context, &source.path, relative(&destination.path), *into_directory);
                        copied.map_err(|what| {
                            let is_source = matches!(what, What::Missing(_) | What::Link(_));
                            CopyError { span: if is_source { source.span } else { destination.span }, what }
                        })?;
                    }
                }
            }
        }
        Ok(tree)
    }

    /// All entries, parents before what is in them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// The entry at the absolute, normalised `path`; of links on the way, none is followed.
    pub fn get(&self, path: &str) -> Option<&Node> {
        match relative(path) {
            "" => Some(&Node::Directory),
            path => self.nodes.get(path),
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn copy(&mut self, context: &Context, source: &str, to: &str, into_directory: bool) -> Result<(), What> {
        match context.get(source) {
            None => Err(What::Missing(source.to_owned())),
            Some(Node::Symlink { .. }) => Err(What::Link(source.to_owned())),
            Some(Node::Directory) => {
                self.make_directory(to)?;
                for (name, node) in context.below(source) {
                    self.place(join(to, name), node)?;
                }
                Ok(())
            }
            Some(file) => {
                let name = source.rsplit('/').next().unwrap_or(source);
                let is_directory = to.is_empty() || matches!(self.nodes.get(to), Some(Node::Directory));
                let path = if into_directory || is_directory { join(to, name) } else { to.to_owned() };
                self.place(path, file)
            }
        }
    }

    fn place(&mut self, path: String, node: &Node) -> Result<(), What> {
        if let Node::Directory = node {
            return self.make_directory(&path);
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.make_directory(parent)?;
        }
        if let Some(Node::Directory) = self.nodes.get(&path) {
            return Err(What::Replaces(path));
        }
        self.insert(path, node.clone())
    }

    /// Makes the directory `path` and its parents.
    fn make_directory(&mut self, path: &str) -> Result<(), What> {
        // Parents of what is there are there, too; most often the last one is, and nothing else needs a look.
        if path.is_empty() || matches!(self.nodes.get(path), Some(Node::Directory)) {
            return Ok(());
        }
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for part in ends.filter_map(|end| path.get(..end)) {
            match self.nodes.get(part) {
                None => self.insert(part.to_owned(), Node::Directory)?,
                Some(Node::Directory) => {}
                Some(_) => return Err(What::Blocked(part.to_owned())),
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: String, node: Node) -> Result<(), What> {
        // ext4 makes it, and mkext4 would make it twice.
        if path == "lost+found" {
            return Err(What::Reserved);
        }
        self.nodes.insert(path, node);
        Ok(())
    }
}

/// Why a step cannot be taken, and where in the Formfile that shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {}", what.hint())]
pub struct CopyError {
    span: Span,
    what: What,
}

impl CopyError {
    /// As the Formfile's other mistakes are told; `name` and `text` are its.
    pub fn diagnostic(&self, name: &str, text: &[u8]) -> Diagnostic {
        Diagnostic::at(name, text, self.span, self.what.to_string(), self.what.hint())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum What {
    #[error("`{0}` is not in the build context")]
    Missing(String),
    #[error("`{0}` is a symbolic link")]
    Link(String),
    #[error("`/{0}` is a file or a symbolic link in the package already, so nothing can be put below it")]
    Blocked(String),
    #[error("`/{0}` is a directory in the package already, and a file cannot take its place")]
    Replaces(String),
    #[error("`/lost+found` belongs to the file system")]
    Reserved,
}

impl What {
    fn hint(&self) -> &'static str {
        match self {
            Self::Missing(_) => "check its spelling, and that the context is the right directory",
            Self::Link(_) => "COPY what it points to, or the directory that holds it",
            Self::Blocked(_) | Self::Replaces(_) => "copy to another path, or leave out what is there",
            Self::Reserved => "leave it out of the build context, or copy it elsewhere",
        }
    }
}

fn relative(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

#[cfg(test)]
mod tests;
