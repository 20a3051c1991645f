//! Stories of builds, with a form-pack-manager of its own. The base is one static busybox.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

mod common;
#[path = "common/random.rs"]
mod random;

use std::path::Path;
use std::time::{Duration, SystemTime};

use common::Cloud;
use form_types::v1::BuildSpec;
use form_types::v1::build_spec::Network;
use form_types::v1::build_status::Phase;
use form_types::{Object, kinds};
use random::Random;
use reqwest::Method;

type Build = Object<kinds::Build>;

const BASE: &str = "FROM scratch
COPY busybox /bin/busybox
RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]
";

/// Whether steps can be run here; says why not.
fn can_run() -> bool {
    let is_root = std::fs::read_to_string("/proc/self/status").unwrap().contains("CapEff:\t000001ff");
    if !Path::new("/bin/busybox").exists() || !is_root {
        println!("skipped: this story runs a static busybox (apt-get install busybox-static) as root");
    }
    Path::new("/bin/busybox").exists() && is_root
}

struct Story {
    cloud: Cloud,
    client: form_client::Client,
}

impl Story {
    async fn begin(config: &str) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let cloud = Cloud::start(config).await;
        let client = cloud.client("form-pack-manager");
        Some(Self { cloud, client })
    }

    async fn context(&self, files: &[(&str, &[u8])]) -> String {
        let dir = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, contents).unwrap();
        }
        std::fs::copy("/bin/busybox", dir.path().join("busybox")).unwrap();
        let tar = form_pack_manager::context::pack_context(dir.path(), Vec::new()).unwrap();
        let answer = self.cloud.ask(Method::POST, "/v1/projects/default/contexts").body(tar).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        answer.json::<serde_json::Value>().await.unwrap()["digest"].as_str().unwrap().to_owned()
    }

    async fn want(&self, name: &str, spec: BuildSpec) {
        let spec = BuildSpec { package: name.split('-').next().unwrap().to_owned(), ..spec };
        self.client.apply(Object::<kinds::Build>::new("default", name, spec)).await.unwrap();
    }

    async fn until(&self, name: &str, is_so: impl Fn(&Build) -> bool) -> Build {
        loop {
            let build = self.client.get::<kinds::Build>("default", name).await.unwrap();
            if is_so(&build) {
                return build;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn ended(&self, name: &str) -> Build {
        let ended = |build: &Build| matches!(build.status.phase(), Phase::Succeeded | Phase::Failed | Phase::Cancelled);
        self.until(name, ended).await
    }

    async fn log(&self, name: &str, follow: bool) -> String {
        let path = format!("/v1/projects/default/builds/{name}/log?follow={follow}");
        self.cloud.get(&path).await.text().await.unwrap()
    }

    /// Builds a Formfile over the base, to its end.
    async fn build(&self, name: &str, lines: &str, spec: BuildSpec) -> Build {
        let text = format!("{BASE}{lines}\nENTRYPOINT [\"/bin/sh\"]\nDISK 32\n");
        let context = self.context(&[("Formfile", text.as_bytes()), ("a", b"a"), ("b/c", b"c")]).await;
        self.want(name, BuildSpec { context, ..spec }).await;
        self.ended(name).await
    }

    async fn succeeds(&self, name: &str, lines: &str) -> Build {
        let build = self.build(name, lines, BuildSpec::default()).await;
        assert_eq!(build.status.phase(), Phase::Succeeded, "{}", build.status.message);
        build
    }
}

macro_rules! story {
    ($config:expr) => {
        match Story::begin($config).await {
            Some(story) => story,
            None => return,
        }
    };
}

/// Processes that have `mark` in their arguments or environment.
fn processes(mark: &str) -> usize {
    let has = |file: std::path::PathBuf| {
        std::fs::read(file).is_ok_and(|bytes| bytes.windows(mark.len()).any(|word| word == mark.as_bytes()))
    };
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    all.filter(|process| has(process.join("cmdline")) || has(process.join("environ"))).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_run_are_logged_and_are_not_run_twice() {
    let story = story!("");
    let lines = "ENV NAME=world\nRUN echo \"hello $NAME\" > /greeting && cat /greeting\nWORKDIR /work\nRUN pwd > here; rm /greeting\nCOPY --chown=5:6 a b /data/\nRUN <<EOF\nset -e\nstat -c %u /data/a\nmkdir -p /deep/er; ln /data/a /deep/er/hard\nEOF";
    let first = story.succeeds("web-1", lines).await;
    let log = story.log("web-1", false).await;
    for part in ["[1/10 FROM scratch]\n", "/10 RUN echo \"hello $NAME\"", "hello world\n", "built sha256:"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(log.contains("\n5\n"), "{log}");
    let again = story.succeeds("web-2", lines).await;
    assert_eq!(first.status.digest, again.status.digest);
    let log = story.log("web-2", true).await;
    assert!(
        !log.contains("hello world") && !log.contains("root disk") && log.matches("cached\n").count() >= 6,
        "{log}"
    );
    // Without what was kept, the same comes of it.
    let fresh = story.build("web-3", lines, BuildSpec { no_cache: true, ..Default::default() }).await;
    assert_eq!(fresh.status.digest, first.status.digest);
    assert!(story.log("web-3", false).await.contains("hello world"));
    // The layers say what was changed, and nothing of what it was mounted on.
    let manifest = story.cloud.get("/v2/default/web/manifests/latest").await.json::<serde_json::Value>().await.unwrap();
    let mut names = Vec::new();
    for layer in manifest["layers"].as_array().unwrap().iter().skip(2) {
        let blob = story.cloud.get(&format!("/v2/default/web/blobs/{}", layer["digest"].as_str().unwrap())).await;
        let tar = zstd::decode_all(&blob.bytes().await.unwrap()[..]).unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        names.push(
            archive
                .entries()
                .unwrap()
                .map(|entry| entry.unwrap().path().unwrap().display().to_string())
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(
        names,
        [
            vec!["greeting"],
            vec!["work/"],
            vec![".wh.greeting", "work/", "work/here"],
            vec!["data/", "data/a", "data/c"],
            vec!["data/", "data/a", "deep/", "deep/er/", "deep/er/hard"],
        ]
    );

    // An image of the project is a base, and needs no Formfile to be a package.
    story.want("copy", BuildSpec { image: "default/web:latest".to_owned(), ..Default::default() }).await;
    let copy = story.ended("copy").await;
    assert_eq!(copy.status.phase(), Phase::Succeeded, "{}", copy.status.message);
    let packages = [story.client.get::<kinds::Package>("default", "web"), story.client.get("default", "copy")];
    let [web, copy] = futures::future::join_all(packages).await.try_into().unwrap();
    let (web, copy) = (web.unwrap(), copy.unwrap());
    assert_eq!(web.spec.root_disk.unwrap().image_digest, copy.spec.root_disk.unwrap().image_digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_says_which_how_and_what_it_wrote() {
    let story = story!("");
    let build = story.build("bad-1", "RUN echo the reason >&2; exit 42", BuildSpec::default()).await;
    assert_eq!(build.status.phase(), Phase::Failed);
    assert!(build.status.step.starts_with("4/5 RUN echo the reason"), "{}", build.status.step);
    for part in ["exit code 42", "the reason"] {
        assert!(build.status.message.contains(part), "{}", build.status.message);
    }
    let build = story.build("bad-2", "RUN [\"/nothing\"]", BuildSpec::default()).await;
    assert!(build.status.message.contains("cannot be started"), "{}", build.status.message);
    let build = story.build("bad-3", "INSTALL curl", BuildSpec::default()).await;
    assert!(build.status.message.contains("--network host"), "{}", build.status.message);
    let build = story.build("bad-4", "RUN sleep 54321", BuildSpec { timeout_seconds: 2, ..Default::default() }).await;
    assert!(build.status.message.contains("timeout"), "{}", build.status.message);
    assert_eq!(processes("54321"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_has_no_network_unless_it_asks_for_it() {
    let story = story!("");
    let interfaces = "RUN ls /sys /proc/sys/net/ipv4/conf; cat /proc/net/dev | grep -c : ";
    story.succeeds("net-1", interfaces).await;
    assert!(story.log("net-1", false).await.contains("\n1\n"));
    let port = story.cloud.pack.port();
    let reach = format!("RUN nc -w 2 127.0.0.1 {port} </dev/null && test -s /etc/hosts");
    let build = story.build("net-2", &reach, BuildSpec::default()).await;
    assert_eq!(build.status.phase(), Phase::Failed);
    let mut spec = BuildSpec::default();
    spec.set_network(Network::Host);
    let build = story.build("net-3", &reach, spec).await;
    assert_eq!(build.status.phase(), Phase::Succeeded, "{}", build.status.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_built_others_inspect_unpack_and_run() {
    let story = story!("");
    let lines = "ENV NAME=world\nRUN echo \"hello $NAME\" > /greeting; rm -r /linuxrc; mkdir -p /deep/er; ln /greeting /deep/er/hard\nEXPOSE 80";
    let build = story.succeeds("judged-1", lines).await;
    let dir = |name: &str| story.cloud.dir.path().join(name).display().to_string();
    let (auth, certs, registry) = (dir("auth.json"), dir("certs"), story.cloud.pack.to_string());
    let remote = format!("{registry}/default/judged:latest");
    let skopeo = |arguments: &[&str]| common::run("skopeo", &[&["--insecure-policy"], arguments].concat());
    let login = ["--authfile", &auth, "--cert-dir", &certs, "-u", "me", "-p", &story.cloud.admin, &registry];
    let Some(logged_in) = skopeo(&[&["login"], &login[..]].concat()) else { return };
    logged_in.unwrap();
    let source = format!("docker://{remote}");
    let inspected = skopeo(&["inspect", "--authfile", &auth, "--cert-dir", &certs, &source]).unwrap().unwrap();
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["Digest"], build.status.digest.as_str());
    assert_eq!((&inspected["Env"][0], &inspected["Os"]), (&"NAME=world".into(), &"linux".into()));
    // These do not know zstd all; skopeo turns the layers into what they do.
    let layout = dir("layout");
    let target = format!("oci:{layout}:v1");
    let copy = ["copy", "--authfile", &auth, "--src-cert-dir", &certs, "--dest-compress-format", "gzip"];
    skopeo(&[&copy[..], &["--dest-compress", &source, &target]].concat()).unwrap().unwrap();

    let bundle = dir("bundle");
    if let Some(unpacked) = common::run("umoci", &["unpack", "--image", &format!("{layout}:v1"), &bundle]) {
        unpacked.unwrap();
        let root = Path::new(&bundle).join("rootfs");
        assert_eq!(std::fs::read_to_string(root.join("deep/er/hard")).unwrap(), "hello world\n");
        assert!(std::fs::symlink_metadata(root.join("linuxrc")).is_err());
        assert!(std::fs::symlink_metadata(root.join("bin/ls")).unwrap().is_symlink());
    }
    if common::run("runc", &["--version"]).is_none() {
        return;
    }
    // Podman makes a name of the path, which has to be in lower case.
    let name = format!("form-built-{}", std::process::id());
    let lower = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().unwrap();
    let (root, runroot) = (dir("root"), dir("runroot"));
    let podman = |arguments: &[&str]| {
        let storage = ["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs", "--runtime", "runc"];
        common::run("podman", &[&storage[..], &["--cgroup-manager", "cgroupfs"], arguments].concat())
    };
    let local = lower.path().join("layout").display().to_string();
    std::fs::rename(&layout, &local).unwrap();
    let Some(pulled) = podman(&["pull", "-q", &format!("oci:{local}:v1")]) else { return };
    let image = pulled.unwrap();
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "none"];
    let command = [image.trim(), "-c", "cat /greeting; echo $NAME"];
    match podman(&[&["run", "--rm"], &limits[..], &command].concat()).unwrap() {
        Ok(said) => assert_eq!(said, "hello world\nworld\n"),
        Err(error) => println!("skipped: podman runs no containers here: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_build_leaves_nothing_and_the_next_one_works() {
    let mut story = story!("");
    let (store, mounted) = (story.cloud.store(), |arguments: &[&str]| {
        std::process::Command::new(arguments[0]).args(&arguments[1..]).status().is_ok_and(|status| status.success())
    });
    let path = store.display().to_string();
    story.cloud.kill().await;
    std::fs::remove_dir_all(&store).ok();
    std::fs::create_dir_all(&store).unwrap();
    if !mounted(&["mount", "-t", "tmpfs", "-o", "size=64m", "formation-test", &path]) {
        return println!("skipped: no tmpfs can be mounted here");
    }
    story.cloud.kill().await;
    story.cloud.is_ready().await;
    let first = story.build("full-1", "RUN echo small > /small", BuildSpec::default()).await;
    let lines = "RUN dd if=/dev/urandom of=/large bs=1M count=100";
    let in_step = story.build("full-2", lines, BuildSpec::default()).await;
    let lines = "RUN dd if=/dev/urandom of=/large bs=1M count=25";
    let after_step = story.build("full-3", lines, BuildSpec::default()).await;
    let count = |name: &str| std::fs::read_dir(store.join(name)).unwrap().count();
    let left = [count("tmp"), count("scratch"), count("sandbox/run")];
    let again = story.build("full-4", "RUN echo small > /small; echo more", BuildSpec::default()).await;
    let unmounted = mounted(&["umount", "-l", &path]);
    assert_eq!(first.status.phase(), Phase::Succeeded, "{}", first.status.message);
    assert_eq!((in_step.status.phase(), after_step.status.phase()), (Phase::Failed, Phase::Failed));
    for build in [in_step, after_step] {
        assert!(build.status.message.contains("No space left on device"), "{}", build.status.message);
    }
    assert_eq!(left, [0, 0, 0], "nothing half there");
    assert_eq!(again.status.phase(), Phase::Succeeded, "{}", again.status.message);
    assert!(unmounted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_mount_stays_and_is_in_no_layer() {
    let story = story!("");
    let run = |number| {
        format!(
            "RUN --mount=type=cache,target=/cache,sharing=locked echo {number} >> /cache/seen; cat /cache/seen; test ! -e /cache/none"
        )
    };
    story.succeeds("cache-1", &run(1)).await;
    story.succeeds("cache-2", &run(2)).await;
    assert!(story.log("cache-2", false).await.contains("\n1\n2\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_nowhere_but_in_their_step() {
    let story = story!("");
    let secret = "correct-horse-battery";
    let answer = story.cloud.ask(Method::POST, "/v1/projects/default/secrets").body(secret).send().await.unwrap();
    let handle = answer.json::<serde_json::Value>().await.unwrap()["handle"].as_str().unwrap().to_owned();
    let lines = "RUN --mount=type=secret,id=key test \"$(wc -c < /run/secrets/key)\" = 21 && echo begun && sleep 1 && test \"$(stat -c %a /run/secrets/key)\" = 400\nRUN test ! -e /run/secrets";
    let text = format!("{BASE}{lines}\nENTRYPOINT [\"/bin/sh\"]\nDISK 32\n");
    let context = story.context(&[("Formfile", text.as_bytes())]).await;
    let secrets = [("key".to_owned(), handle.clone())].into_iter().collect();
    story.want("secret-1", BuildSpec { context, secrets, ..Default::default() }).await;
    while !story.log("secret-1", false).await.contains("begun") {
        assert_eq!(processes(secret), 0);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(processes(secret), 0);
    let build = story.ended("secret-1").await;
    assert_eq!(build.status.phase(), Phase::Succeeded, "{}", build.status.message);
    let found =
        std::process::Command::new("grep").args(["-rlaF", secret]).arg(story.cloud.dir.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    // It was for that build; and the next must be given it again.
    let secrets = [("key".to_owned(), handle)].into_iter().collect();
    let build = story.build("secret-2", "", BuildSpec { secrets, ..Default::default() }).await;
    assert!(build.status.message.contains("send it again"), "{}", build.status.message);
    let build = story.build("secret-3", lines, BuildSpec { no_cache: true, ..Default::default() }).await;
    assert!(build.status.message.contains("secret"), "{}", build.status.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_wait_for_room_and_are_cancelled_queued_or_at_work() {
    let story = story!("builds = 1");
    let text = format!("{BASE}RUN sleep 98765 & echo begun; sleep 98765\nENTRYPOINT [\"/bin/sh\"]\n");
    let context = story.context(&[("Formfile", text.as_bytes())]).await;
    story.want("slow-1", BuildSpec { context: context.clone(), ..Default::default() }).await;
    while !story.log("slow-1", false).await.contains("begun") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    story.want("slow-2", BuildSpec { context: context.clone(), ..Default::default() }).await;
    story.until("slow-2", |build| build.status.phase() == Phase::Queued).await;
    // Who follows what waits hears its end; and of one that is deleted while it waits or works, that it is gone.
    let (followed, ()) = futures::future::join(story.log("slow-2", true), async {
        story.want("slow-2", BuildSpec { context: context.clone(), cancel: true, ..Default::default() }).await;
        assert_eq!(story.ended("slow-2").await.status.phase(), Phase::Cancelled);
    })
    .await;
    assert_eq!(followed, "");
    story.want("slow-3", BuildSpec { context: context.clone(), ..Default::default() }).await;
    let waiting = story.until("slow-3", |build| build.status.phase() == Phase::Queued).await;
    let (followed, ()) = futures::future::join(story.log("slow-3", true), async {
        story.client.delete::<kinds::Build>(&waiting.meta).await.unwrap();
    })
    .await;
    assert!(followed.contains("there is no build slow-3"), "{followed}");
    story.want("slow-1", BuildSpec { context: context.clone(), cancel: true, ..Default::default() }).await;
    assert_eq!(story.ended("slow-1").await.status.phase(), Phase::Cancelled);
    assert_eq!(processes("98765"), 0);
    // The context went with the last build of it.
    let context = story.context(&[("Formfile", text.as_bytes())]).await;
    story.want("slow-4", BuildSpec { context, ..Default::default() }).await;
    while !story.log("slow-4", false).await.contains("begun") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let working = story.client.get::<kinds::Build>("default", "slow-4").await.unwrap();
    story.client.delete::<kinds::Build>(&working.meta).await.unwrap();
    while processes("98765") > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_builds_begin_anew_and_nothing_is_left_over() {
    const SEED: u64 = 7;
    let mut story = story!("");
    let lines = "RUN dd if=/dev/urandom of=/x bs=1M count=8 2>/dev/null; rm /x\nRUN echo one > /one\nRUN sleep 0.1; echo two > /two";
    let wanted = story.succeeds("kill-0", lines).await.status.digest;
    let mut random = Random(SEED);
    let start = SystemTime::now();
    let mut round = 0;
    while round < 100 && start.elapsed().unwrap() < Duration::from_secs(20) {
        round += 1;
        let text = format!("{BASE}{lines}\nENTRYPOINT [\"/bin/sh\"]\nDISK 32\n");
        let context = story.context(&[("Formfile", text.as_bytes()), ("a", b"a"), ("b/c", b"c")]).await;
        let name = format!("kill-{round}");
        story.want(&name, BuildSpec { context, no_cache: true, ..Default::default() }).await;
        tokio::time::sleep(Duration::from_millis(random.next() % 600)).await;
        story.cloud.kill().await;
        story.cloud.is_ready().await;
        let build = story.ended(&name).await;
        assert_eq!(
            (build.status.phase(), &build.status.digest),
            (Phase::Succeeded, &wanted),
            "{}",
            build.status.message
        );
    }
    println!("{round} kills");
    let sandbox = story.cloud.store().join("sandbox");
    assert_eq!(std::fs::read_dir(sandbox.join("run")).unwrap().count(), 0);
    let half = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("new-");
    assert_eq!(std::fs::read_dir(sandbox.join("snap")).unwrap().flatten().filter(half).count(), 0);
    assert_eq!(std::fs::read_dir(story.cloud.store().join("scratch")).unwrap().count(), 0);
}

/// The suite of this machine and where its own apt finds it; says why not.
fn mirror() -> Option<(String, String)> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
    let arguments = ["indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"];
    let targets = common::run("apt-get", &arguments)?.unwrap_or_default();
    let uri = targets.lines().find_map(|line| line.strip_prefix(&format!("{suite} main ")));
    let Some(uri) = uri.filter(|_| Path::new("/usr/bin/mmdebstrap").exists()) else {
        println!("skipped: this story makes a Debian with mmdebstrap and a mirror in apt's sources");
        return None;
    };
    Some((suite.to_owned(), uri.trim_end_matches('/').to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debian_base_takes_packages_and_twice_the_same_comes_of_it() {
    let Some((suite, mirror)) = mirror() else { return };
    let story = story!(&format!("debian_mirror = {mirror:?}"));
    let build = async |name: &str, lines: &str, no_cache: bool, network: Network| {
        let text = format!("FROM debian:{suite}-slim\n{lines}\nDISK 512\n");
        let context = story.context(&[("Formfile", text.as_bytes())]).await;
        let mut spec = BuildSpec { context, no_cache, ..Default::default() };
        spec.set_network(network);
        story.want(name, spec).await;
        let build = story.ended(name).await;
        (build, story.log(name, false).await)
    };
    let (refused, _) = build("deb-0", "", false, Network::None).await;
    let message = &refused.status.message;
    assert!(message.contains("Formfile:1:6") && message.contains("--network host"), "{message}");
    let lines = "INSTALL hello\nRUN useradd -m web && id web\nUSER web\nRUN hello > /home/web/said && id -un";
    let (first, log) = build("deb-1", lines, false, Network::Host).await;
    if first.status.message.contains("FROM") && ["resolve", "onnect"].iter().any(|why| log.contains(why)) {
        return println!("skipped: no mirror of Debian is reached from here: {}", first.status.message);
    }
    assert_eq!(first.status.phase(), Phase::Succeeded, "{}\n{log}", first.status.message);
    assert!(log.contains("\nweb\n"), "{log}");
    // Of the builder's machine there is nothing in it, and of the sandbox's devices neither.
    let look = "RUN test ! -e /etc/hostname && test -z \"$(find /var/log /var/lib/apt/lists -type f)\" && stat -c %u:%a /usr/bin/passwd && apt-get --version && ls /dev";
    let (looked, log) = build("deb-2", look, false, Network::Host).await;
    assert_eq!(looked.status.phase(), Phase::Succeeded, "{}\n{log}", looked.status.message);
    assert!(log.contains("-slim]\ncached\n") && log.contains("\n0:4755\n"), "{log}");
    let (second, _) = build("deb-3", lines, true, Network::Host).await;
    assert_eq!(second.status.digest, first.status.digest, "{}", second.status.message);
}
