use std::fmt;

use serde::{Deserialize, Serialize};

/// One command, and what it sees. Paths of the host are relative to the sandbox's directory; targets are absolute paths
/// in the root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Directories that the root is made of, the uppermost first; never empty.
    pub lowers: Vec<String>,
    /// A directory of this run alone. What the command changes in its root is in `upper` below it afterwards.
    pub work: String,
    /// Program and arguments; the program is looked for in the PATH of `env`.
    pub command: Vec<String>,
    /// All of the environment.
    pub env: Vec<(String, String)>,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Where the command starts; it must be there.
    pub workdir: String,
    pub mounts: Vec<Mount>,
    pub network: Network,
    pub limits: Limits,
}

/// What is in the root besides what the overlay has there. Where a target is missing it is made, as root.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mount {
    /// A directory that outlives the command; made at need.
    Directory { source: String, target: String, mode: u32, uid: u32, gid: u32 },
    /// A file that is there for the command alone and is never on a disk.
    File { target: String, contents: Vec<u8>, mode: u32, uid: u32, gid: u32 },
    /// An empty directory in memory, of at most so many bytes.
    Tmpfs { target: String, bytes: u64 },
    /// A directory or file of the host by its absolute path, read-only; links are followed. A device stays one.
    Host { source: String, target: String },
}

// What a file holds may be a secret.
impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mount").field(&self.target()).finish()
    }
}

impl Mount {
    /// Where it is in the root.
    pub fn target(&self) -> &str {
        match self {
            Self::Directory { target, .. }
            | Self::File { target, .. }
            | Self::Tmpfs { target, .. }
            | Self::Host { target, .. } => target,
        }
    }
}

/// What the command can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A loopback of its own, and nothing else.
    None,
    /// What the host can.
    Host,
}

/// What the command may use up.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    /// Processes and threads at one time, in the whole sandbox.
    pub processes: u64,
    /// Descriptors of one process.
    pub files: u64,
    /// The largest file, bytes.
    pub file_bytes: u64,
}

impl Default for Limits {
    /// 4096 processes, 65 536 descriptors, files of 64 GiB.
    fn default() -> Self {
        Self { processes: 4096, files: 65_536, file_bytes: 64 << 30 }
    }
}

/// What the inner process does.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Job {
    Run(Box<Run>),
    /// Unpacks the archive on the descriptor 1 into the new directory `into`.
    Unpack {
        into: String,
    },
    /// Packs what the overlay left in `from` into the descriptor 1, whiteouts as OCI layers have them.
    Pack {
        from: String,
    },
    Remove {
        paths: Vec<String>,
    },
}

/// What the outer process needs to know.
#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The sandbox's directory.
    pub(crate) directory: String,
    pub(crate) network: Network,
    /// Whether the job needs processes and mounts of its own.
    pub(crate) is_run: bool,
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The namespaces are there; their ids are wanted.
    Unshared,
    /// The command ended so.
    Exited(i32),
    /// The command was killed by this signal.
    Killed(i32),
    /// Pack, Unpack, Remove came to their end.
    Done,
    /// The command cannot be started: not there, not executable.
    NotStarted(String),
    Failed(String),
}
