use super::*;
use crate::testing::{context, formfile, text};

/// The paths of the tree; directories end in `/`, executables in `*`.
fn paths(lines: &str, files: &[(&str, &str)]) -> Result<Vec<String>, CopyError> {
    let tree = Tree::assemble(&formfile(lines).steps, &context(files))?;
    let show = |(path, node): (&str, &Node)| match node {
        Node::Directory => format!("{path}/"),
        Node::File { executable: true, .. } => format!("{path}*"),
        Node::File { .. } => path.to_owned(),
        Node::Symlink { target } => format!("{path} -> {target}"),
    };
    Ok(tree.iter().map(show).collect())
}

const FILES: &[(&str, &str)] =
    &[("hello*", "x"), ("conf/a", "a"), ("conf/b/c", "c"), ("link -> hello", ""), ("in/sh -> /bin/sh", "")];

#[test]
fn a_file_becomes_its_destination_or_goes_into_the_directory() {
    assert_eq!(paths("COPY hello /a/b", FILES).unwrap(), ["a/", "a/b*"]);
    assert_eq!(paths("COPY hello /a/b/", FILES).unwrap(), ["a/", "a/b/", "a/b/hello*"]);
    assert_eq!(paths("COPY hello /", FILES).unwrap(), ["hello*"]);
    assert_eq!(paths("WORKDIR /a\nCOPY hello /a", FILES).unwrap(), ["a/", "a/hello*"]);
    assert_eq!(paths("WORKDIR /a\nCOPY hello .", FILES).unwrap(), ["a/", "a/hello*"]);
}

#[test]
fn of_a_directory_the_contents_are_copied() {
    assert_eq!(paths("COPY conf /etc", FILES).unwrap(), ["etc/", "etc/a", "etc/b/", "etc/b/c"]);
    assert_eq!(paths("COPY conf/b in /x/", FILES).unwrap(), ["x/", "x/c", "x/sh -> /bin/sh"]);
    assert_eq!(paths("COPY . /", FILES).unwrap().len(), 8);
}

#[test]
fn a_later_copy_replaces_a_file_and_merges_a_directory() {
    let tree =
        Tree::assemble(&formfile("COPY hello /a\nCOPY conf/a /a\nCOPY conf /d\nCOPY in /d").steps, &context(FILES));
    let tree = tree.unwrap();
    assert!(matches!(tree.get("/a"), Some(Node::File { executable: false, .. })));
    assert_eq!(tree.len(), 6);
}

#[test]
fn what_docker_would_do_silently_is_refused_where_it_stands() {
    for (lines, line, column, width, message) in [
        ("COPY nothing /a", 2, 6, 7, "`nothing` is not in the build context"),
        ("COPY hello conf/a no /a/", 2, 19, 2, "`no` is not in the build context"),
        ("COPY link /a", 2, 6, 4, "`link` is a symbolic link"),
        ("COPY hello /a\nCOPY hello /a/b", 3, 12, 4, "`/a` is a file or a symbolic link in the package already"),
        ("COPY in /\nCOPY hello /sh/x", 3, 12, 5, "`/sh` is a file or a symbolic link in the package already"),
        ("COPY in /\nCOPY conf /sh", 3, 11, 3, "`/sh` is a file or a symbolic link in the package already"),
        ("COPY hello /lost+found", 2, 12, 11, "`/lost+found` belongs to the file system"),
        ("WORKDIR /lost+found/x", 2, 9, 13, "`/lost+found` belongs to the file system"),
        ("COPY conf/b /hello/\nCOPY hello /", 3, 12, 1, "`/hello` is a directory in the package already"),
    ] {
        let found = paths(lines, FILES).unwrap_err().diagnostic("Formfile", text(lines).as_bytes());
        assert_eq!((found.line, found.column, found.width), (line, column, width), "{found}");
        assert!(found.message.starts_with(message) && found.hint.is_some(), "{found}");
    }
}
