//! What is wrong is refused: with what is wrong and where, with an exit code that scripts can use, and with no change.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use formation_tests::{Cloud, story};

/// The revision of the store's last change, as the API tells it.
fn state_of_all(cloud: &Cloud) -> Vec<String> {
    let kinds = ["projects", "networks", "builds", "packages", "instances", "zones", "records", "tokens"];
    kinds.map(|kind| cloud.form(&["get", kind, "-o", "json"]).done()).into()
}

#[test]
fn what_is_wrong_is_refused_with_a_reason_and_changes_nothing() {
    story(|cloud| {
        cloud.apply("{kind: Record, name: here, spec: {name: here, type: A, data: [192.0.2.1]}}");
        cloud.eventually("record", "here", |record| record["status"]["ready"] == true);
        let before = state_of_all(cloud);
        let apply = |yaml: &str| cloud.form_with(&[], &["apply", "-f", "-"], yaml);

        // Files: where, and what. A mistake in the last document spoils the first.
        let good = "{kind: Record, name: good, spec: {name: good, type: A, data: [192.0.2.2]}}\n---\n";
        let said = apply(&format!("{good}kind: Instance\nspec: [1, 2\nname: x\n")).refused(2);
        assert!(said.contains("standard input") && said.contains("line 4"), "{said}");
        let said =
            apply(&format!("{good}{{kind: Instance, name: x, spec: {{package: p, memroy_mib: 64}}}}")).refused(2);
        assert!(said.contains("document 2") && said.contains("spec.memroy_mib"), "{said}");
        let said = apply("{kind: Instance, name: x, spec: {package: p, memory_mib: 3, vcpu: 65}}").refused(2);
        assert!(said.contains("spec.memory_mib: 3 is below the least, 64"), "{said}");
        assert!(said.contains("spec.vcpu"), "all that is wrong: {said}");
        let said = apply("{kind: Instance, name: Not_a_Label, spec: {package: p}}").refused(2);
        assert!(said.contains("name"), "{said}");
        let said = apply("{kind: Record, name: x, name: y, spec: {name: x, type: A, data: [192.0.2.3]}}").refused(2);
        assert!(said.contains("duplicate"), "{said}");
        let entries: String = (0..500).map(|n| format!("    A{n}: {}\n", "x".repeat(32_000))).collect();
        let said = apply(&format!("kind: Instance\nname: big\nspec:\n  package: p\n  env:\n{entries}")).refused(2);
        assert!(said.contains("limit") && said.len() < 1000, "{said}");
        let said = apply("{kind: Frobnicator, name: x}").refused(2);
        assert!(said.contains("Frobnicator"), "{said}");
        let said =
            apply("{kind: Record, name: here, uid: somebody-else, spec: {name: here, type: A, data: [192.0.2.3]}}");
        said.refused(4);
        let said =
            apply("{kind: Record, name: here, revision: 1, spec: {name: here, type: A, data: [192.0.2.3]}}").refused(4);
        assert!(said.contains("here"), "{said}");
        apply("{kind: Record, project: nowhere, name: x, spec: {name: x, type: A, data: [192.0.2.3]}}").refused(3);
        apply("{kind: Package, name: x, spec: {}}").refused(2);
        cloud.form(&["apply", "-f", "/nowhere/at/all.yaml"]).refused(2);
        cloud.form(&["token", "create", "t", "--role", "editor", "--expires-at", "tomorrow"]).refused(2);

        // Commands.
        cloud.form(&["frobnicate"]).refused(2);
        cloud.form(&["run"]).refused(2);
        cloud.form(&["run", "/nowhere/at/all"]).refused(2);
        let said = cloud.form(&["run", &cloud.hello(), "--name", "Not_a_Label"]).refused(2);
        assert!(said.contains("name: \"Not_a_Label\" is not a DNS label"), "{said}");
        cloud.form(&["run", &cloud.hello(), "--env", "NOTHING"]).refused(2);
        let said = cloud.form(&["run", &cloud.hello(), "--env", "1A=b"]).refused(2);
        assert!(said.contains("spec.env.1A"), "{said}");
        cloud.form(&["get", "frobnicators"]).refused(2);
        cloud.form(&["get", "instances", "-l", "=,="]).refused(2);
        let said = cloud.form(&["get", "instance", "nobody"]).refused(3);
        assert!(said.contains("nobody"), "{said}");
        for words in [["instance", "stop", "nobody"], ["instance", "delete", "nobody"], ["delete", "record", "nobody"]]
        {
            cloud.form(&words).refused(3);
        }
        cloud.form(&["logs", "nobody"]).refused(3);
        cloud.form(&["pack", "inspect", "nobody"]).refused(3);
        cloud.form(&["delete", "network", "default"]).refused(5);

        // Who asks.
        let context = std::fs::read_to_string(cloud.context_file()).unwrap();
        let token = context.lines().find(|line| line.starts_with("token")).unwrap();
        let stranger = cloud.dir().join("stranger.toml");
        write_private(&stranger, &context.replace(token, "token = \"form_admin_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\""));
        let stranger = stranger.display().to_string();
        let said = cloud.form(&["--context", &stranger, "get", "instances"]).refused(5);
        assert!(!said.contains("AAAA"), "a token is in no message: {said}");
        cloud.form(&["--context", &stranger, "run", &cloud.hello()]).refused(5);

        assert_eq!(state_of_all(cloud), before);
    });
}

#[test]
fn a_broken_formfile_is_told_all_its_mistakes_with_line_and_column() {
    story(|cloud| {
        let dir = cloud.package("broken", "FROM scratch\nCOPPY hello /hello\nENTRYPOINT [\"/hello\"\nVCPU many\n", &[]);
        let said = cloud.form(&["run", &dir]).refused(2);
        for wanted in [
            "Formfile:2:1",
            "did you mean `COPY`?",
            "2 | COPPY hello /hello",
            "  : ^^^^^",
            "Formfile:3:",
            "Formfile:4:6",
        ] {
            assert!(said.contains(wanted), "{wanted:?} is not in:\n{said}");
        }
        let missing = cloud.package("missing", "FROM scratch\nCOPY hello /hello\nENTRYPOINT [\"/hello\"]\n", &[]);
        let said = cloud.form(&["pack", "build", &missing]).refused(1);
        for wanted in [
            "`hello` is not there to be copied",
            "Formfile:2:6",
            "2 | COPY hello /hello",
            "  :      ^^^^^",
            "help: check its spelling",
        ] {
            assert!(said.contains(wanted), "{wanted:?} is not in:\n{said}");
        }
        assert!(cloud.list("packages").is_empty());
        assert!(cloud.list("instances").is_empty());
        let empty = cloud.dir().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let said = cloud.form(&["run", &empty.display().to_string()]).refused(2);
        assert!(said.contains("there is no Formfile in it"), "{said}");
    });
}

#[test]
fn a_cloud_that_cannot_be_there_says_so() {
    story(|cloud| {
        // Another one with the same data, while the first is up.
        let said = cloud.form_here(&["up"]).refused(1);
        assert!(said.contains("a cloud is up already") && said.contains("form down"), "{said}");
        cloud.form(&["get", "nodes"]).done();

        // A configuration that cannot be used.
        let said = cloud.form_here(&["up", "--set", "dns_prot=53"]).refused(2);
        assert!(said.contains("dns_prot"), "{said}");
        let said = cloud.form_here(&["up", "--set", "state_port=70000"]).refused(2);
        assert!(said.contains("state_port"), "{said}");
        let file = cloud.dir().join("config.toml");
        std::fs::write(&file, "node = \"one\"\nstate_port = \"many\"\n").unwrap();
        let said = cloud.form_here(&["up", "--config", &file.display().to_string()]).refused(2);
        assert!(said.contains("config.toml") && said.contains("line 2") && said.contains("state_port"), "{said}");

        // Nobody there.
        cloud.form(&["--context", "/nowhere/at/all", "get", "nodes"]).refused(2);
        cloud.kill();
        let said = cloud.form(&["get", "nodes"]).refused(6);
        assert!(said.contains("is `form up` running?"), "{said}");
        cloud.start();
        cloud.form(&["get", "nodes"]).done();
    });
}

fn write_private(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
