//! What a request is about: the names that its path holds (distribution-spec, "Pulling manifests").

use std::fmt;

use form_rootfs::Digest;
use uuid::Uuid;

use super::Error;

/// The most bytes of a repository's name: what clients take, host included.
const MOST_NAME: usize = 255;
const MOST_TAG: usize = 128;

/// `PROJECT/NAME`, with more parts where somebody wants them. Fit to be a path: no part is empty or begins with a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Repository(String);

/// A manifest's name in its repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    Tag(String),
    Digest(Digest),
}

/// The thing in a repository that a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Tags,
    Manifest(Reference),
    Referrers(Digest),
    Blob(Digest),
    Uploads,
    Upload(Uuid),
}

impl Repository {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |what: &str| Error::bad("NAME_INVALID", format!("{text:?} is no repository: {what}"));
        if text.len() > MOST_NAME {
            return Err(invalid("a name has at most 255 bytes"));
        }
        if !text.split('/').all(is_part) {
            return Err(invalid(
                "its parts are lower-case letters and digits, with `.`, `_`, `__` or dashes between them",
            ));
        }
        if !text.contains('/') {
            return Err(invalid("it begins with the project, as in default/hello"));
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn project(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// The name of the Package that this repository's images can be: there is none for deeper repositories.
    pub(crate) fn package(&self) -> Option<&str> {
        let name = self.0.split_once('/')?.1;
        let is_label =
            name.len() <= 63 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        is_label.then_some(name)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        // No tag has a colon, and every digest has.
        if text.contains(':') { Ok(Self::Digest(digest(text)?)) } else { Ok(Self::Tag(tag(text)?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl Target {
    /// Out of what follows `/v2/`.
    pub(super) fn parse(path: &str) -> Result<(Repository, Self), Error> {
        let nothing = || Error::unknown("NAME_UNKNOWN", format!("/v2/{path} is no address of the distribution API"));
        let (rest, last) = path.rsplit_once('/').ok_or_else(nothing)?;
        let (before, what) = rest.rsplit_once('/').ok_or_else(nothing)?;
        match (what, last) {
            ("tags", "list") => Ok((Repository::parse(before)?, Self::Tags)),
            ("manifests", reference) => Ok((Repository::parse(before)?, Self::Manifest(Reference::parse(reference)?))),
            ("referrers", subject) => Ok((Repository::parse(before)?, Self::Referrers(digest(subject)?))),
            ("blobs", "uploads") => Ok((Repository::parse(before)?, Self::Uploads)),
            ("blobs", name) => Ok((Repository::parse(before)?, Self::Blob(digest(name)?))),
            ("uploads", id) => {
                let repository = Repository::parse(before.strip_suffix("/blobs").ok_or_else(nothing)?)?;
                if id.is_empty() {
                    return Ok((repository, Self::Uploads));
                }
                let id =
                    id.parse().map_err(|_| Error::unknown("BLOB_UPLOAD_UNKNOWN", format!("{id:?} is no upload")))?;
                Ok((repository, Self::Upload(id)))
            }
            _ => Err(nothing()),
        }
    }
}

pub(super) fn digest(text: &str) -> Result<Digest, Error> {
    text.parse().map_err(|error| Error::bad("DIGEST_INVALID", format!("{text:?}: {error}")))
}

pub(super) fn tag(text: &str) -> Result<String, Error> {
    let is_tag = text.len() <= MOST_TAG
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if is_tag {
        return Ok(text.to_owned());
    }
    let what = "a tag has at most 128 letters, digits, `_`, `.` and `-`, and begins with none of the last two";
    Err(Error::bad("MANIFEST_INVALID", format!("{text:?} is no tag: {what}")))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_part(part: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separates = |s: &str| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    part.starts_with(is_plain) && part.ends_with(is_plain) && part.split(is_plain).all(separates)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_repository_is_a_project_and_parts_that_keep_to_the_grammar() {
        for good in ["p/a", "default/hello", "p/a.b/c_d/e__f/g---h", "p-1/0"] {
            assert_eq!(Repository::parse(good).unwrap().as_str(), good);
        }
        let long = format!("p/{}", "a".repeat(254));
        for bad in [
            "", "p", "p/", "/p/a", "p//a", "p/A", "p/..", "p/../q", "p/.a", "p/a.", "p/a..b", "p/a___b", "p/-a", "p/ä",
            "p/a b", &long,
        ] {
            assert!(Repository::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Repository::parse("default/hello").unwrap().package(), Some("hello"));
        assert_eq!(Repository::parse("default/hello").unwrap().project(), "default");
        for other in ["default/a/b", "default/a.b"] {
            assert_eq!(Repository::parse(other).unwrap().package(), None);
        }
    }

    #[test]
    fn a_path_is_read_from_its_end_so_that_a_repository_may_be_called_anything() {
        let digest: Digest = DIGEST.parse().unwrap();
        let id = Uuid::from_u128(7);
        for (path, repository, target) in [
            ("p/a/tags/list".to_owned(), "p/a", Target::Tags),
            ("p/manifests/manifests/v1".to_owned(), "p/manifests", Target::Manifest(Reference::Tag("v1".into()))),
            (format!("p/a/manifests/{DIGEST}"), "p/a", Target::Manifest(Reference::Digest(digest))),
            (format!("p/blobs/uploads/blobs/{DIGEST}"), "p/blobs/uploads", Target::Blob(digest)),
            (format!("p/a/referrers/{DIGEST}"), "p/a", Target::Referrers(digest)),
            ("p/a/blobs/uploads/".to_owned(), "p/a", Target::Uploads),
            ("p/a/blobs/uploads".to_owned(), "p/a", Target::Uploads),
            (format!("p/a/blobs/uploads/{id}"), "p/a", Target::Upload(id)),
        ] {
            assert_eq!(Target::parse(&path).unwrap(), (Repository(repository.to_owned()), target), "{path}");
        }
        for bad in [
            "",
            "p",
            "p/a",
            "p/a/tags/",
            "p/a/manifests/",
            "p/a/manifests/.x",
            "p/a/uploads/x",
            "p/a/blobs/x",
            "../manifests/x",
        ] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
        assert!(tag(&"x".repeat(128)).is_ok() && tag(&"x".repeat(129)).is_err());
    }
}
