//! Images go from the cloud to another registry and come back, as people move them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use formation_tests::{Cloud, eventually, program, story};

const OTHER: &str = "127.0.0.1:5000/team/apps/greeter";

/// Debian's registry, with nothing in it.
fn other_registry(cloud: &Cloud) -> Child {
    let config = cloud.dir().join("registry.yml");
    let text = "{version: 0.1, log: {level: error}, http: {addr: '127.0.0.1:5000'}, storage: {filesystem: {rootdirectory: DIR}}}";
    std::fs::write(&config, text.replace("DIR", &cloud.dir().join("registry").display().to_string())).unwrap();
    let quiet = || Stdio::null();
    let child = Command::new("docker-registry").arg("serve").arg(config).stdout(quiet()).stderr(quiet()).spawn();
    eventually("the other registry listens", || TcpStream::connect("127.0.0.1:5000").ok());
    child.unwrap()
}

/// The file under `dir` whose name begins so: a blob, by the first digits of its digest.
fn file(dir: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return file(&path, name);
        }
        entry.file_name().to_str()?.starts_with(name).then_some(path)
    })
}

/// The last word of what a command said.
fn digest(said: &str) -> String {
    said.split_whitespace().last().unwrap().to_owned()
}

#[test]
fn an_image_goes_to_another_registry_and_comes_back_the_same() {
    if !std::env::var_os("PATH")
        .is_some_and(|paths| std::env::split_paths(&paths).any(|dir| dir.join("docker-registry").is_file()))
    {
        return println!("skipped: there is no docker-registry; run `cargo xtask setup`");
    }
    story(|cloud| {
        let mut other = other_registry(cloud);
        let formfile = "FROM scratch\nCOPY greet /greet\nENTRYPOINT [\"/greet\"]\nDISK 16\n";
        let dir = cloud.package("greeter", formfile, &[("greet", &program("hello\n", 0))]);
        let built = digest(&cloud.form(&["pack", "build", &dir]).done());

        let said = cloud.form(&["pack", "tag", "greeter", "v1", "stable"]).done();
        assert!(said.contains("default/greeter:v1") && said.contains("default/greeter:stable"), "{said}");
        let to = format!("{OTHER}:v1");
        let pushed = cloud.form(&["pack", "push", "--plain-http", "greeter:v1", &to]).done();
        assert_eq!(digest(&pushed), built, "the bytes of the manifest are the same");
        let pulled = cloud.form(&["pack", "pull", "--plain-http", &to, "copy:v2"]).done();
        assert_eq!(digest(&pulled), built);
        assert!(pulled.contains("default/copy:v2"), "{pulled}");
        assert!(cloud.form(&["pack", "verify", "copy:v2"]).done().contains("is whole: 3 parts"));
        let history = cloud.form(&["pack", "history", "copy:v2"]).done();
        assert!(history.contains("sha256:") && history.contains("KiB") || history.contains(" B"), "{history}");

        // What came from elsewhere runs as what was built here.
        let said = cloud.form(&["run", "default/copy:v2", "--name", "again", "--restart", "never"]).done();
        assert!(said.contains("again has ended"), "{said}");
        assert!(cloud.form(&["logs", "again"]).done().lines().any(|line| line == "hello"));

        // Wrong names, and what is not there, are told apart.
        let said = cloud.form(&["pack", "push", "greeter", "library/greeter"]).refused(2);
        assert!(said.contains("it names no registry"), "{said}");
        cloud.form(&["pack", "push", "--plain-http", "nothing", &to]).refused(3);
        cloud.form(&["pack", "pull", "--plain-http", "127.0.0.1:5000/team/nothing:v1"]).refused(1);
        cloud.form(&["pack", "tag", "greeter", "no tag"]).refused(2);

        // A disk that rots is found out, and a new push heals it.
        let layer = history.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap();
        let blobs = cloud.data().join("packages/blobs");
        let damaged = file(&blobs, layer.strip_prefix("sha256:").unwrap()).unwrap();
        let whole = std::fs::read(&damaged).unwrap();
        std::fs::write(&damaged, vec![b' '; whole.len()]).unwrap();
        let said = cloud.form(&["pack", "verify", "greeter"]).refused(1);
        assert!(said.contains("default/greeter:latest is damaged"), "{said}");
        std::fs::write(&damaged, whole).unwrap();
        cloud.form(&["pack", "verify", "greeter"]).done();

        cloud.form(&["pack", "rm", "copy:v2"]).done();
        cloud.form(&["pack", "verify", "copy:v2"]).refused(3);
        cloud.form(&["pack", "rm", "greeter"]).done();
        cloud.form(&["get", "package", "greeter"]).refused(3);
        cloud.form(&["pack", "verify", "greeter:v1"]).done();
        assert!(cloud.form(&["pack", "gc"]).done().starts_with("freed "));

        other.kill().unwrap();
        other.wait().unwrap();
    });
}
