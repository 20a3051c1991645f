use std::fs;
use std::io;
use std::process::{Command, Stdio};

use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, capabilities};

/// Which ids of the host the sandbox's are.
///
/// For a builder that is root, 0 is the first of a range that nobody has. For any other, 0 is the builder itself, and
/// only what comes after it is of the range: it could not give its files to anybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    uids: Range,
    gids: Range,
    with_tools: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    /// What root is.
    root: u32,
    first: u32,
    count: u32,
}

/// Why no ids can be given to a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum IdsError {
    #[error("the kernel does not tell which capabilities this process has")]
    Capabilities(#[source] io::Error),
    #[error(
        "this process may not map user ids: run it as root, give it CAP_SETUID and CAP_SETGID, or install newuidmap and \
         give its user a range of 65536 ids in /etc/subuid and /etc/subgid"
    )]
    NoRange,
}

/// As many as a distribution's own files and users need.
const COUNT: u32 = 65_536;

impl Ids {
    /// With CAP_SETUID and CAP_SETGID, 65536 ids from `first` on; else what /etc/subuid and /etc/subgid give us.
    pub fn detect(first: u32) -> Result<Self, IdsError> {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let held = capabilities(None).map_err(|e| IdsError::Capabilities(e.into()))?.effective;
        let range = |id: u32, first| Range { root: if uid == 0 { first } else { id }, first, count: COUNT };
        if held.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
            return Ok(Self { uids: range(uid, first), gids: range(gid, first), with_tools: false });
        }
        let name = user_name(uid);
        let of = |file| fs::read_to_string(file).ok().and_then(|text| sub_range(&text, &name, uid));
        match (of("/etc/subuid"), of("/etc/subgid")) {
            (Some(uids), Some(gids)) if has_tools() => {
                Ok(Self { uids: range(uid, uids), gids: range(gid, gids), with_tools: true })
            }
            _ => Err(IdsError::NoRange),
        }
    }

    /// The ids of the host that own what is root's in the sandbox.
    pub(crate) fn root(&self) -> (u32, u32) {
        (self.uids.root, self.gids.root)
    }

    pub(crate) fn give(&self, pid: u32) -> io::Result<()> {
        if self.with_tools {
            self.uids.with_tool("newuidmap", pid)?;
            return self.gids.with_tool("newgidmap", pid);
        }
        fs::write(format!("/proc/{pid}/uid_map"), self.uids.map())?;
        fs::write(format!("/proc/{pid}/gid_map"), self.gids.map())
    }
}

impl Range {
    fn words(self) -> Vec<u32> {
        if self.root == self.first {
            vec![0, self.first, self.count]
        } else {
            vec![0, self.root, 1, 1, self.first, self.count.saturating_sub(1)]
        }
    }

    fn map(self) -> String {
        self.words()
            .chunks(3)
            .map(|line| line.iter().map(u32::to_string).collect::<Vec<_>>().join(" ") + "\n")
            .collect()
    }

    fn with_tool(self, tool: &str, pid: u32) -> io::Result<()> {
        let words = self.words().into_iter().map(|word| word.to_string());
        let output = Command::new(tool).arg(pid.to_string()).args(words).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("{tool}: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }
}

fn user_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()));
    line.and_then(|line| line.split(':').next()).unwrap_or_default().to_owned()
}

/// Where a range of enough ids begins (subuid(5)).
fn sub_range(text: &str, name: &str, uid: u32) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next().filter(|owner| !owner.is_empty())?;
        let first = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        ((owner == name || owner == uid.to_string()) && count >= COUNT).then_some(first)
    })
}

fn has_tools() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    ["newuidmap", "newgidmap"].iter().all(|tool| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_by_name_or_by_number_and_only_if_it_is_long_enough() {
        let text = "other:1:65536\nshort:5:100\nann:100000:65536\n1001:300000:70000\n:7:65536\nbroken\n";
        assert_eq!(sub_range(text, "ann", 7), Some(100_000));
        assert_eq!(sub_range(text, "nobody", 1001), Some(300_000));
        assert_eq!(sub_range(text, "short", 7), None);
        assert_eq!(sub_range(text, "", 7), None);
    }

    #[test]
    fn root_is_the_first_of_the_range_or_the_builder_itself() {
        assert_eq!(Range { root: 1_000_000, first: 1_000_000, count: 65_536 }.map(), "0 1000000 65536\n");
        assert_eq!(Range { root: 990, first: 1_000_000, count: 65_536 }.map(), "0 990 1\n1 1000000 65535\n");
    }
}
