use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::testing::tree;

const FILES: &[(&str, &str)] = &[("hello*", "x"), ("conf/a", "a"), ("sh -> /bin/sh", ""), ("conf-d/b", "b")];

fn written(files: &[(&str, &str)]) -> Vec<u8> {
    let (tree, diff) = tree("/srv", files);
    let mut tar = Vec::new();
    write_tar(&diff.with_parents(&tree), &mut tar).unwrap();
    tar
}

fn spool(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 1000, name_bytes: 1 << 16 };

fn put(tree: &mut Tree, tar: &[u8], layer: u32) -> Result<Diff, LayerError> {
    apply(tree, &spool(tar), layer, &LIMITS)
}

/// A tar of (name, kind, link or contents).
fn tar_of(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, text) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(7);
        let is_file = *kind == EntryType::Regular;
        header.set_size(if is_file { text.len() as u64 } else { 0 });
        // The crate refuses names that lead out; strangers do not.
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        if !is_file {
            old.linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        tar.append(&header, if is_file { text.as_bytes() } else { b"" }).unwrap();
    }
    tar.into_inner().unwrap()
}

fn names(tree: &Tree) -> Vec<&str> {
    tree.iter().map(|(path, _)| path).collect()
}

#[test]
fn a_layer_is_the_same_bytes_whatever_the_order_on_disk() {
    let mut shuffled = FILES.to_vec();
    shuffled.reverse();
    assert!(written(FILES) == written(&shuffled));
}

#[test]
fn what_is_written_is_read_again_as_it_was() {
    let (first, diff) = tree("/srv", FILES);
    let tar = written(FILES);
    let mut second = Tree::default();
    let again = put(&mut second, &tar, 1).unwrap();
    assert_eq!(names(&first), names(&second));
    assert_eq!(diff.changes.len(), again.changes.len());
    let mut rewritten = Vec::new();
    write_tar(&again, &mut rewritten).unwrap();
    assert!(rewritten == tar);
    assert_eq!(second.read("srv/conf/a", 10).unwrap().unwrap(), b"a");
}

#[test]
fn whiteouts_hide_what_layers_below_have_and_nothing_of_their_own() {
    let mut tree = Tree::default();
    use EntryType::{Directory, Regular};
    put(
        &mut tree,
        &tar_of(&[("a/", Directory, ""), ("a/x", Regular, "1"), ("a/y", Regular, "2"), ("b", Regular, "3")]),
        1,
    )
    .unwrap();
    let diff = put(&mut tree, &tar_of(&[("a/.wh.x", Regular, ""), (".wh.b", Regular, ""), (".wh.no", Regular, "")]), 2)
        .unwrap();
    assert_eq!(names(&tree), ["a", "a/y"]);
    assert_eq!(diff.changes.len(), 2);
    put(&mut tree, &tar_of(&[("a/new", Regular, "4"), ("a/.wh..wh..opq", Regular, "")]), 3).unwrap();
    assert_eq!(names(&tree), ["a", "a/new"]);
    put(&mut tree, &tar_of(&[("a", Regular, "now a file")]), 4).unwrap();
    assert_eq!(names(&tree), ["a"]);
    put(&mut tree, &tar_of(&[("a/b/c", Regular, "")]), 5).unwrap();
    assert_eq!(names(&tree), ["a", "a/b", "a/b/c"]);
}

#[test]
fn names_lead_nowhere_but_into_the_tree() {
    use EntryType::{Block, Char, Fifo, Link, Regular, Symlink};
    let mut tree = Tree::default();
    for (entries, what) in [
        (&[("../x", Regular, "")][..], "`..`"),
        (&[("a/../../x", Regular, "")], "`..`"),
        (&[("x", Link, "../etc/passwd")], "`..`"),
        (&[("x", Link, "nothing")], "hard link to no file"),
        (&[("l", Symlink, "l"), ("l/x", Regular, "")], "cannot be had"),
        (&[("x", Symlink, "")], "symbolic link to nothing"),
    ] {
        let error = put(&mut tree.clone(), &tar_of(entries), 1).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let entries = [
        ("/abs", Regular, "1"),
        ("way", Symlink, "../../../out"),
        ("way/in", Regular, "2"),
        ("dev", Char, ""),
        ("sda", Block, ""),
        ("pipe", Fifo, ""),
    ];
    put(&mut tree, &tar_of(&entries), 1).unwrap();
    // Out of the root there is only the root.
    assert_eq!(names(&tree), ["abs", "out", "out/in", "way"]);
    let node = tree.get("abs").unwrap();
    assert_eq!((node.mode, node.uid, node.gid, node.mtime), (0o4755, 5, 6, 7));
}

#[test]
fn names_that_are_not_text_and_more_than_the_limits_are_refused() {
    let mut bytes = tar_of(&[("abc", EntryType::Regular, "")]);
    bytes[0] = 0xff;
    let mut header = Header::from_byte_slice(&bytes[..512]).clone();
    header.set_cksum();
    bytes[..512].copy_from_slice(header.as_bytes());
    let error = put(&mut Tree::default(), &bytes, 1).unwrap_err().to_string();
    assert!(error.contains("not UTF-8"), "{error}");
    let many: Vec<String> = (0..1001).map(|number| number.to_string()).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), EntryType::Regular, "")).collect();
    assert!(matches!(put(&mut Tree::default(), &tar_of(&many), 1), Err(LayerError::TooMany { .. })));
}

#[test]
fn a_bomb_is_not_expanded_beyond_its_limit() {
    let zeros = std::io::repeat(0).take(64 << 20);
    let bomb = zstd::encode_all(zeros, 3).unwrap();
    assert!(bomb.len() < 64 << 10);
    let out = tempfile::tempfile().unwrap();
    let error = expand(&bomb[..], "application/vnd.oci.image.layer.v1.tar+zstd", &out, 1 << 20).unwrap_err();
    assert!(matches!(error, LayerError::TooLarge { .. }));
    assert!(out.metadata().unwrap().len() <= 2 << 20);
    assert!(matches!(expand(&bomb[..], "text/plain", &out, 1), Err(LayerError::MediaType(_))));
}

#[test]
fn a_layer_is_expanded_from_all_that_registries_hold() {
    let tar = written(FILES);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    for (media_type, blob) in [
        ("application/vnd.oci.image.layer.v1.tar", tar.clone()),
        ("application/vnd.oci.image.layer.v1.tar+gzip", gzip.finish().unwrap()),
        ("application/vnd.oci.image.layer.v1.tar+zstd", zstd::encode_all(&tar[..], 3).unwrap()),
    ] {
        let out = tempfile::tempfile().unwrap();
        let (digest, size) = expand(&blob[..], media_type, &out, 1 << 20).unwrap();
        assert_eq!((digest, size), (Digest::of(&tar), tar.len() as u64), "{media_type}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]

    /// Whatever comes, it is refused or makes a tree whose parents are all there, and it can be written again.
    #[test]
    fn no_bytes_break_the_reader(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..24),
        noise in proptest::collection::vec(any::<u8>(), 0..600),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = tar_of(&[
            ("a/", EntryType::Directory, ""), ("a/x", EntryType::Regular, "contents"), ("a/.wh.y", EntryType::Regular, ""),
            ("l", EntryType::Symlink, "a"), ("l/z", EntryType::Regular, "z"), ("h", EntryType::Link, "a/x"),
            ("a/.wh..wh..opq", EntryType::Regular, ""),
        ]);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        bytes.extend(noise);
        let mut tree = Tree::default();
        if let Ok(diff) = put(&mut tree, &bytes, 1) {
            for (path, _) in tree.iter() {
                if let Some((parent, _)) = path.rsplit_once('/') {
                    prop_assert!(tree.is_directory(parent), "{path}");
                }
                prop_assert!(!path.split('/').any(|part| matches!(part, "" | "." | "..")), "{path}");
            }
            let _ = write_tar(&diff.with_parents(&tree), std::io::sink());
        }
    }
}
