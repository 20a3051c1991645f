//! The disk is full: nothing new is taken, with a reason; what is there is told, and runs on; and when there is room again,
//! all goes on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use formation_tests::{eventually, story};

const NAME: &str = "hello.default.formation.internal";

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    story(|cloud| {
        cloud.kill();
        cloud.on_a_disk_of(64);
        cloud.start();
        cloud.form(&["run", &cloud.hello(), "--name", "hello"]).done();
        let machines = cloud.machines();
        let record = |n: usize| format!("{{kind: Record, name: r{n}, spec: {{name: r{n}, type: TXT, data: ['{n}']}}}}");
        cloud.apply(&record(0));

        // Until nothing more goes in.
        let filler = cloud.data().join("filler");
        let full = std::fs::write(&filler, vec![0; 64 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        let mut acknowledged = 0;
        let refused = eventually("a write is refused", || {
            let said = cloud.form_with(&[], &["apply", "-f", "-"], &record(acknowledged + 1));
            if said.code == Some(0) {
                acknowledged += 1;
                return None;
            }
            Some(said)
        });
        let said = refused.refused(6);
        assert!(said.contains("disk") && said.contains("full"), "{said}");
        cloud.form(&["run", &cloud.hello(), "--name", "other"]).refused(6);

        // It is told, named and run on.
        assert_eq!(cloud.list("records").len(), acknowledged + 1);
        assert_eq!(cloud.page(NAME).unwrap(), "Hello from hello!\n");
        assert_eq!(cloud.machines(), machines);

        std::fs::remove_file(&filler).unwrap();
        cloud.apply(&record(acknowledged + 1));
        assert_eq!(cloud.list("records").len(), acknowledged + 2);
        cloud.kill();
        cloud.start();
        assert_eq!(cloud.list("records").len(), acknowledged + 2, "nothing that was acknowledged is lost");
        assert_eq!(eventually("its page", || cloud.page(NAME)), "Hello from hello!\n");
    });
}
