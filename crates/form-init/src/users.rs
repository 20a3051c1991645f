//! Who the workload runs as, by the image's own /etc/passwd and /etc/group.
//!
//! The C library's look-up is of no use here: in a static binary it would load shared objects out of the image.

/// What a process is, to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, without `gid`, ascending.
    pub(crate) groups: Vec<u32>,
    /// The home directory, if /etc/passwd has one for this user.
    pub(crate) home: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UserError {
    NoUser(String),
    NoGroup(String),
    Empty(String),
}

impl std::fmt::Display for UserError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoUser(name) => write!(f, "the image's /etc/passwd has no user {name:?}; add it, or give a number"),
            Self::NoGroup(name) => write!(f, "the image's /etc/group has no group {name:?}; add it, or give a number"),
            Self::Empty(spec) => write!(f, "the user {spec:?} has an empty part; write USER or USER:GROUP"),
        }
    }
}

impl std::error::Error for UserError {}

/// Resolves `USER`, `UID`, `USER:GROUP` or `UID:GID`; empty is root.
///
/// A number need not be in /etc/passwd. As with OCI images, a group that is named leaves no supplementary groups.
pub(crate) fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let spec = if spec.is_empty() { "0" } else { spec };
    let (user, chosen) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    if user.is_empty() || chosen.is_some_and(str::is_empty) {
        return Err(UserError::Empty(spec.to_owned()));
    }
    let number = user.parse::<u32>().ok();
    let entry = accounts(passwd).find(|a| a.name == user).or_else(|| accounts(passwd).find(|a| Some(a.uid) == number));
    let (uid, own_gid) = match (&entry, number) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let home = entry.as_ref().map(|account| account.home.to_owned());
    if let Some(chosen) = chosen {
        let named = groups(group).find(|g| g.name == chosen).map(|g| g.gid);
        let gid = named.or_else(|| chosen.parse().ok()).ok_or_else(|| UserError::NoGroup(chosen.to_owned()))?;
        return Ok(Identity { uid, gid, groups: Vec::new(), home });
    }
    let mut supplementary: Vec<u32> = match &entry {
        Some(account) => {
            groups(group).filter(|g| g.members.split(',').any(|m| m == account.name)).map(|g| g.gid).collect()
        }
        None => Vec::new(),
    };
    supplementary.retain(|&gid| gid != own_gid);
    supplementary.sort_unstable();
    supplementary.dedup();
    Ok(Identity { uid, gid: own_gid, groups: supplementary, home })
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// The lines of a passwd(5) that can be read; others are no users.
fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let _comment = fields.next();
        Some(Account { name, uid, gid, home: fields.next().unwrap_or("/") })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// The lines of a group(5) that can be read.
fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        Some(Group { name, gid: fields.next()?.parse().ok()?, members: fields.next().unwrap_or_default() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken line\nweb:x:33:34:Web:/var/www:/bin/false\n7:x:70:71::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:web\naudio:x:29:other,web\nvideo:x:44:webmaster\nlog:x:4:web\n";

    fn ids(spec: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        resolve(spec, PASSWD, GROUP).map(|i| (i.uid, i.gid, i.groups))
    }

    #[test]
    fn nobody_named_is_root_even_without_a_passwd() {
        assert_eq!(ids(""), Ok((0, 0, vec![])));
        let bare = resolve("", "", "").unwrap();
        assert_eq!(bare, Identity { uid: 0, gid: 0, groups: vec![], home: None });
    }

    #[test]
    fn a_name_brings_its_group_its_supplementary_groups_and_its_home() {
        assert_eq!(ids("web"), Ok((33, 34, vec![4, 29])));
        assert_eq!(resolve("web", PASSWD, GROUP).unwrap().home.as_deref(), Some("/var/www"));
    }

    #[test]
    fn a_number_needs_no_entry_but_uses_one() {
        assert_eq!(ids("65532"), Ok((65532, 0, vec![])));
        assert_eq!(ids("33"), Ok((33, 34, vec![4, 29])));
        assert_eq!(ids("65532:65532"), Ok((65532, 65532, vec![])));
    }

    #[test]
    fn a_user_whose_name_is_a_number_wins_over_the_number() {
        assert_eq!(ids("7"), Ok((70, 71, vec![])));
    }

    #[test]
    fn a_group_that_is_named_stands_alone() {
        assert_eq!(ids("web:audio"), Ok((33, 29, vec![])));
        assert_eq!(ids("web:1000"), Ok((33, 1000, vec![])));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(ids("db"), Err(UserError::NoUser("db".into())));
        assert_eq!(ids("web:db"), Err(UserError::NoGroup("db".into())));
        assert_eq!(ids("-1"), Err(UserError::NoUser("-1".into())));
        assert!(matches!(ids("web:"), Err(UserError::Empty(_))));
        assert!(matches!(ids(":web"), Err(UserError::Empty(_))));
    }
}
