//! Which file the entrypoint's first word means.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where programs are looked for when the environment has no PATH.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why there is nothing to execute.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    NotInPath { program: String, path: String },
    NotExecutable(PathBuf),
    NoFile(PathBuf),
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotInPath { program, path } => {
                write!(f, "no program {program:?} in PATH={path}; add it to the image, or give its whole path")
            }
            Self::NotExecutable(path) => write!(f, "{} is not an executable file; chmod +x it", path.display()),
            Self::NoFile(path) => write!(f, "the image has no {}", path.display()),
        }
    }
}

impl std::error::Error for Missing {}

/// Finds `program` as a shell would: by `path` if it has no slash, else from `workdir`. `root` is `/` outside tests.
pub(crate) fn find(root: &Path, program: &str, path: &str, workdir: &str) -> Result<PathBuf, Missing> {
    if program.contains('/') {
        let place = Path::new(workdir).join(program);
        return match kind(root, &place) {
            Kind::Executable => Ok(place),
            Kind::Other => Err(Missing::NotExecutable(place)),
            Kind::Nothing => Err(Missing::NoFile(place)),
        };
    }
    let mut other = None;
    for directory in path.split(':') {
        // An empty part means the working directory (POSIX.1-2017, 8.3).
        let place = Path::new(workdir).join(directory).join(program);
        match kind(root, &place) {
            Kind::Executable => return Ok(place),
            Kind::Other => other = other.or(Some(place)),
            Kind::Nothing => {}
        }
    }
    Err(match other {
        Some(place) => Missing::NotExecutable(place),
        None => Missing::NotInPath { program: program.to_owned(), path: path.to_owned() },
    })
}

enum Kind {
    Executable,
    Other,
    Nothing,
}

fn kind(root: &Path, place: &Path) -> Kind {
    let inside = root.join(place.strip_prefix("/").unwrap_or(place));
    match fs::metadata(inside) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => Kind::Executable,
        Ok(_) => Kind::Other,
        Err(_) => Kind::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(files: &[(&str, u32)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, mode) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        root
    }

    #[test]
    fn the_first_executable_in_path_wins() {
        let root = image(&[("a/run", 0o644), ("b/run", 0o755), ("c/run", 0o755)]);
        assert_eq!(find(root.path(), "run", "/none:/a:/b:/c", "/"), Ok("/b/run".into()));
    }

    #[test]
    fn a_slash_means_a_place_seen_from_the_working_directory() {
        let root = image(&[("srv/bin/run", 0o755), ("run", 0o755)]);
        assert_eq!(find(root.path(), "bin/run", "/", "/srv"), Ok("/srv/bin/run".into()));
        assert_eq!(find(root.path(), "/run", "", "/srv"), Ok("/run".into()));
    }

    #[test]
    fn an_empty_part_of_path_is_the_working_directory() {
        let root = image(&[("srv/run", 0o755)]);
        assert_eq!(find(root.path(), "run", "/bin:", "/srv"), Ok("/srv/run".into()));
    }

    #[test]
    fn what_is_in_the_way_is_told_apart_from_what_is_absent() {
        let root = image(&[("bin/run", 0o644), ("bin/dir/x", 0o755)]);
        assert_eq!(find(root.path(), "run", "/bin", "/"), Err(Missing::NotExecutable("/bin/run".into())));
        assert_eq!(find(root.path(), "/bin/dir", "", "/"), Err(Missing::NotExecutable("/bin/dir".into())));
        assert_eq!(find(root.path(), "/bin/no", "", "/"), Err(Missing::NoFile("/bin/no".into())));
        let absent = find(root.path(), "no", "/bin", "/").unwrap_err();
        assert_eq!(absent, Missing::NotInPath { program: "no".into(), path: "/bin".into() });
    }
}
