//! QEMU, controlled over QMP (the QEMU Machine Protocol, docs/interop/qmp-spec).
//!
//! A machine that we started and one that we found are the same thing here: a socket in its directory, and a process
//! that the socket's other end belongs to. Starting ends where adopting begins.
//!
//! QEMU opens no file of a machine. It gets each as a descriptor with just the rights that it needs, in a set of
//! descriptors (`-add-fd`) where it wants a name; its socket is bound by us, and it listens. So its user needs no right to
//! any directory, and there is none where it could leave something for us to fall over.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use form_guest::{CONFIG_SERIAL, REPORT_PORT, ROOT_SERIAL};
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::qmp::{self, ChardevBackend, ChardevCommon, ChardevFile};
use rustix::fs::{Mode, fchmod};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg, socket_with,
};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncReadExt, Interest, WriteHalf};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::{Driver, Machine, Running};
use crate::accel::Accelerator;
use crate::error::{Error, Result, file, system};
use crate::rotate;
use crate::store::{Store, absent_is_fine, append_to};
use crate::sys::{self, Readable};
use crate::users::process_user;
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
        let user = process_user(machine.user, machine.accelerator == Accelerator::Kvm)?;
        let words = store.file("qemu.log");
        let log = append_to(&words)?;
        log.set_len(0).map_err(file("clear", &words))?;
        let mut command = Command::new("qemu-system-x86_64");
        let mut handed = Handed::default();
        // The directory is where we find it among processes. It cannot open anything there.
        command.args(arguments(store, machine, &mut handed)?).current_dir(store.path());
        command.stdin(alive).stdout(Stdio::null()).stderr(log);
        sys::confine(&mut command, user, handed.0);
        let mut child = command.spawn().map_err(file("run", "qemu-system-x86_64"))?;
        // The command still has our end of the lock, and of all else; from here on only QEMU holds it.
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
    let directory = File::open(directory)?;
    UnixStream::connect(in_directory(&directory)).await
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

    async fn reopen_console(&self, log: File) -> Result<()> {
        let change = async {
            let stream = dial(&self.directory).await?;
            hand_over(&stream, log).await?;
            let qmp = greet(stream).await?;
            let added = qmp.execute(qmp::add_fd { fdset_id: None, opaque: None }).await?;
            let base = ChardevCommon { logappend: None, logfile: None };
            let out = format!("/dev/fdset/{}", added.fdset_id);
            let backend = ChardevFile { base, append: Some(true), in_: None, out };
            let backend = ChardevBackend::file(backend.into());
            // The one before is let go when this connection ends.
            qmp.execute(qmp::chardev_change { backend, id: "console".into() }).await
        };
        let answer = timeout(ANSWER_LIMIT, change).await;
        let answer = answer.unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
        answer.map(drop).map_err(|source| Error::Qmp { command: "chardev-change", source })
    }
}

/// Sends a descriptor, which QEMU keeps for the first command of this connection that asks for one. With it goes a blank,
/// because it has to go with something.
async fn hand_over(stream: &UnixStream, file: File) -> io::Result<()> {
    stream
        .async_io(Interest::WRITABLE, || {
            let (files, mut space) = ([file.as_fd()], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&files));
            Ok(sendmsg(stream, &[IoSlice::new(b" ")], &mut control, SendFlags::NOSIGNAL)?)
        })
        .await
        .map(drop)
}

async fn last_words(log: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(log) = tokio::fs::File::open(log).await {
        let _ = log.take(LAST_WORDS).read_to_end(&mut text).await;
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// What QEMU gets opened.
#[derive(Default)]
struct Handed(Vec<OwnedFd>);

impl Handed {
    /// The number that it has in QEMU too.
    fn add(&mut self, descriptor: impl Into<OwnedFd>) -> RawFd {
        let descriptor = descriptor.into();
        let number = descriptor.as_raw_fd();
        self.0.push(descriptor);
        number
    }
}

/// QEMU's command line, and all that it has to have open.
fn arguments(store: &Store, machine: &Machine, handed: &mut Handed) -> Result<Vec<String>> {
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
    // These two it opens once more, and for that its user needs a right to the files, though none to where they are.
    add("-kernel", format!("/proc/self/fd/{}", handed.add(readable_by_all(&machine.kernel)?)));
    add("-initrd", format!("/proc/self/fd/{}", handed.add(readable_by_all(&machine.initramfs)?)));
    // panic=-1 restarts at once, which -no-reboot turns into an end: a guest whose kernel died must not linger.
    add("-append", "console=ttyS0 quiet panic=-1".into());
    add("-chardev", format!("socket,id=qmp,fd={},server=on,wait=off", handed.add(bind(store)?)));
    add("-mon", "chardev=qmp,mode=control".into());
    rotate::complete(store.path())?;
    for (id, name) in [("console", "console.log"), ("report", "reports.jsonl")] {
        let log = handed.add(append_to(&store.file(name))?);
        add("-add-fd", format!("fd={log},set={log}"));
        add("-chardev", format!("file,id={id},path=/dev/fdset/{log},append=on"));
    }
    add("-serial", "chardev:console".into());
    add("-device", "virtio-serial-pci".into());
    add("-device", format!("virtserialport,chardev=report,name={REPORT_PORT}"));
    // Without it a guest under TCG waits for entropy.
    add("-object", "rng-random,id=entropy,filename=/dev/urandom".into());
    add("-device", "virtio-rng-pci,rng=entropy".into());
    if let Some(base) = &machine.base {
        let (root, config) = (store.file("root.qcow2"), store.file("config.raw"));
        let mut disk = |path: &Path, write: bool, options: &str| {
            let disk = File::options().read(true).write(write).open(path).map_err(file("open", path))?;
            let set = handed.add(disk);
            add("-add-fd", format!("fd={set},set={set}"));
            add("-blockdev", format!("{options},file.driver=file,file.filename=/dev/fdset/{set}"));
            Ok::<_, Error>(())
        };
        disk(base, false, "driver=raw,node-name=base,read-only=on")?;
        disk(&root, true, "driver=qcow2,node-name=root,discard=unmap,backing=base")?;
        disk(&config, false, "driver=raw,node-name=config,read-only=on")?;
        add("-device", format!("virtio-blk-pci,drive=root,serial={ROOT_SERIAL}"));
        add("-device", format!("virtio-blk-pci,drive=config,serial={CONFIG_SERIAL}"));
    }
    for (index, (tap, mac)) in machine.taps.iter().enumerate() {
        let tap = handed.add(form_tap::open_tap(tap).map_err(system("take the tap"))?);
        add("-netdev", format!("tap,id=net{index},fd={tap}"));
        // No option ROM: nothing boots from the network.
        add("-device", format!("virtio-net-pci,netdev=net{index},mac={mac},romfile="));
    }
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(String::from));
    Ok(arguments)
}

fn readable_by_all(path: &Path) -> Result<File> {
    let open = || {
        let file = File::open(path)?;
        if file.metadata()?.mode() & 0o004 == 0 {
            let hint = "the users of machines may not read it; chmod a+r it";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, hint));
        }
        Ok(file)
    };
    open().map_err(file("use", path))
}

/// A socket that nobody listens on yet. Who comes to listen is who [`socket_peercred`] names.
fn bind(store: &Store) -> Result<OwnedFd> {
    let path = store.file("qmp.sock");
    let bind = || {
        std::fs::remove_file(&path).or_else(absent_is_fine)?;
        let directory = File::open(store.path())?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // The name gets the mode that the socket has.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(in_directory(&directory))?)?;
        Ok::<_, io::Error>(socket)
    };
    bind().map_err(file("make", &path))
}

/// By the directory's descriptor, because the address of a socket has room for 107 bytes only.
fn in_directory(directory: &File) -> String {
    format!("/proc/self/fd/{}/qmp.sock", directory.as_raw_fd())
}
