//! What the tests of several modules need.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::context::{Context, Limits, pack_context};
use crate::formfile::Formfile;

/// A build context of files (`name`, `contents`), executable if the name ends in `*`, and links (`name -> target`).
pub(crate) fn context(files: &[(&str, &str)]) -> Context {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), files);
    let tar = pack_context(dir.path(), Vec::new()).unwrap();
    Context::read(&tar[..], &std::env::temp_dir(), &Limits::default()).unwrap()
}

/// Makes the files of [`context`] in `dir`.
pub(crate) fn fill(dir: &Path, files: &[(&str, &str)]) {
    for (name, contents) in files {
        let (name, target) = name.split_once(" -> ").map_or((*name, None), |(name, target)| (name, Some(target)));
        let path = dir.join(name.trim_end_matches('*'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match target {
            Some(target) => symlink(target, &path).unwrap(),
            None => fs::write(&path, contents).unwrap(),
        }
        if name.ends_with('*') {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}

/// A Formfile with `lines`, and what else it needs.
pub(crate) fn formfile(lines: &str) -> Formfile {
    Formfile::parse("Formfile", text(lines).as_bytes()).unwrap()
}

/// The text of [`formfile`].
pub(crate) fn text(lines: &str) -> String {
    format!("FROM scratch\n{lines}\nENTRYPOINT [\"/hello\"]\n")
}
