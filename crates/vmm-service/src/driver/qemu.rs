//! QEMU, controlled over QMP (the QEMU Machine Protocol, docs/interop/qmp-spec).
//!
//! A machine that we started and one that we found are the same thing here: a socket in its directory, and a process
//! that the socket's other end belongs to. Starting ends where adopting begins.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use form_guest::{CONFIG_SERIAL, REPORT_PORT, ROOT_SERIAL};
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp::{self, ChardevBackend, ChardevCommon, ChardevFile};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncReadExt, WriteHalf};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::{Driver, Machine, Running};
use crate::accel::Accelerator;
use crate::error::{Error, Result, file, system};
use crate::store::{Store, absent_is_fine};
use crate::sys::{self, Readable};
use crate::watch::DirectoryWatch;

/// How long QEMU may take until it answers on its socket.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to answer a command.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How often to look again for what has no sign of its own: a socket that listens, a lock that is free.
const LOOK: Duration = Duration::from_millis(100);
/// Of `qemu.log`, what makes it into an error.
const LAST_WORDS: u64 = 2048;

/// QEMU for x86-64, from the PATH.
#[derive(Clone, Copy, Debug, Default)]
pub struct Qemu;

#[async_trait]
impl Driver for Qemu {
    async fn start(&self, store: &Store, machine: &Machine) -> Result<Box<dyn Running>> {
        let Some(alive) = store.claim_alive()? else {
            return Err(Error::Silent { path: store.path().to_owned() });
        };
        let socket = store.file("qmp.sock");
        std::fs::remove_file(&socket).or_else(absent_is_fine).map_err(file("delete", &socket))?;
        let words = store.file("qemu.log");
        let log = File::create(&words).map_err(file("make", &words))?;

        let mut command = Command::new("qemu-system-x86_64");
        // The directory is entered, so that no path of it has to be quoted for QEMU, nor fit into a socket's address.
        command.args(arguments(machine)).current_dir(store.path());
        command.stdin(alive).stdout(Stdio::null()).stderr(log);
        sys::detach(&mut command);
        let mut child = command.spawn().map_err(file("run", "qemu-system-x86_64"))?;
        // The command still has our end of the lock; from here on only QEMU holds it.
        drop(command);

        let mut watch = DirectoryWatch::new(store.path())?;
        let answer = async {
            loop {
                if let Some(running) = Process::find(store).await? {
                    return Ok(running);
                }
                tokio::select! {
                    _ = child.wait() => return Err(Error::Start { message: last_words(&words).await }),
                    changed = watch.changed() => changed?,
                    () = sleep(LOOK) => {}
                }
            }
        };
        match timeout(START_LIMIT, answer).await {
            Ok(Ok(running)) => Ok(Box::new(running)),
            Ok(Err(error)) => {
                let _ = child.kill().await;
                Err(error)
            }
            Err(_elapsed) => {
                let _ = child.kill().await;
                let seconds = START_LIMIT.as_secs();
                Err(Error::Start { message: format!("no answer within {seconds} s; {}", last_words(&words).await) })
            }
        }
    }

    async fn adopt(&self, store: &Store) -> Result<Option<Box<dyn Running>>> {
        let find = async {
            loop {
                // Its starter may have been killed before QEMU came to listen: then it has to be waited for.
                if store.claim_alive()?.is_some() {
                    return Ok(None);
                }
                if let Some(running) = Process::find(store).await? {
                    return Ok(Some(Box::new(running) as Box<dyn Running>));
                }
                sleep(LOOK).await;
            }
        };
        match timeout(START_LIMIT, find).await {
            Ok(found) => found,
            Err(_elapsed) => Err(Error::Silent { path: store.path().to_owned() }),
        }
    }
}

/// A QEMU that answered.
///
/// Each command has a connection of its own. There is no stream to lose, and none that has to be read for events all
/// the time: what we want to know of a machine, its files and its end tell.
#[derive(Debug)]
struct Process {
    pid: u32,
    /// Readable once the process has ended. Unlike `waitpid`, this works for a process that is not our child.
    exit: Readable,
    directory: PathBuf,
}

type Qmp = QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>;

impl Process {
    /// `None` if nothing listens (yet).
    async fn find(store: &Store) -> Result<Option<Self>> {
        let Ok(stream) = dial(store.path()).await else { return Ok(None) };
        // The process is pinned before it answers; an answer then proves that the number was not reused in between.
        let peer = socket_peercred(&stream).map_err(system("ask who listens on qmp.sock"))?.pid;
        let exit = match pidfd_open(peer, PidfdFlags::NONBLOCK) {
            Ok(fd) => Readable::new(fd).map_err(system("watch QEMU"))?,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(system("watch QEMU")(errno)),
        };
        let Ok(Ok(_)) = timeout(ANSWER_LIMIT, greet(stream)).await else { return Ok(None) };
        let pid = peer.as_raw_nonzero().get().unsigned_abs();
        Ok(Some(Self { pid, exit, directory: store.path().to_owned() }))
    }

    async fn execute<C: qapi::qmp::QmpCommand>(&self, command: C) -> Result<C::Ok> {
        let answer = async { greet(dial(&self.directory).await?).await?.execute(command).await };
        let answer = timeout(ANSWER_LIMIT, answer).await;
        let answer = answer.unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        answer.map_err(|source| Error::Qmp { command: C::NAME, source })
    }
}

async fn dial(directory: &Path) -> io::Result<UnixStream> {
    // By the directory's descriptor, because the address of a socket has room for 107 bytes only.
    let directory = File::open(directory)?;
    UnixStream::connect(format!("/proc/self/fd/{}/qmp.sock", directory.as_raw_fd())).await
}

async fn greet(stream: UnixStream) -> io::Result<Qmp> {
    let (read, write) = tokio::io::split(stream);
    let stream = QmpStreamTokio::open_split(read, write).await?.negotiate().await?;
    // The task that reads ends with the service.
    let (service, _reader) = stream.spawn_tokio();
    Ok(service)
}

#[async_trait]
impl Running for Process {
    fn pid(&self) -> u32 {
        self.pid
    }

    async fn powerdown(&self) -> Result<()> {
        self.execute(qmp::system_powerdown {}).await.map(drop)
    }

    fn kill(&self) -> Result<()> {
        match pidfd_send_signal(&self.exit, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(system("kill QEMU")(errno)),
        }
    }

    async fn wait(&self) -> Result<()> {
        self.exit.readable().await.map(drop).map_err(system("watch QEMU"))
    }

    async fn is_running(&self) -> Result<bool> {
        Ok(self.execute(qmp::query_status {}).await?.running)
    }

    async fn reopen_console(&self) -> Result<()> {
        let base = ChardevCommon { logappend: None, logfile: None };
        let backend = ChardevFile { base, append: Some(true), in_: None, out: "console.log".into() };
        let change = qmp::chardev_change { backend: ChardevBackend::file(backend.into()), id: "console".into() };
        self.execute(change).await.map(drop)
    }
}

async fn last_words(log: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(log) = tokio::fs::File::open(log).await {
        let _ = log.take(LAST_WORDS).read_to_end(&mut text).await;
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// QEMU's command line. Every file name in it is one of the directory's, so that none needs quoting.
fn arguments(machine: &Machine) -> Vec<String> {
    let (accelerator, cpu) = match machine.accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Tcg => ("tcg", "qemu64"),
    };
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("-name", machine.name.clone());
    add("-machine", format!("q35,accel={accelerator}"));
    add("-cpu", cpu.into());
    add("-smp", machine.vcpus.to_string());
    add("-m", format!("{}M", machine.memory_mib));
    add("-display", "none".into());
    add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
    add("-kernel", machine.kernel.display().to_string());
    add("-initrd", machine.initramfs.display().to_string());
    // panic=-1 restarts at once, which -no-reboot turns into an end: a guest whose kernel died must not linger.
    add("-append", "console=ttyS0 quiet panic=-1".into());
    add("-qmp", "unix:qmp.sock,server=on,wait=off".into());
    add("-chardev", "file,id=console,path=console.log,append=on".into());
    add("-serial", "chardev:console".into());
    add("-device", "virtio-serial-pci".into());
    add("-chardev", "file,id=report,path=reports.jsonl,append=on".into());
    add("-device", format!("virtserialport,chardev=report,name={REPORT_PORT}"));
    // Without it a guest under TCG waits for entropy.
    add("-object", "rng-random,id=entropy,filename=/dev/urandom".into());
    add("-device", "virtio-rng-pci,rng=entropy".into());
    if machine.disks {
        add("-blockdev", "driver=qcow2,node-name=root,discard=unmap,file.driver=file,file.filename=root.qcow2".into());
        add("-device", format!("virtio-blk-pci,drive=root,serial={ROOT_SERIAL}"));
        let config = "driver=raw,node-name=config,read-only=on,file.driver=file,file.filename=config.raw";
        add("-blockdev", config.into());
        add("-device", format!("virtio-blk-pci,drive=config,serial={CONFIG_SERIAL}"));
    }
    for (index, (tap, mac)) in machine.taps.iter().enumerate() {
        add("-netdev", format!("tap,id=net{index},ifname={tap},script=no,downscript=no"));
        // No option ROM: nothing boots from the network.
        add("-device", format!("virtio-net-pci,netdev=net{index},mac={mac},romfile="));
    }
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from));
    arguments
}
