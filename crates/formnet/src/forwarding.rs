//! The kernel's permission to pass packets on. It is one for the whole machine, so it is turned on where it is off, and
//! never off: who else relies on it, nobody knows.

use std::fs;
use std::path::{Path, PathBuf};

/// Turns forwarding on. Answers with what is in the way, and what to do.
pub(crate) fn turn_on() -> Option<String> {
    turn_on_in(Path::new("/proc/sys/net"))
}

fn turn_on_in(sys: &Path) -> Option<String> {
    // A kernel that forwards IPv6 takes no router's announcements any more, and this machine may live by them: 2 is "take
    // them all the same" (the kernel's ip-sysctl.rst).
    for interface in fs::read_dir(sys.join("ipv6/conf")).into_iter().flatten().flatten() {
        let accept = interface.path().join("accept_ra");
        if value(&accept).as_deref() == Some("1") {
            // Of one that has just gone.
            let _ = fs::write(&accept, "2");
        }
    }
    let off: Vec<PathBuf> = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
        .map(|key| sys.join(key))
        .into_iter()
        // A kernel without IPv6 has no such file, and nothing to forward.
        .filter(|path| value(path).is_some_and(|value| value != "1") && fs::write(path, "1").is_err())
        .collect();
    let key = |path: &PathBuf| {
        let name = path.strip_prefix(sys).unwrap_or(path).display().to_string();
        format!("net.{}=1", name.replace('/', "."))
    };
    let keys: Vec<String> = off.iter().map(key).collect();
    (!keys.is_empty()).then(|| {
        format!("this machine forwards no packets, and formnet may not change that: run sysctl -w {}", keys.join(" "))
    })
}

fn value(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarding_is_on_and_announcements_are_still_taken() {
        let dir = tempfile::tempdir().unwrap();
        let at = |key: &str| dir.path().join(key);
        for (key, was) in
            [("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0"), ("ipv6/conf/eth0/accept_ra", "1")]
        {
            fs::create_dir_all(at(key).parent().unwrap()).unwrap();
            fs::write(at(key), format!("{was}\n")).unwrap();
        }
        assert_eq!(turn_on_in(dir.path()), None);
        let values =
            ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/eth0/accept_ra"].map(|key| value(&at(key)));
        assert_eq!(values.map(Option::unwrap), ["1", "1", "2"]);
    }
}
