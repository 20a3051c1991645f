//! Names of users and groups, as the image has them (passwd(5), group(5)).

use std::io;

use crate::tree::Tree;

/// Who a step runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// The most that is read of either file.
const MOST: u64 = 1 << 20;

/// `user[:group]`, names or numbers; empty: root. What is wrong with it, as the inner error.
pub(crate) fn find(tree: &Tree, text: &str) -> io::Result<Result<Who, String>> {
    let read =
        |path| Ok::<_, io::Error>(String::from_utf8_lossy(&tree.read(path, MOST)?.unwrap_or_default()).into_owned());
    let (passwd, groups) = (read("etc/passwd")?, read("etc/group")?);
    Ok(look_up(&passwd, &groups, text))
}

fn look_up(passwd: &str, groups: &str, text: &str) -> Result<Who, String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let entry = |text: &str, wanted: &str, number: usize| {
        let mut lines = text.lines().map(fields);
        let is_it = |line: &Vec<String>| line.first().is_some_and(|name| name == wanted);
        let has_number = |line: &Vec<String>| line.get(number).is_some_and(|id| id == wanted);
        let found = lines.clone().find(is_it);
        found.or_else(|| lines.find(has_number))
    };
    let id = |line: &[String], at: usize| line.get(at).and_then(|id| id.parse::<u32>().ok());
    let known = entry(passwd, user, 2);
    let uid = known.as_ref().and_then(|line| id(line, 2)).or_else(|| user.parse().ok());
    let Some(uid) = uid else { return Err(format!("there is no user `{user}` in the image's /etc/passwd")) };
    let own = known.as_ref().and_then(|line| id(line, 3)).unwrap_or(0);
    let home = known.as_ref().and_then(|line| line.get(5)).filter(|home| home.starts_with('/'));
    let home = home.cloned().unwrap_or_else(|| "/".to_owned());
    let Some(group) = group else {
        let name = known.as_ref().and_then(|line| line.first()).cloned().unwrap_or_default();
        let lines = groups.lines().map(fields);
        let is_member = |line: &Vec<String>| {
            !name.is_empty() && line.get(3).is_some_and(|members| members.split(',').any(|member| member == name))
        };
        let groups = lines.filter(is_member).filter_map(|line| id(&line, 2)).take(64).collect();
        return Ok(Who { uid, gid: own, groups, home });
    };
    let gid = entry(groups, group, 2).and_then(|line| id(&line, 2)).or_else(|| group.parse().ok());
    let gid = gid.ok_or_else(|| format!("there is no group `{group}` in the image's /etc/group"))?;
    Ok(Who { uid, gid, groups: Vec::new(), home })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number_with_their_groups() {
        let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n";
        let groups = "root:x:0:\nweb:x:44:\nmore:x:55:other,web\n";
        let find = |text| look_up(passwd, groups, text);
        let web = Who { uid: 33, gid: 44, groups: vec![55], home: "/srv".to_owned() };
        assert_eq!(find("web"), Ok(web.clone()));
        assert_eq!(find("33"), Ok(web));
        assert_eq!(find("web:more").unwrap().gid, 55);
        assert_eq!(find("7:8"), Ok(Who { uid: 7, gid: 8, groups: Vec::new(), home: "/".to_owned() }));
        assert_eq!(find("").unwrap().home, "/root");
        assert!(find("nobody").unwrap_err().contains("no user `nobody`"));
        assert!(find("web:nobody").unwrap_err().contains("no group `nobody`"));
    }
}
