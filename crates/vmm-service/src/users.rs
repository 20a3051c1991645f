//! A user of its own for every machine, so that one whose guest breaks out of QEMU can reach neither us, nor the host's
//! files, nor another machine.
//!
//! A machine has a number out of a range that nobody else uses; it is its user and its group, and needs no name. Which
//! machine has which is kept as a symbolic link for each number, `NUMBER -> INSTANCE`: the kernel makes a link whole or
//! not at all, and never a second one of a name, so that no two machines can come to one number, whoever is killed when.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use form_service::file::sync_directory;
use rustix::process::Gid;
use rustix::thread::{CapabilitySet, capabilities};

use crate::error::{Error, Result, file, system};
use crate::store::{absent_is_fine, private_directory};
use crate::sys::User;

/// The users that machines can have: the first and the last.
pub type Range = [u32; 2];

/// Which users machines have.
#[derive(Debug)]
pub struct Users {
    directory: PathBuf,
    /// What there is to give; `None`: the machines have our own user.
    range: Option<Range>,
}

impl Users {
    /// Keeps in `data` who has which. Where we may not change users, every machine has our own; that is said once.
    ///
    /// # Errors
    /// If `data` cannot be written, or /proc not be read.
    pub fn open(data: &Path, range: Range) -> Result<Self> {
        let directory = data.join("users");
        private_directory(&directory)?;
        let hindrance = hindrance(range)?;
        if let Some(hindrance) = &hindrance {
            tracing::warn!("machines are not kept apart by users of their own: {hindrance}; QEMU runs as this service");
        }
        Ok(Self { directory, range: hindrance.is_none().then_some(range) })
    }

    /// The user of a machine: the same until [`release`](Self::release). `None`: ours.
    ///
    /// # Errors
    /// If it cannot be written down, or all are taken.
    pub fn claim(&self, instance: &str) -> Result<Option<u32>> {
        let Some([first, last]) = self.range else { return Ok(None) };
        for (user, owner) in self.claims()? {
            if owner == instance && (first..=last).contains(&user) {
                return Ok(Some(user));
            }
        }
        // From a random place on, so that one that was given back rests.
        let count = u64::from(last.saturating_sub(first)) + 1;
        let start = RandomState::new().hash_one(instance) % count;
        for step in 0..count {
            let user = u64::from(first) + (start + step) % count;
            let link = self.directory.join(user.to_string());
            match std::os::unix::fs::symlink(instance, &link) {
                Ok(()) => {
                    sync_directory(&self.directory).map_err(file("write", &self.directory))?;
                    return Ok(u32::try_from(user).ok());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(file("make", &link)(error)),
            }
        }
        Err(Error::NoUser { first, last })
    }

    /// Gives a machine's user back. To be called when nothing of the machine is left.
    ///
    /// # Errors
    /// If that cannot be written down.
    pub fn release(&self, instance: &str) -> Result<()> {
        self.retain(|owner| owner != instance)
    }

    /// Gives back the users of machines that are no more.
    ///
    /// # Errors
    /// If that cannot be written down.
    pub fn retain(&self, lives: impl Fn(&str) -> bool) -> Result<()> {
        for (user, _) in self.claims()?.into_iter().filter(|(_, owner)| !lives(owner)) {
            let link = self.directory.join(user.to_string());
            fs::remove_file(&link).or_else(absent_is_fine).map_err(file("delete", &link))?;
        }
        Ok(())
    }

    fn claims(&self) -> Result<Vec<(u32, String)>> {
        let entries = fs::read_dir(&self.directory).map_err(file("read", &self.directory))?;
        let claim = |entry: fs::DirEntry| {
            let user = entry.file_name().to_str()?.parse().ok()?;
            Some((user, fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok()?))
        };
        Ok(entries.flatten().filter_map(claim).collect())
    }
}

/// Why we cannot give machines users of their own; `None`: we can.
fn hindrance(range: Range) -> Result<Option<String>> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
    let have = capabilities(None).map_err(system("ask for this process's capabilities"))?.effective;
    if !have.contains(needed) {
        return Ok(Some("this service has not all of CAP_SETUID, CAP_SETGID and CAP_KILL".to_owned()));
    }
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let text = fs::read_to_string(map).map_err(file("read", map))?;
        if !covers(&text, range) {
            let [first, last] = range;
            return Ok(Some(format!("the users {first} to {last} (machine_uids) do not exist here, says {map}")));
        }
    }
    Ok(None)
}

/// Whether a user namespace has all of these (user_namespaces(7)). A range that lies in two of its pieces is not looked
/// for.
fn covers(map: &str, [first, last]: Range) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(start)), Some(Ok(_)), Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        start <= u64::from(first) && u64::from(last) < start.saturating_add(count)
    })
}

/// What a machine's process is to be, with what it needs for /dev/kvm if it uses that.
///
/// # Errors
/// If /dev/kvm is for root alone.
pub(crate) fn process_user(user: Option<u32>, kvm: bool) -> Result<Option<User>> {
    let Some(id) = user else { return Ok(None) };
    let group = if kvm { kvm_group()? } else { None };
    Ok(Some(User { id, group }))
}

/// The group that may open /dev/kvm; `None`: everybody may.
fn kvm_group() -> Result<Option<Gid>> {
    let device = "/dev/kvm";
    let meta = fs::metadata(device).map_err(file("look at", device))?;
    let group = meta.gid();
    match meta.mode() {
        mode if mode & 0o006 == 0o006 => Ok(None),
        // Root's own group is no group for a machine.
        mode if mode & 0o060 == 0o060 && group != 0 => Ok(Some(Gid::from_raw(group))),
        _ => Err(file("open as a machine's user", device)(io::Error::from(io::ErrorKind::PermissionDenied))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(data: &Path, range: Range) -> Users {
        Users { range: Some(range), ..Users::open(data, range).unwrap() }
    }

    #[test]
    fn a_machine_keeps_its_user_and_no_two_have_one() {
        let data = tempfile::tempdir().unwrap();
        let one = users(data.path(), [1000, 1002]);
        let mut given: Vec<_> = ["a", "b", "c"].map(|instance| one.claim(instance).unwrap().unwrap()).into();
        let after_a_restart = users(data.path(), [1000, 1002]);
        assert_eq!(["a", "b", "c"].map(|instance| after_a_restart.claim(instance).unwrap().unwrap()).to_vec(), given);
        assert!(matches!(one.claim("d"), Err(Error::NoUser { first: 1000, last: 1002 })));

        let freed = given[1];
        after_a_restart.release("b").unwrap();
        assert_eq!(one.claim("d").unwrap(), Some(freed));
        given.sort_unstable();
        assert_eq!(given, [1000, 1001, 1002]);
    }

    #[test]
    fn what_was_left_by_machines_that_are_no_more_is_given_back() {
        let data = tempfile::tempdir().unwrap();
        let users = users(data.path(), [1000, 1000]);
        users.claim("a").unwrap();
        users.retain(|instance| instance == "a").unwrap();
        assert!(users.claim("b").is_err());
        users.retain(|instance| instance != "a").unwrap();
        assert_eq!(users.claim("b").unwrap(), Some(1000));
    }

    #[test]
    fn a_user_of_another_range_is_not_given_again() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(users(data.path(), [1000, 1000]).claim("a").unwrap(), Some(1000));
        assert_eq!(users(data.path(), [2000, 2000]).claim("a").unwrap(), Some(2000));
    }

    #[test]
    fn users_are_only_given_where_the_namespace_has_them() {
        let all = "         0          0 4294967295\n";
        assert!(covers(all, [2_000_000_000, 2_000_065_535]));
        let container = "0 100000 65536\n";
        assert!(!covers(container, [2_000_000_000, 2_000_065_535]));
        assert!(covers(container, [60_000, 65_535]));
        assert!(!covers(container, [60_000, 65_536]));
        assert!(!covers("", [1, 2]));
    }
}
