use super::*;
use crate::testing::{context, formfile};

/// The paths of the tree; directories end in `/`, executables in `*`.
fn paths(lines: &str, files: &[(&str, &str)]) -> Result<Vec<String>, String> {
    let tree = Tree::assemble(&formfile(lines).steps, &context(files)).map_err(|e| e.to_string())?;
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
fn what_docker_would_do_silently_is_refused_with_its_line() {
    let error = |lines| paths(lines, FILES).unwrap_err();
    assert!(error("COPY nothing /a").starts_with("line 2: `nothing` is not in the build context"));
    assert!(error("COPY link /a").starts_with("line 2: `link` is a symbolic link"));
    assert!(error("COPY hello /a\nCOPY hello /a/b").starts_with("line 3: `/a` is a file or a symbolic link"));
    assert!(error("COPY in /\nCOPY hello /sh/x").starts_with("line 3: `/sh` is a file or a symbolic link"));
    assert!(error("COPY in /\nCOPY conf /sh").starts_with("line 3: `/sh` is a file"));
    assert!(error("COPY hello /lost+found").starts_with("line 2: `/lost+found` belongs to the file system"));
    assert!(error("WORKDIR /lost+found/x").starts_with("`/lost+found` belongs to the file system"));
    assert!(error("COPY conf/b /hello/\nCOPY hello /").starts_with("line 3: `/hello` is a directory"));
}
