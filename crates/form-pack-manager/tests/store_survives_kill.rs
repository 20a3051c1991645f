//! A process that writes blobs is killed, fifty times, wherever it happens to be. Afterwards, what it was told is
//! stored is stored, what has a name is whole, and nothing else is left.
//!
//! The writer is this very test binary, started again for its one ignored test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]

#[path = "common/random.rs"]
mod random;

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use form_pack_manager::store::{BlobStore, DirStore};
use form_rootfs::{Digest, Hasher};
use random::Random;

const STORE: &str = "FORM_TEST_STORE";
const ROUND: &str = "FORM_TEST_ROUND";

#[test]
fn fifty_kills_lose_no_acknowledged_blob_and_leave_no_half_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let mut random = Random(7);
    let mut acknowledged = HashSet::new();
    for round in 0..50 {
        acknowledged.extend(write_until_killed(&root, round, random.next() % 30));
        let store = DirStore::open(&root).unwrap();
        check(&store, &root, &acknowledged);
    }
    assert!(acknowledged.len() > 50, "the writer got to finish only {} blobs", acknowledged.len());
}

/// Starts a writer, kills it after `lines` more lines of its output, and returns what it said was stored.
fn write_until_killed(root: &Path, round: u64, lines: u64) -> Vec<Digest> {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writes_blobs_until_it_is_killed", "--ignored", "--nocapture"])
        .env(STORE, root)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(writer.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    // Each line is a point inside a write or just after one: killing after a number of them needs no clock.
    while said.iter().filter(|line: &&String| is_ours(line)).count() as u64 <= lines {
        said.push(output.next().expect("the writer ended by itself").unwrap());
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    // What it said before it died, and we had not read yet, counts too; its last line may be half a line.
    said.extend(output.map_while(Result::ok));
    said.iter().filter_map(|line| line.strip_prefix("stored ")?.parse().ok()).collect()
}

fn is_ours(line: &str) -> bool {
    line == "reading" || line.starts_with("stored ")
}

fn check(store: &DirStore, root: &Path, acknowledged: &HashSet<Digest>) {
    let mut present = HashSet::new();
    for info in store.list().unwrap() {
        let info = info.unwrap();
        let mut hasher = Hasher::new(io::sink());
        io::copy(&mut store.get(&info.digest).unwrap().unwrap().reader, &mut hasher).unwrap();
        let (_, digest, size) = hasher.finish();
        assert_eq!((digest, size), (info.digest, info.size), "a blob is not what its name says");
        present.insert(digest);
    }
    assert!(acknowledged.is_subset(&present), "an acknowledged blob is gone");
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0, "the sweep left something");
}

#[test]
#[ignore = "started by fifty_kills_lose_no_acknowledged_blob_and_leave_no_half_of_one"]
fn writes_blobs_until_it_is_killed() {
    let Some(root) = std::env::var_os(STORE).map(PathBuf::from) else { return };
    let round: u64 = std::env::var(ROUND).unwrap().parse().unwrap();
    let store = DirStore::open(root).unwrap();
    let mut random = Random(1000 + round);
    println!();
    loop {
        let mut contents = Chatty { random: Random(random.next()), chunks: 1 + random.next() % 6 };
        let info = store.put(&mut contents, None).unwrap();
        say(&format!("stored {}", info.digest));
    }
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// Random bytes, with a word to the outside before each chunk.
struct Chatty {
    random: Random,
    chunks: u64,
}

impl Read for Chatty {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        say("reading");
        if self.chunks == 0 {
            return Ok(0);
        }
        self.chunks -= 1;
        let len = buf.len().min(40_000);
        for chunk in buf[..len].chunks_mut(8) {
            chunk.copy_from_slice(&self.random.next().to_le_bytes()[..chunk.len()]);
        }
        Ok(len)
    }
}
