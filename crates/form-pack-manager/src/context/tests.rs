use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::*;

fn read(tar: &[u8]) -> Result<Context, ContextError> {
    Context::read(tar, &std::env::temp_dir(), &Limits::default())
}

fn contents(context: &Context, path: &str) -> String {
    let Some(Node::File { contents, .. }) = context.get(path) else { panic!("{path} is no file") };
    let mut text = String::new();
    context.open(*contents).read_to_string(&mut text).unwrap();
    text
}

/// A tar archive whose names and links are written as they are, however bad.
#[derive(Default)]
struct Hostile(Vec<u8>);

impl Hostile {
    fn add(mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o6755);
        header.set_size(data.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn refusal(kind: EntryType, name: &str, link: &str) -> String {
    read(&Hostile::default().add(kind, name, link, b"").end()).unwrap_err().to_string()
}

#[test]
fn what_formignore_leaves_out_is_not_packed_and_the_formfile_always_is() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["Formfile", "a.txt", "target/x", "docs/b", "docs/keep/c"] {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
    let packed = |rules: &str| {
        fs::write(dir.path().join(".formignore"), rules).unwrap();
        let context = read(&pack_context(dir.path(), Vec::new()).unwrap()).unwrap();
        ["Formfile", "a.txt", "target", "target/x", "docs", "docs/b", "docs/keep/c"]
            .map(|path| context.get(path).is_some())
    };
    assert_eq!(packed("target\n"), [true, true, false, false, true, true, true]);
    assert_eq!(packed("**\n!docs/keep\n"), [true, false, false, false, true, false, true]);
    fs::write(dir.path().join(".formignore"), "[\n").unwrap();
    assert!(matches!(pack_context(dir.path(), Vec::new()), Err(PackError::Ignore(_))));
}

#[test]
fn a_packed_directory_comes_back_with_long_names_links_and_x_bits() {
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(250);
    fs::create_dir_all(dir.path().join(&long).join(&long)).unwrap();
    fs::write(dir.path().join(&long).join(&long).join("file"), "deep").unwrap();
    fs::write(dir.path().join("run"), "#!").unwrap();
    // A bit that no image takes over; set-uid is another, but Nix lets no build set it.
    fs::set_permissions(dir.path().join("run"), fs::Permissions::from_mode(0o1711)).unwrap();
    symlink(format!("{long}/{long}/file"), dir.path().join("link")).unwrap();

    let context = read(&pack_context(dir.path(), Vec::new()).unwrap()).unwrap();
    assert_eq!(contents(&context, &format!("{long}/{long}/file")), "deep");
    assert_eq!(context.get("link"), Some(&Node::Symlink { target: format!("{long}/{long}/file") }));
    assert!(matches!(context.get("run"), Some(Node::File { executable: true, .. })));
    assert_eq!(context.below("").count(), 5);
    assert_eq!(context.below(&long).map(|(name, _)| name.len()).collect::<Vec<_>>(), [250, 255]);
}

#[test]
fn packing_depends_on_neither_times_nor_the_order_of_creation() {
    let pack = |names: [&str; 3]| {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        pack_context(dir.path(), Vec::new()).unwrap()
    };
    assert!(pack(["a", "b", "c"]) == pack(["c", "a", "b"]));
}

#[test]
fn a_socket_in_the_directory_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).unwrap();
    assert!(matches!(pack_context(dir.path(), Vec::new()), Err(PackError::Kind(path)) if path.ends_with("sock")));
}

#[test]
fn names_that_leave_the_context_are_refused() {
    assert!(refusal(EntryType::Regular, "/etc/passwd", "").contains("absolute name"));
    assert!(refusal(EntryType::Regular, "a/../../b", "").contains("`..`"));
    assert!(refusal(EntryType::Directory, "..", "").contains("`..`"));
    assert!(refusal(EntryType::Symlink, "a/b", "../../c").contains("leads out of the build context"));
    assert!(refusal(EntryType::Symlink, "a", "x/../..").contains("leads out of the build context"));
    assert!(refusal(EntryType::Link, "a", "/etc/passwd").contains("absolute name"));
    assert!(refusal(EntryType::Link, "a", "b").contains("hard link to no file"));
}

#[test]
fn devices_pipes_and_unknown_kinds_are_refused() {
    for (kind, what) in [
        (EntryType::Char, "device"),
        (EntryType::Block, "device"),
        (EntryType::Fifo, "pipe"),
        (EntryType::GNUSparse, "sparse"),
        (EntryType::new(b'V'), "not known"),
    ] {
        assert!(refusal(kind, "x", "").contains(what), "{kind:?}");
    }
}

#[test]
fn links_inside_and_absolute_links_are_kept_as_text() {
    let tar = Hostile::default()
        .add(EntryType::Symlink, "a/b", "../c", b"")
        .add(EntryType::Symlink, "sh", "/bin/busybox", b"")
        .end();
    let context = read(&tar).unwrap();
    assert_eq!(context.get("a/b"), Some(&Node::Symlink { target: "../c".into() }));
    assert_eq!(context.get("sh"), Some(&Node::Symlink { target: "/bin/busybox".into() }));
    assert_eq!(context.get("a"), Some(&Node::Directory));
}

#[test]
fn nothing_can_be_placed_behind_a_link_or_a_file() {
    let behind_link = Hostile::default()
        .add(EntryType::Symlink, "a", "/etc", b"")
        .add(EntryType::Regular, "a/passwd", "", b"x")
        .end();
    assert!(read(&behind_link).unwrap_err().to_string().contains("below a name that is not a directory"));
    let instead_of_directory =
        Hostile::default().add(EntryType::Regular, "a/b", "", b"x").add(EntryType::Symlink, "a", "/etc", b"").end();
    assert!(read(&instead_of_directory).is_err());
}

#[test]
fn a_hard_link_shares_contents_and_a_later_file_wins() {
    let tar = Hostile::default()
        .add(EntryType::Regular, "a", "", b"one")
        .add(EntryType::Link, "b", "./a", b"")
        .add(EntryType::Regular, "./a", "", b"two")
        .end();
    let context = read(&tar).unwrap();
    assert_eq!((contents(&context, "a"), contents(&context, "b")), ("two".into(), "one".into()));
}

#[test]
fn limits_hold_for_bytes_entries_implied_directories_and_names() {
    let tar = Hostile::default().add(EntryType::Regular, "a/b/c", "", &[7; 5000]).end();
    let read = |limits: Limits| Context::read(&tar[..], &std::env::temp_dir(), &limits);
    let default = Limits::default();
    assert!(matches!(read(Limits { bytes: 5000, ..default }), Err(ContextError::TooLarge { .. })));
    assert!(matches!(read(Limits { entries: 2, ..default }), Err(ContextError::TooMany { .. })));
    assert!(matches!(read(Limits { name_bytes: 8, ..default }), Err(ContextError::NamesTooLong { .. })));
    assert!(read(Limits { bytes: tar.len() as u64, entries: 3, name_bytes: 9 }).is_ok());
}

#[test]
fn a_stream_that_is_cut_before_its_end_mark_is_refused() {
    let tar = Hostile::default()
        .add(EntryType::Regular, "a", "", &[7; 700])
        .add(EntryType::Regular, "b", "", &[7; 512])
        .end();
    assert!(read(&tar).is_ok());
    for end in 0..tar.len() - 1024 {
        assert!(read(&tar[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn a_huge_extension_header_is_refused_before_it_is_read() {
    let mut tar = Hostile::default().add(EntryType::GNULongName, "././@LongLink", "", b"").end();
    let mut header = Header::new_gnu();
    header.as_mut_bytes().copy_from_slice(&tar[..512]);
    header.set_size(1 << 40);
    header.set_cksum();
    tar[..512].copy_from_slice(header.as_bytes());
    let error = read(&tar).unwrap_err().to_string();
    assert!(error.contains("extension header of more than 64 KiB"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]

    #[test]
    fn no_bytes_make_the_reader_panic(
        damage in proptest::collection::vec((0_usize..3072, any::<u8>()), 0..8),
        fix_checksum in any::<bool>(),
    ) {
        let mut tar = Hostile::default()
            .add(EntryType::XHeader, "pax", "", b"19 path=some/place\n16 mtime=1.2345\n")
            .add(EntryType::Regular, "a", "", &[7; 600])
            .add(EntryType::Symlink, "b", "a", b"")
            .end();
        for (at, byte) in damage {
            tar[at] = byte;
        }
        if fix_checksum {
            for at in [0, 1024, 2560] {
                let mut header = Header::new_gnu();
                header.as_mut_bytes().copy_from_slice(&tar[at..at + 512]);
                header.set_cksum();
                tar[at..at + 512].copy_from_slice(header.as_bytes());
            }
        }
        let _ = read(&tar);
    }
}

#[test]
fn what_gnu_tar_packs_in_any_of_its_dialects_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(120);
    fs::create_dir(dir.path().join(&long)).unwrap();
    fs::write(dir.path().join(&long).join("ä"), "one").unwrap();
    fs::hard_link(dir.path().join(&long).join("ä"), dir.path().join("z")).unwrap();
    symlink(format!("{long}/ä"), dir.path().join("l")).unwrap();
    for format in ["gnu", "pax", "posix", "oldgnu"] {
        let mut tar = std::process::Command::new("tar");
        let output = match tar.arg("-C").arg(dir.path()).args(["--format", format, "-c", "."]).output() {
            Ok(output) => output,
            Err(e) => return eprintln!("skipped: tar does not run ({e})"),
        };
        let context = read(&output.stdout).unwrap_or_else(|e| panic!("{format}: {e}"));
        assert_eq!(contents(&context, &format!("{long}/ä")), "one", "{format}");
        assert_eq!(contents(&context, "z"), "one", "{format}");
        assert_eq!(context.get("l"), Some(&Node::Symlink { target: format!("{long}/ä") }), "{format}");
    }
}
