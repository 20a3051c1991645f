//! What the stories share: a network namespace of their own, a host in it, and a guest that greets.
#![allow(dead_code, reason = "each story uses its part")]
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests may; clippy only knows those that are in a #[test]"
)]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use form_guest::{Gateways, GuestConfig, Interface, MacAddr, VERSION};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vmm_service::driver::Qemu;
use vmm_service::logs::LogReader;
use vmm_service::users::Users;
use vmm_service::{Accelerator, Host, MACHINE_UIDS, Nic, Phase, RestartPolicy, Vm, VmSpec, VmStatus};

/// The patience with anything that a guest does: TCG on a busy machine is slow, and a story that hangs is worse.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

const BRIDGE: &str = "br-story";
pub(crate) const TAP: &str = "tap-story";
pub(crate) const ADDRESS: &str = "10.99.0.2";
pub(crate) const ADDRESS_V6: &str = "fd99::2";

/// A place where a story happens.
pub(crate) struct Stage {
    pub(crate) host: Arc<Host>,
    pub(crate) guest: PathBuf,
    /// Before `directory`, so that it is dropped before it.
    reaper: Reaper,
    pub(crate) directory: tempfile::TempDir,
}

/// Ends the machines that a story left behind, because it failed or because it is about machines that nobody watches.
struct Reaper(PathBuf);

impl Drop for Reaper {
    fn drop(&mut self) {
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let here = std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&self.0));
            let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw).filter(|_| here) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// Tells a story in a network namespace of its own; or says why it cannot be told here.
pub(crate) fn story<F: Future<Output = ()>>(tell: impl FnOnce(Stage) -> F + Send) {
    let Some(guest) = std::env::var_os("FORMATION_GUEST").map(PathBuf::from) else {
        return println!("skipped: FORMATION_GUEST names no directory; run `cargo xtask guest` and give its output");
    };
    let guest = guest.canonicalize().expect("FORMATION_GUEST");
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: network namespaces and taps need root");
    }
    std::thread::scope(|scope| {
        // A namespace belongs to a thread. The runtime has only this one, and what it spawns inherits.
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async { tell(Stage::new(guest).await).await });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A host that keeps its instances in `directory`.
pub(crate) fn host(directory: &Path, guest: &Path) -> Arc<Host> {
    Arc::new(Host {
        instances: directory.join("instances"),
        kernel: guest.join("vmlinuz"),
        initramfs: guest.join("initramfs"),
        // It works everywhere, and these stories are about us, not about the processor.
        accelerator: Accelerator::Tcg,
        console_limit: 4 << 20,
        users: Users::open(directory, MACHINE_UIDS).expect("users"),
        driver: Arc::new(Qemu),
    })
}

impl Stage {
    async fn new(guest: PathBuf) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        ip(&format!("link add {BRIDGE} type bridge"));
        for address in ["10.99.0.1/24", "fd99::1/64 nodad"] {
            ip(&format!("address add {address} dev {BRIDGE}"));
        }
        ip(&format!("link set {BRIDGE} up"));
        add_tap(TAP);
        std::fs::create_dir(directory.path().join("instances")).expect("a directory");
        let host = host(directory.path(), &guest);
        Self { host, guest, reaper: Reaper(directory.path().to_owned()), directory }
    }

    /// A root disk with the program that greets, and nothing else.
    pub(crate) fn hello_disk(&self) -> PathBuf {
        let root = self.directory.path().join("root");
        std::fs::create_dir_all(&root).expect("a directory");
        std::fs::copy(self.guest.join("examples/hello/hello"), root.join("hello")).expect("the hello example");
        let disk = self.directory.path().join("hello.raw");
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&root).arg(&disk).arg("32M");
        assert!(mke2fs.output().expect("mke2fs").status.success());
        disk
    }

    /// The machine that greets, as user 65532, on the bridge.
    pub(crate) fn hello(&self) -> VmSpec {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        VmSpec {
            generation: 1,
            package_digest: String::new(),
            ports: Vec::new(),
            uid: "story".into(),
            vcpus: 1,
            memory_mib: 192,
            disk_mib: 64,
            base: self.hello_disk(),
            nics: vec![Nic { mac, tap: TAP.into() }],
            guest: GuestConfig {
                version: VERSION,
                hostname: "greeter".into(),
                interfaces: vec![Interface {
                    mac,
                    addresses: vec![
                        format!("{ADDRESS}/24").parse().expect("an address"),
                        format!("{ADDRESS_V6}/64").parse().expect("an address"),
                    ],
                    gateway: Gateways {
                        v4: Some([10, 99, 0, 1].into()),
                        v6: Some("fd99::1".parse().expect("a gateway")),
                    },
                    mtu: None,
                }],
                dns: Vec::new(),
                search: Vec::new(),
                hosts: Vec::new(),
                env: Default::default(),
                user: "65532".into(),
                workdir: String::new(),
                entrypoint: vec!["/hello".into()],
                grace_seconds: 5,
                stop_signal: 15,
                volumes: Vec::new(),
                health: None,
            },
            restart: RestartPolicy::Never,
        }
    }

    /// The instance's directory.
    pub(crate) fn instance(&self) -> PathBuf {
        self.host.instances.join("story")
    }
}

/// A tap on the bridge, as formnet makes them.
pub(crate) fn add_tap(name: &str) {
    ip(&format!("tuntap add dev {name} mode tap vnet_hdr"));
    ip(&format!("link set {name} master {BRIDGE} up"));
}

/// `ip`, in the story's namespace.
fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("ip");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until the machine is in `phase`.
pub(crate) async fn reaches(vm: &Vm, phase: Phase) -> VmStatus {
    let mut watch = vm.watch();
    let reached = tokio::time::timeout(PATIENCE, watch.wait_for(|status| status.phase == phase)).await;
    match reached {
        Ok(status) => status.expect("a status").clone(),
        Err(_elapsed) => panic!("still {:?}, not {phase:?}; console:\n{}", vm.status(), console(vm).await),
    }
}

/// What is on the machine's console.
pub(crate) async fn console(vm: &Vm) -> String {
    let mut log = vm.logs(None, false).await.expect("a log");
    let mut text = Vec::new();
    while let Some(bytes) = log.next().await.expect("a log") {
        text.extend(bytes);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The answer to `GET /`, once the greeter listens for the `run`th time.
pub(crate) async fn greeting(stage: &Stage, run: usize) -> String {
    let ask = async {
        let mut log = LogReader::open(&stage.instance(), None, true).await.expect("a log");
        let mut text = String::new();
        while text.matches("hello: listening on").count() < run {
            text.push_str(&String::from_utf8_lossy(&log.next().await.expect("a log").expect("an instance")));
        }
        get(ADDRESS).await
    };
    tokio::time::timeout(PATIENCE, ask).await.expect("an answer in time")
}

/// The answer to one `GET /`.
pub(crate) async fn get(address: &str) -> String {
    let mut stream = TcpStream::connect((address, 8080)).await.expect("a connection");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: greeter\r\n\r\n").await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

/// Whether a process is there (and no zombie).
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X'))
}
