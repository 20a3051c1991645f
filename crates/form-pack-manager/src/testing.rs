//! What the tests of several modules need.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::context::{Context, Limits, pack_context};
use crate::store::DirStore;
use crate::tree::{Copy, Diff, Tree};
use crate::workshop::{self, Workshop};

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

/// The tree of a context whose files are all below `directory`.
pub(crate) fn tree(directory: &str, files: &[(&str, &str)]) -> (Tree, Diff) {
    let (mut tree, mut diff) = (Tree::default(), Diff::default());
    let from = context(files).tree();
    let copy = Copy {
        from: &from,
        sources: &[String::new()],
        destination: directory,
        into_directory: false,
        owner: None,
        mode: None,
        layer: 1,
    };
    copy.apply(&mut tree, &mut diff).unwrap();
    (tree, diff)
}

/// A builder's directories, without sandboxes: those need a program that can be one.
pub(crate) fn workshop(dir: &Path) -> Workshop {
    let options = workshop::Options {
        data_dir: dir.to_owned(),
        first_id: 1_000_000,
        most_bytes: 1 << 30,
        limits: Limits::default(),
        debian_mirror: "http://localhost/debian".to_owned(),
        debian_fresh: std::time::Duration::from_secs(60),
        registries: workshop::Registries::default(),
        program: "/bin/false".into(),
    };
    Workshop::open(DirStore::open(dir.join("store")).unwrap(), options).unwrap()
}
