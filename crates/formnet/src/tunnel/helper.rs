//! The process that moves the packets of a userspace tunnel.
//!
//! ```text
//!   formnet ──spawn──▶ helper: own session, nothing open but /dev/null, a lock, the device
//!      │ "ready" ◀── pipe ──┘         │ lives on when formnet ends; the next one finds it by its socket
//!      └──────── socket ─────────────▶│ ends with SIGTERM, or when its interface or its socket is deleted
//! ```
//!
//! It is this same program, run again ([`entry`]). Its one argument is the interface's name; the key comes through the
//! socket. A panic in one of boringtun's threads would leave a device that holds its locks and does nothing, so any
//! panic ends the process, and whoever looks after the tunnel starts another one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use defguard_boringtun::device::{DeviceConfig, DeviceHandle};
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::uapi;

/// The first argument of the program that is a tunnel and not what it else is.
const HELPER: &str = "formnet-tunnel";
const READY: &str = "ready";
const LOCKED: &str = "another tunnel has";
/// Of a panic, for whoever starts the next one.
const MOST_WORDS: usize = 400;
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes this process a tunnel, and never returns, if it was started as one. A program that uses
/// [`Tunnel`](super::Tunnel) calls it before all else: before it reads arguments, and before it has a second thread.
pub fn entry() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(HELPER) {
        return;
    }
    let code = match arguments.next() {
        Some(interface) => match run(&interface) {
            Ok(()) => 0,
            Err(error) => {
                // To whoever waits for "ready"; it may be gone.
                let _ = write!(io::stdout(), "{error}");
                1
            }
        },
        None => 2,
    };
    std::process::exit(code);
}

/// Why there is no new helper, in its words.
#[derive(Debug)]
pub(super) enum Refused {
    /// There is another one.
    Locked(String),
    Failed(String),
}

impl From<String> for Refused {
    fn from(words: String) -> Self {
        Self::Failed(words)
    }
}

/// Starts the helper, and returns when its socket answers.
pub(super) async fn start(program: &Path, interface: &str) -> Result<(), Refused> {
    let last = uapi::path(interface, "panic");
    if let Ok(words) = std::fs::read_to_string(&last) {
        tracing::warn!(interface, words, "the tunnel before this one ended by a panic");
        let _ = std::fs::remove_file(&last);
    }
    let mut command = Command::new(program);
    command.args([HELPER, interface]).env_clear().current_dir("/");
    // Its standard error is never read: boringtun writes a line for every bad packet.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = stdout.take(4096);
        let heard = tokio::time::timeout(PATIENCE, stdout.read_to_string(&mut said)).await;
        heard.map_err(|_| "it says nothing".to_owned())?.map_err(|error| error.to_string())?;
    }
    // The runtime waits for a child that is dropped, so it leaves no zombie.
    match said.as_str() {
        READY => Ok(()),
        "" => {
            Err(format!("{} did not become the tunnel; does its main call tunnel::entry()?", program.display()).into())
        }
        _ if said.starts_with(LOCKED) => Err(Refused::Locked(said)),
        _ => Err(said.into()),
    }
}

fn run(interface: &str) -> io::Result<()> {
    detach()?;
    let directory = uapi::path(interface, "sock");
    if let Some(directory) = directory.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let _lock = lock(interface)?;
    let panicked = uapi::path(interface, "panic");
    std::panic::set_hook(Box::new(move |panic| {
        let words: String = panic.to_string().replace('\n', " ").chars().take(MOST_WORDS).collect();
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&panicked);
        let _ = file.and_then(|mut file| file.write_all(words.as_bytes()));
        std::process::abort();
    }));
    let mut device = DeviceHandle::new(interface, config()).map_err(io::Error::other)?;
    io::stdout().write_all(READY.as_bytes())?;
    io::stdout().flush()?;
    rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    device.wait();
    device.clean();
    Ok(())
}

/// As many threads as there are processors, and no more than four: each has 128 KiB of buffers and a queue of the
/// device, and more than one already takes turns at a peer.
fn config() -> DeviceConfig {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    DeviceConfig { n_threads: processors.clamp(1, 4), ..DeviceConfig::default() }
}

/// Leaves all that was our starter's.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let names = std::fs::read_dir("/proc/self/fd")?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    let numbers = names.iter().filter_map(|name| name.to_str()?.parse::<i32>().ok());
    for descriptor in numbers.filter(|number| *number > 2) {
        // One of them was the listing itself, and is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    // Its memory has the key.
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // A socket a peer.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    Ok(())
}

/// One helper an interface: two would share the device, and take each other's packets.
fn lock(interface: &str) -> io::Result<File> {
    let path = uapi::path(interface, "lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|error| io::Error::other(format!("{LOCKED} {}: {error}", path.display())))?;
    Ok(file)
}
