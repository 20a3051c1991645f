use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::testing::tree;

/// A disk image in a directory of its own, and what `e2fsck` says of it.
struct Disk {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Disk {
    fn of(directory: &str, files: &[(&str, &str)], mib: u64) -> Result<Self, RootfsError> {
        let (tree, _) = tree(directory, files);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        write_rootfs(&tree, mib, &File::create(&path).unwrap(), &mut |_| {})?;
        Ok(Self { _dir: dir, path })
    }

    fn check(&self) {
        if let Some(output) = tool("e2fsck", &["-fn".as_ref(), &self.path]) {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }

    /// Runs a debugfs request; `None` if there is no debugfs.
    fn debugfs(&self, request: &str) -> Option<Vec<u8>> {
        let output = tool("debugfs", &["-R".as_ref(), request.as_ref(), &self.path])?;
        assert!(output.status.success(), "{request}");
        Some(output.stdout)
    }
}

/// The outside judges come with e2fsprogs, which not every machine has.
fn tool(name: &str, args: &[&Path]) -> Option<std::process::Output> {
    let found =
        ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    let Some(path) = found else {
        eprintln!("skipped: {name} is not installed (apt-get install e2fsprogs)");
        return None;
    };
    Some(Command::new(path).args(args).output().unwrap())
}

#[test]
fn a_disk_holds_names_modes_owners_links_and_contents() {
    let long = "n".repeat(255);
    let big = "0123456789abcdef".repeat(1 << 16);
    let disk = Disk::of(
        "/srv",
        &[
            ("run*", "#!/bin/sh\n"),
            ("d/plain", "text"),
            ("d-e/empty", ""),
            ("short -> d/plain", ""),
            (&format!("slow -> /{long}"), ""),
            (&long, "long name"),
            ("big", &big),
            ("üñí", "utf8"),
        ],
        16,
    )
    .unwrap();
    disk.check();
    assert_eq!(fs::metadata(&disk.path).unwrap().len(), 16 << 20);
    let Some(listing) = disk.debugfs("ls -l /srv") else { return };
    let listing = String::from_utf8(listing).unwrap();
    let line = |name: &str| {
        let found = listing.lines().find(|line| line.ends_with(&format!(" {name}")));
        found.unwrap_or_else(|| panic!("{name} in {listing}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(line("run").contains(" 100755 (1) 0 0 10 1-Jan-1970"), "{}", line("run"));
    assert!(line("d").contains(" 40755 (2) 0 0 "), "{}", line("d"));
    assert!(line("short").contains(" 120777 (7) 0 0 7 "), "{}", line("short"));
    line(&long);
    assert_eq!(disk.debugfs("cat /srv/d/plain").unwrap(), b"text");
    assert_eq!(disk.debugfs("cat /srv/üñí").unwrap(), b"utf8");
    assert!(disk.debugfs("cat /srv/big").unwrap() == big.as_bytes());
    let slow = String::from_utf8(disk.debugfs("stat /srv/slow").unwrap()).unwrap();
    assert!(slow.contains("Size: 256"), "{slow}");
}

#[test]
fn the_kernel_mounts_a_disk_and_finds_in_it_what_was_put_there() {
    let disk = Disk::of("/srv", &[("run*", "#!/bin/sh\n"), ("a/b/c", "deep"), ("l -> a/b/c", "")], 16).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("mnt");
    fs::create_dir(&target).unwrap();
    let mounted = Command::new("mount").args(["-o", "loop,ro"]).args([&disk.path, &target]).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no loop mounts here: {mounted:?}");
        return;
    }
    let seen = fs::read_to_string(target.join("srv/l"));
    let unmounted = Command::new("umount").arg(&target).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(seen.unwrap(), "deep");
}

#[test]
fn ten_thousand_files_in_one_directory_and_many_small_directories_make_a_sound_disk() {
    let names: Vec<_> = (0..10_000).map(|i| format!("flat/file-{i:05}")).collect();
    let nested: Vec<_> = (0..2_000).map(|i| format!("m/{}/{}/x", i / 40, i)).collect();
    let files: Vec<_> = names.iter().chain(&nested).map(|name| (name.as_str(), "x")).collect();
    let disk = Disk::of("/", &files, 96).unwrap();
    disk.check();
    let Some(seen) = disk.debugfs("cat /flat/file-09999") else { return };
    assert_eq!(seen, b"x");
}

#[test]
fn disks_of_all_sizes_are_sound_and_sparse() {
    for mib in [16, 17, 64, 127, 128, 129, 256, 1000, 1024, 4096, 10_240, 65_536] {
        let disk = Disk::of("/", &[("hello*", "x")], mib).unwrap();
        assert_eq!(fs::metadata(&disk.path).unwrap().len(), mib << 20);
        disk.check();
    }
}

#[test]
fn the_same_tree_gives_the_same_image() {
    let files = [("b/c", "1"), ("a*", "2"), ("l -> a", "")];
    let mut shuffled = files;
    shuffled.reverse();
    let image = |files: &[(&str, &str)]| fs::read(Disk::of("/", files, 16).unwrap().path).unwrap();
    assert!(image(&files) == image(&shuffled));
}

#[test]
fn a_disk_that_is_too_small_is_refused_with_the_size_that_works() {
    let big = "x".repeat(20 << 20);
    let files = [("big", big.as_str()), ("hello*", "x")];
    let Err(RootfsError::TooSmall { disk_mib: 16, needed_mib }) = Disk::of("/", &files, 16) else {
        panic!("20 MiB went into a disk of 16 MiB");
    };
    Disk::of("/", &files, needed_mib).unwrap().check();
    assert!(Disk::of("/", &files, needed_mib - 1).is_err());
}

#[test]
fn a_file_that_spans_block_groups_is_whole() {
    let block: String = (0..4096).map(|i| char::from(b'a' + u8::try_from(i % 26).unwrap())).collect();
    // A block group has 128 MiB.
    let big: String = (0..140 << 8).map(|i| format!("{i:08}{}", &block[8..])).collect();
    let disk = Disk::of("/", &[("big", &big), ("after", "small")], 192).unwrap();
    disk.check();
    let Some(seen) = disk.debugfs("cat /big") else { return };
    assert!(seen == big.as_bytes());
    assert_eq!(disk.debugfs("cat /after").unwrap(), b"small");
}

#[test]
fn owners_modes_times_capabilities_and_hard_links_are_on_the_disk() {
    let (mut tree, _) = tree("/", &[("a", "text"), ("b/c", "x")]);
    let mut node = tree.get("a").unwrap().clone();
    node.mode = 0o4711;
    (node.uid, node.gid, node.mtime) = (1000, 70_000, 86_400);
    node.capability = Some(Arc::from(*b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
    tree.insert("a".to_owned(), node.clone());
    tree.insert("b/link".to_owned(), node);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    write_rootfs(&tree, 16, &File::create(&path).unwrap(), &mut |_| {}).unwrap();
    let disk = Disk { _dir: dir, path };
    disk.check();
    let Some(stat) = disk.debugfs("stat /b/link") else { return };
    let stat = String::from_utf8(stat).unwrap();
    for part in ["Mode:  04711", "User:  1000", "Group: 70000", "Links: 2", "security.capability", "1970"] {
        assert!(stat.contains(part), "{part}: {stat}");
    }
}
