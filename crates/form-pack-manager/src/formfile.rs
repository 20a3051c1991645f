//! The Formfile: what a package is made of, how it starts, and the size of the machine it runs on.
//!
//! This is the first slice of the language. Each instruction is a keyword and its arguments on one line; `\` at the end
//! of a line continues it, `#` at the start of one makes it a comment.
//!
//! | keyword | arguments | times |
//! | --- | --- | --- |
//! | `FROM` | `scratch` | once, first |
//! | `COPY` | `src... dst`, Docker's rules, without wildcards | any |
//! | `ENV` | `k=v...`, or `k v` | any |
//! | `WORKDIR` | a path; relative to the one before | any |
//! | `USER` | `user[:group]`, names or numbers | at most once |
//! | `EXPOSE` | `port[/tcp\|/udp]...` | any |
//! | `ENTRYPOINT` | a JSON array of strings | once |
//! | `VCPU` | 1..=64 | at most once; else 1 |
//! | `MEMORY` | MiB, 64..=1048576 | at most once; else 256 |
//! | `DISK` | MiB, 16..=1048576 | at most once; else 256 |
//!
//! Everything else is refused where it stands, so that a Formfile never means less than it says.

mod arguments;
mod diagnostic;
mod instructions;
mod lines;

pub use diagnostic::{Diagnostic, Span};

use diagnostic::Report;

/// A Formfile that holds: every instruction is known and every value is in range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formfile {
    /// `COPY` and `WORKDIR`, in the order of the file.
    pub steps: Vec<Step>,
    /// Environment of the entrypoint, by name, in the order in which the names first appear.
    pub env: Vec<(String, String)>,
    /// Directory that the entrypoint starts in: absolute, normalised; `/` if the file says nothing.
    pub workdir: String,
    /// `user[:group]`, names or numbers; `None` is root.
    pub user: Option<String>,
    /// Ports that the entrypoint listens on, in the order of the file, each once.
    pub ports: Vec<Port>,
    /// Program and arguments; never empty.
    pub entrypoint: Vec<String>,
    /// Size of the machine.
    pub machine: Machine,
}

/// What changes the file system of the package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Copies files and directories of the build context.
    Copy {
        /// Paths in the build context: relative, normalised; the empty path is the whole context. Never empty.
        sources: Vec<Place>,
        /// Path in the package: absolute, normalised.
        destination: Place,
        /// Whether the destination is a directory by its spelling, which is a `/` at its end.
        into_directory: bool,
    },
    /// Makes a directory. Absolute, normalised.
    Workdir(Place),
}

/// A path, and where the Formfile names it: whether it can be had is known only with the build context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The path.
    pub path: String,
    /// Where it stands.
    pub span: Span,
}

/// A port and its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port {
    /// 1..=65535.
    pub number: u16,
    /// TCP if the Formfile does not say.
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `tcp`
    Tcp,
    /// `udp`
    Udp,
}

/// Size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Virtual processors, 1..=64.
    pub vcpu: u32,
    /// Memory in MiB, 64..=1048576.
    pub memory_mib: u64,
    /// Root disk in MiB, 16..=1048576.
    pub disk_mib: u64,
}

impl Default for Machine {
    /// The smallest machine that a Linux guest and a small service are at ease in.
    fn default() -> Self {
        Self { vcpu: 1, memory_mib: 256, disk_mib: 256 }
    }
}

impl Formfile {
    /// Parses the Formfile `text`, which is untrusted. `name` is what diagnostics call it.
    ///
    /// Fails with all that is wrong, in the order of the file; after 1000 findings it stops looking.
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, Vec<Diagnostic>> {
        let mut report = Report::new(name, text);
        let logical = lines::logical_lines(text, &mut report);
        let formfile = instructions::interpret(&logical, &mut report);
        report.finish(formfile)
    }
}

impl std::fmt::Display for Port {
    /// As in the Formfile and in an OCI configuration: `8080/tcp`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}/{protocol}", self.number)
    }
}

#[cfg(test)]
mod tests;
