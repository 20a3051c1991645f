//! The console of a virtual machine.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may; clippy only knows those that are in a #[test]")]

mod common;

use std::sync::Arc;

use common::{PATIENCE, console, reaches, story};
use vmm_service::logs::LogReader;
use vmm_service::{Host, Phase, Vm};

#[test]
fn a_console_is_rotated_under_a_running_machine_and_stays_within_its_bounds() {
    story(|stage| async move {
        let spec = stage.hello();
        let host = Arc::into_inner(stage.host).expect("nobody else has it yet");
        let host = Arc::new(Host { console_limit: 60, ..host });
        let vm = Vm::ensure(&host, spec, true).unwrap();
        let mut follower = vm.logs(None, true).await.unwrap();
        let mut followed = String::new();
        follow(&mut follower, &mut followed, "hello: listening on").await;
        vm.stop().await.unwrap();
        follow(&mut follower, &mut followed, "Power down").await;
        reaches(&vm, Phase::Stopped).await;

        for line in ["the entrypoint runs as process", "hello: listening on", "form-init: stopping"] {
            assert_eq!(followed.matches(line).count(), 1, "{line} in {followed}");
        }
        let kept = console(&vm).await;
        assert!(followed.trim_end().ends_with(kept.trim_end()), "what is kept is the end: {kept}");

        let logs = std::fs::read_dir(host.instances.join("story")).unwrap().flatten();
        let names: Vec<_> = logs.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        assert!(names.contains(&"console.log.1".into()), "{names:?}");
        assert!(!names.contains(&"console.log.3".into()), "{names:?}");
    });
}

/// Reads on until `text` was seen.
async fn follow(follower: &mut LogReader, followed: &mut String, text: &str) {
    let read = async {
        while !followed.contains(text) {
            followed.push_str(&String::from_utf8_lossy(&follower.next().await.unwrap().unwrap()));
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect(text);
}
