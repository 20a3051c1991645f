//! How a story is told.
//!
//! ```text
//!   #[test] ── story(|cloud| …) ── unshare --net --pid ── the same test again, inside
//!                                                          ├── form up        the real one, default ports
//!                                                          ├── form run …     each command as an operator types it
//!                                                          └── QEMU …
//! ```
//!
//! The namespaces make a story independent of all others, keep its traffic on this machine, and leave nothing behind
//! however it ends: with the first process of a pid namespace the kernel ends all the others.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::missing_panics_doc,
    reason = "tests may; clippy only knows those that are in a #[test]"
)]

mod answer;
mod cloud;
mod mesh;
mod place;
mod program;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub use answer::Answer;
pub use cloud::{Cloud, Said};
pub use mesh::Mesh;
use place::Place;
pub use program::{program, ticker};
pub use serde_json::Value;

/// The patience with anything at all: TCG on a busy machine is slow, and a story that hangs is worse.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Set inside.
const INSIDE: &str = "FORMATION_STORY_INSIDE";

/// The embedded WireGuard is spoken to by files, which no network namespace hides.
const PREPARE: &str =
    "mkdir -p /run/wireguard && mount -t tmpfs none /run/wireguard && ip link set lo up && \"$@\"; exit $?";

/// Tells a story about a cloud that has just come up; or says why it cannot be told here.
pub fn story<F: FnOnce(&mut Cloud)>(tell: F) {
    if let Some(reason) = lacks() {
        return println!("skipped: {reason}");
    }
    if std::env::var_os(INSIDE).is_some() {
        let mut cloud = Cloud::new(Place::here());
        cloud.start();
        tell(&mut cloud);
        return cloud.end();
    }
    inside::<F>();
}

/// Tells a story about machines in one Ethernet, on none of which anything runs yet; or says why it cannot be told here.
pub fn story_of<F: FnOnce(&mut [Cloud])>(machines: u8, tell: F) {
    if let Some(reason) = lacks() {
        return println!("skipped: {reason}");
    }
    if std::env::var_os(INSIDE).is_some() {
        let mut clouds: Vec<Cloud> = Place::machines(machines).into_iter().map(Cloud::new).collect();
        tell(&mut clouds);
        return clouds.into_iter().for_each(Cloud::end);
    }
    inside::<F>();
}

/// Tells a story about a mesh of so many nodes, whose formnets have just been started; or says why it cannot be told here.
pub fn story_of_a_mesh<F: FnOnce(&mut Mesh)>(nodes: u8, tell: F) {
    if let Some(reason) = lacks() {
        return println!("skipped: {reason}");
    }
    if std::env::var_os(INSIDE).is_some() {
        return tell(&mut Mesh::new(Place::machines(nodes)));
    }
    inside::<F>();
}

/// The same test once more, in namespaces of its own.
fn inside<F>() {
    // Of the closure, which is named after the test that it is in: `file::test::{{closure}}`.
    let name = std::any::type_name::<F>();
    let name = name.split("::").skip(1).take_while(|part| *part != "{{closure}}").collect::<Vec<_>>().join("::");
    let told = Command::new("unshare")
        .args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        // The shell is process 1: it takes the orphans, as every daemon expects of its system.
        .args(["sh", "-c", PREPARE, "sh"])
        .arg(std::env::current_exe().expect("this test's binary"))
        .args(["--exact", &name, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .expect("unshare");
    let (out, err) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

/// What a story needs and is not here.
fn lacks() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("namespaces and taps need root".to_owned());
    }
    for program in ["unshare", "nsenter", "ip", "nft", "dig", "curl", "qemu-system-x86_64", "qemu-img"] {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&paths).any(|dir| dir.join(program).is_file()) {
            return Some(format!("there is no {program}; run `cargo xtask setup`"));
        }
    }
    let namespaces = Command::new("unshare").args(["--net", "--pid", "--fork", "--mount-proc", "true"]).output();
    if !namespaces.is_ok_and(|output| output.status.success()) || !Path::new("/dev/net/tun").exists() {
        return Some("this machine makes no namespaces, or no taps".to_owned());
    }
    if !form().is_file() {
        return Some(format!("{} is not built; run `cargo build --workspace`", form().display()));
    }
    let kernel = guest().join("vmlinuz");
    (!kernel.is_file()).then(|| format!("there is no {}; run `cargo xtask guest`", kernel.display()))
}

/// The command: `FORM_BIN`, or what cargo built beside this test.
pub fn form() -> PathBuf {
    let built = || Some(std::env::current_exe().ok()?.parent()?.parent()?.join("form"));
    std::env::var_os("FORM_BIN").map(PathBuf::from).or_else(built).unwrap_or_default()
}

/// What guests boot, and the examples: `FORMATION_GUEST`, or where `cargo xtask guest` puts them.
pub fn guest() -> PathBuf {
    let made = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/guest-image");
    let named = std::env::var_os("FORMATION_GUEST").map_or_else(|| PathBuf::from(made), PathBuf::from);
    named.canonicalize().unwrap_or(named)
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Waits until `found` finds something.
#[track_caller]
pub fn eventually<T>(what: &str, found: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, found)
}

/// Waits until `found` finds something, and no longer than `patience`.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "the condition is in other processes, and none of them tells")]
pub fn within<T>(patience: Duration, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
