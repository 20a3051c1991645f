//! Which accelerator a machine has is found out by trying.

#![allow(clippy::unwrap_used, reason = "tests may; clippy only knows those that are in a #[test]")]

mod common;

use common::story;
use vmm_service::accel::probe;

#[test]
fn the_probe_ends_leaves_nothing_and_remembers_its_answer() {
    story(|stage| async move {
        let data = stage.directory.path().join("data");
        let users = &stage.host.users;
        let first = probe(&data, &stage.host.kernel, &stage.host.initramfs, users).await.unwrap();
        let names: Vec<_> = std::fs::read_dir(&data).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["accelerator.json"]);

        // Asked again, it does not boot anything: without an initramfs it could not.
        let again = probe(&data, &stage.host.kernel, std::path::Path::new("/nonexistent"), users).await.unwrap();
        assert_eq!(first, again);
    });
}
