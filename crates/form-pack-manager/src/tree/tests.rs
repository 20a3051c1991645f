use super::*;
use crate::testing::context;

const FILES: &[(&str, &str)] =
    &[("hello*", "x"), ("conf/a", "a"), ("conf/b/c", "c"), ("link -> hello", ""), ("in/sh -> /bin/sh", "")];

/// Copies (sources, destination) one after the other; the paths then, directories with `/`, executables with `*`.
fn paths(steps: &[(&[&str], &str)]) -> Result<Vec<String>, CopyError> {
    let from = context(FILES).tree();
    let (mut tree, mut diff) = (Tree::default(), Diff::default());
    for (sources, destination) in steps {
        let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
        let into_directory = destination.ends_with('/') || sources.len() > 1;
        let copy =
            Copy { from: &from, sources: &sources, destination, into_directory, owner: None, mode: None, layer: 1 };
        copy.apply(&mut tree, &mut diff)?;
    }
    assert_eq!(diff.with_parents(&tree).changes.len(), tree.len());
    let show = |(path, node): (&str, &Node)| match &node.kind {
        Kind::Directory => format!("{path}/"),
        Kind::File(_) if node.mode == 0o755 => format!("{path}*"),
        Kind::File(_) => path.to_owned(),
        Kind::Symlink(target) => format!("{path} -> {target}"),
    };
    Ok(tree.iter().map(show).collect())
}

#[test]
fn a_file_becomes_its_destination_or_goes_into_the_directory() {
    assert_eq!(paths(&[(&["hello"], "/a/b")]).unwrap(), ["a/", "a/b*"]);
    assert_eq!(paths(&[(&["hello"], "/a/b/")]).unwrap(), ["a/", "a/b/", "a/b/hello*"]);
    assert_eq!(paths(&[(&["hello"], "/")]).unwrap(), ["hello*"]);
    assert_eq!(paths(&[(&["conf"], "/d"), (&["hello"], "/d")]).unwrap().last().unwrap(), "d/hello*");
}

#[test]
fn of_a_directory_the_contents_are_copied() {
    assert_eq!(paths(&[(&["conf"], "/etc")]).unwrap(), ["etc/", "etc/a", "etc/b/", "etc/b/c"]);
    assert_eq!(paths(&[(&["conf/b", "in"], "/x/")]).unwrap(), ["x/", "x/c", "x/sh -> /bin/sh"]);
    assert_eq!(paths(&[(&[""], "/")]).unwrap().len(), 8);
}

#[test]
fn links_on_the_way_are_followed_inside_of_the_tree() {
    let from = context(FILES).tree();
    let mut tree = context(&[("usr/bin/x", ""), ("bin -> usr/bin", ""), ("abs -> /usr/bin", "")]).tree();
    tree.insert("out".to_owned(), Node { kind: Kind::Symlink("../../usr".to_owned()), ..Node::directory(1) });
    assert_eq!(tree.resolve("bin/x", true).unwrap(), "usr/bin/x");
    assert_eq!(tree.resolve("out/bin", true).unwrap(), "usr/bin");
    assert_eq!(tree.resolve("bin", false).unwrap(), "bin");
    let mut diff = Diff::default();
    for destination in ["/bin/a", "/out/b", "/abs/"] {
        let sources = ["hello".to_owned()];
        let into_directory = destination.ends_with('/');
        let owner = Some((7, 8));
        Copy { from: &from, sources: &sources, destination, into_directory, owner, mode: Some(0o700), layer: 2 }
            .apply(&mut tree, &mut diff)
            .unwrap();
    }
    let changed: Vec<&str> = diff.changes.keys().map(String::as_str).collect();
    assert_eq!(changed, ["usr/b", "usr/bin/a", "usr/bin/hello"]);
    let node = tree.get("usr/bin/a").unwrap();
    assert_eq!((node.mode, node.uid, node.gid), (0o700, 7, 8));
    tree.insert("loop".to_owned(), Node { kind: Kind::Symlink("loop".to_owned()), ..Node::directory(1) });
    assert!(matches!(tree.resolve("loop/x", true), Err(PathError::Loop(_))));
}

#[test]
fn what_docker_would_do_silently_is_refused() {
    for (steps, message) in [
        (&[(&["nothing"][..], "/a")][..], "`nothing` is not there"),
        (&[(&["link"], "/a")], "`link` is a symbolic link"),
        (&[(&["hello"], "/a"), (&["hello"], "/a/b")], "`/a` is a file or a link in the package already"),
        (&[(&["hello"], "/lost+found")], "`/lost+found` belongs to the file system"),
        (&[(&["conf/b"], "/hello/"), (&["hello"], "/")], "`/hello` is a directory in the package already"),
    ] {
        let error = paths(steps).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
        assert!(!error.what.hint().is_empty());
    }
}
