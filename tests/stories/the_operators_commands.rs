//! The commands around the machines: going down, looking, explaining, tokens, packages.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use std::io::{BufRead as _, BufReader, Read as _};

use formation_tests::{Value, eventually, program, story};

const NAME: &str = "hello.default.formation.internal";

#[test]
fn going_down_leaves_the_machines_unless_they_are_meant_too() {
    story(|cloud| {
        cloud.form(&["run", &cloud.hello(), "--name", "hello"]).done();
        let machines = cloud.machines();
        let said = cloud.form_here(&["down"]).done();
        assert!(said.contains("its machines run on"), "{said}");
        cloud.ended();
        assert_eq!(cloud.machines(), machines);
        assert!(cloud.form_here(&["down"]).done().contains("down already"));

        cloud.start();
        assert_eq!(eventually("its page", || cloud.page(NAME)), "Hello from hello!\n");
        assert_eq!(cloud.machines(), machines);
        let said = cloud.form_here(&["down", "--machines"]).done();
        assert!(said.contains("machines stopped: 1"), "{said}");
        cloud.ended();
        assert!(cloud.machines().is_empty());

        // What is wanted did not change: it runs again.
        cloud.start();
        assert_eq!(eventually("its page", || cloud.page(NAME)), "Hello from hello!\n");
        assert_eq!(cloud.form(&["down", "--data-dir", "/nowhere/at/all"]).refused(1).lines().count(), 1);
    });
}

#[test]
fn what_is_there_is_shown_in_every_format_and_as_it_changes() {
    story(|cloud| {
        let status = cloud.form(&["status"]).done();
        assert!(status.contains("true") && status.contains("instances: none"), "{status}");
        let status: Value = serde_json_of(&cloud.form(&["status", "-o", "json"]).done());
        assert_eq!(status["nodes"][0]["status"]["ready"], true);

        let mut watch = cloud.form_that_goes_on(&["get", "records", "--watch"]);
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.next().unwrap().contains("RECORD"), "what is there comes first");
        cloud.apply("{kind: Record, name: one, labels: {tier: web}, spec: {name: one, type: A, data: [192.0.2.1]}}");
        lines.find(|line| line.contains("192.0.2.1") && line.contains("true")).unwrap();
        cloud.apply("{kind: Record, name: two, spec: {name: two, type: A, data: [192.0.2.2]}}");
        lines.find(|line| line.contains("192.0.2.2")).unwrap();
        cloud.form(&["delete", "record", "two"]).done();
        lines.find(|line| line.contains("two") && line.contains("is gone")).unwrap();
        watch.kill().unwrap();
        watch.wait().unwrap();

        let table = cloud.form(&["get", "records"]).done();
        assert!(table.lines().count() == 2 && !table.contains("REVISION"), "{table}");
        assert!(cloud.form(&["get", "record", "one", "-o", "wide"]).done().contains("REVISION"));
        assert!(cloud.form(&["get", "record", "one", "-o", "yaml"]).done().contains("name: one\n"));
        assert_eq!(cloud.get("record", "one")["spec"]["data"][0], "192.0.2.1");
        assert_eq!(cloud.form(&["get", "records", "-l", "tier=web"]).done().lines().count(), 2);
        assert_eq!(cloud.form(&["get", "records", "-l", "tier!=web"]).done().lines().count(), 1);
        assert!(cloud.form(&["get", "records", "-A"]).done().contains("192.0.2.1"));
        for nowhere in
            [&["get", "records"][..], &["get", "record", "one"], &["get", "records", "--watch"], &["pack", "list"]]
        {
            let said = cloud.form(&[nowhere, &["-p", "nowhere"]].concat()).refused(3);
            assert!(said.contains("there is no Project nowhere"), "{said}");
        }

        // What `get` shows can be applied again, and is no change.
        let shown = cloud.form(&["get", "record", "one", "-o", "yaml"]).done();
        cloud.apply(&shown);
        assert_eq!(cloud.form(&["get", "record", "one", "-o", "yaml"]).done(), shown);
    });
}

#[test]
fn a_project_goes_once_it_is_empty() {
    story(|cloud| {
        cloud.apply("{kind: Project, name: red}");
        cloud.apply("{kind: Record, project: red, name: r, spec: {name: r, type: A, data: [192.0.2.1]}}");
        let said = cloud.form(&["delete", "project", "red"]).refused(4);
        assert!(said.contains("still holds 1 Record"), "{said}");
        cloud.form(&["delete", "record", "r", "--project", "red"]).done();
        cloud.form(&["delete", "project", "red"]).done();
        cloud.form(&["get", "project", "red"]).refused(3);
        cloud.apply("{kind: Project, name: red}");
        assert!(cloud.form(&["get", "records", "--project", "red", "-o", "json"]).done().trim() == "[]");
    });
}

#[test]
fn packages_are_built_listed_and_shown() {
    story(|cloud| {
        let formfile =
            "FROM scratch\nCOPY it /bin/it\nENV COLOUR=red\nEXPOSE 80\nENTRYPOINT [\"/bin/it\", \"-v\"]\nDISK 16\n";
        let dir = cloud.package("it", formfile, &[("it", &program("", 0))]);
        let said = cloud.form(&["pack", "build", &dir]).done();
        let again = cloud.form(&["pack", "build", &dir, "--name", "other"]).done();
        let digest = said.trim().strip_prefix("it ").unwrap();
        assert_eq!(again.trim(), format!("other {digest}"), "equal input, equal bytes");

        let list = cloud.form(&["pack", "list"]).done();
        assert!(list.lines().count() == 3 && list.contains(&digest[..19]), "{list}");
        let shown = cloud.form(&["pack", "inspect", "it"]).done();
        for wanted in [digest, "- /bin/it\n", "- -v\n", "COLOUR: red\n", "port: 80\n", "disk_mib: 16\n"] {
            assert!(shown.contains(wanted), "{wanted:?} is not in\n{shown}");
        }
        let builds = cloud.form(&["get", "builds"]).done();
        assert_eq!(builds.matches("Succeeded").count(), 2, "{builds}");
    });
}

#[test]
fn a_token_is_good_for_what_its_role_says_until_it_is_revoked() {
    story(|cloud| {
        cloud.apply("{kind: Project, name: red}");
        let context = std::fs::read_to_string(cloud.context_file()).unwrap();
        let token = context.lines().find(|line| line.starts_with("token")).unwrap();
        let make = |name: &str, words: &[&str]| {
            let words = [&["token", "create", name], words].concat();
            let secret = cloud.form(&words).done();
            let file = cloud.dir().join(name);
            std::fs::write(&file, context.replace(token, &format!("token = {:?}", secret.trim()))).unwrap();
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            file.display().to_string()
        };
        let viewer = make("viewer", &["--role", "viewer"]);
        let editor = make("red-editor", &["--role", "editor", "--project", "red"]);
        let old = make("old", &["--role", "admin", "--expires-at", "2020-01-01T00:00:00Z"]);
        let by = |who: &str, words: &[&str], stdin: &str| {
            cloud.form_with(&[], &[&["--context", who], words].concat(), stdin)
        };
        let record = "{kind: Record, name: r, spec: {name: r, type: A, data: [192.0.2.1]}}";

        by(&viewer, &["get", "records"], "").done();
        let said = by(&viewer, &["apply", "-f", "-"], record).refused(5);
        assert!(said.contains("token viewer") && said.contains("may not write records"), "{said}");
        by(&viewer, &["run", &cloud.hello()], "").refused(5);
        by(&viewer, &["token", "list"], "").refused(5);

        by(&editor, &["apply", "-f", "-", "--project", "red"], record).done();
        by(&editor, &["apply", "-f", "-"], record).refused(5);
        by(&editor, &["get", "records"], "").refused(5);
        by(&editor, &["token", "create", "more", "--role", "viewer", "--project", "red"], "").refused(5);
        by(&old, &["get", "records"], "").refused(5);
        cloud.form(&["token", "create", "viewer", "--role", "admin"]).refused(4);
        cloud.form(&["token", "create", "x", "--role", "king"]).refused(2);

        let list = cloud.form(&["token", "list", "-o", "wide"]).done();
        assert!(list.contains("red-editor") && list.contains("all projects"), "{list}");
        let yaml = cloud.form(&["token", "list", "-o", "yaml"]).done();
        assert!(!yaml.contains("secret"), "{yaml}");
        let secret = std::fs::read_to_string(&editor).unwrap();
        let secret =
            secret.lines().find_map(|line| line.strip_prefix("token = \"")).unwrap().trim_end_matches('"').to_owned();
        assert!(!holds(&cloud.data(), secret.as_bytes()), "only its hash is stored");

        cloud.form(&["token", "revoke", "red-editor"]).done();
        by(&editor, &["get", "records", "--project", "red"], "").refused(5);
        cloud.form(&["token", "revoke", "red-editor"]).refused(3);
    });
}

#[test]
fn what_needs_no_cloud_works_without_one() {
    story(|cloud| {
        let said = cloud.form_here(&["doctor"]).refused(1);
        assert!(said.contains("missing"), "the ports are taken: {said}");
        let told = cloud.form_here(&["doctor"]).out;
        assert!(told.contains("ok       qemu-system-x86_64") && told.contains("missing  127.0.0.1:3004"), "{told}");
        cloud.kill();
        let told = cloud.form_here(&["doctor"]).done();
        assert!(told.contains("this machine can run the cloud") && !told.contains("missing"), "{told}");
        cloud.without_kernel();
        let told = cloud.form_here(&["doctor"]);
        assert!(told.out.contains("cargo xtask guest --out"), "{told:#?}");
        told.refused(1);

        let said = cloud.form(&["explain", "instance.spec"]).done();
        assert!(said.contains("memory_mib <uint32> (at least 64, at most 1048576)"), "{said}");
        assert!(said.contains("one of Always, OnFailure, Never"), "{said}");
        cloud.form(&["explain", "instance.spec.nothing"]).refused(2);
        for shell in ["bash", "zsh", "fish"] {
            assert!(cloud.form(&["completion", shell]).done().contains("instance"), "{shell}");
        }
        let table =
            cloud.form_with(&[("FORM_UP_DNS_PORT", "5353")], &["up", "--check-config", "--set", "node=one"], "").done();
        for (key, origin) in
            [("dns_port = 5353", "environment"), ("node = \"one\"", "flag"), ("state_port = 3004", "default")]
        {
            let line = table.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {table}"));
            assert!(line.contains(origin), "{line}");
        }
        let help = cloud.form(&["--help"]).done();
        assert!(help.contains("Exit codes:"), "{help}");
        assert!(cloud.form(&["--version"]).done().starts_with("form "));
    });
}

fn serde_json_of(text: &str) -> Value {
    text.parse().unwrap()
}

/// Whether a file under `dir` has `bytes` in it.
fn holds(dir: &std::path::Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return holds(&path, bytes);
        }
        let mut text = Vec::new();
        std::fs::File::open(&path).unwrap().read_to_end(&mut text).unwrap();
        text.windows(bytes.len()).any(|window| window == bytes)
    })
}
