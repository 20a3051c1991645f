use std::fs::{self, File};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ids::{Ids, IdsError};
use crate::job::{Job, Network, Reply, Run, Setup};
use crate::outer::OUTER;
use crate::wire;

/// Makes sandboxes below one directory, which belongs to their root and is closed to all others.
#[derive(Debug, Clone)]
pub struct Sandbox {
    directory: PathBuf,
    ids: Ids,
    program: PathBuf,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// It is not there, or cannot be executed.
    NotStarted(String),
    Stopped,
    TimedOut,
}

/// Why there was no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ids(#[from] IdsError),
    #[error("the sandbox's directory {}", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("a sandbox cannot be started")]
    Start(#[source] io::Error),
    #[error("a sandbox cannot be given its user ids")]
    Give(#[source] io::Error),
    #[error("a sandbox cannot be talked to")]
    Talk(#[source] io::Error),
    #[error("in the sandbox: {0}")]
    Inside(String),
    #[error("a sandbox died before it was done; was it killed for want of memory?")]
    Died,
    #[error("stopped")]
    Stopped,
    #[error("what a sandbox packs or unpacks")]
    Archive(#[source] io::Error),
}

/// Stops what runs in a sandbox, from another thread.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How soon a stop is noticed.
const TICK: Duration = Duration::from_millis(50);
/// What is read of a command's output at once.
const CHUNK: usize = 16 << 10;

impl Sandbox {
    /// Makes `directory` and its owner what they must be; with `first`, the first of the host's ids that sandboxes have.
    /// The program that runs must call [`crate::entry`] first in its main.
    pub fn new(directory: impl Into<PathBuf>, first: u32) -> Result<Self, Error> {
        Self::with_program(directory, first, "/proc/self/exe")
    }

    /// As [`Sandbox::new`], for a program that is not the one to be run again, as a test is not.
    pub fn with_program(directory: impl Into<PathBuf>, first: u32, program: impl Into<PathBuf>) -> Result<Self, Error> {
        let (directory, ids) = (directory.into(), Ids::detect(first)?);
        let failed = |source| Error::Directory { path: directory.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let (uid, gid) = ids.root();
        chown(&directory, Some(uid), Some(gid)).map_err(failed)?;
        let directory = directory.canonicalize().map_err(failed)?;
        Ok(Self { directory, ids, program: program.into() })
    }

    /// The directory that all paths of the host are relative to.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes a directory of the sandbox's root, if it is not there.
    pub fn make_directory(&self, name: &str) -> Result<(), Error> {
        let path = self.directory.join(name);
        let (uid, gid) = self.ids.root();
        let made = match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        };
        made.and_then(|()| chown(&path, Some(uid), Some(gid))).map_err(|source| Error::Directory { path, source })
    }

    /// Runs a command to its end; `output` hears what it writes to both its outputs, as it comes. Blocks, and the thread
    /// that calls must live as long: the sandbox dies with it.
    pub fn run(
        &self,
        run: Run,
        stop: &Stop,
        deadline: Option<Instant>,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome, Error> {
        let (reader, writer) = io::pipe().map_err(Error::Start)?;
        let errors = writer.try_clone().map_err(Error::Start)?;
        let network = run.network;
        let mut process = self.start(network, true, writer.into(), errors.into())?;
        process.send(&Job::Run(Box::new(run)))?;
        process.follow(reader, stop, deadline, output)
    }

    /// Unpacks the tar of `write` into the new directory `into`.
    pub fn unpack(&self, into: &str, write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<(), Error> {
        let (reader, mut writer) = io::pipe().map_err(Error::Start)?;
        let mut process = self.start(Network::Host, false, reader.into(), Stdio::null())?;
        process.send(&Job::Unpack { into: into.to_owned() })?;
        let written = write(&mut writer);
        drop(writer);
        // What is wrong inside is why nobody read on.
        match process.reply()? {
            Reply::Done => written.map_err(Error::Archive),
            other => Err(unexpected(other)),
        }
    }

    /// Packs what an overlay left in `from`; `read` gets the tar.
    pub fn pack<T>(&self, from: &str, read: impl FnOnce(&mut dyn Read) -> T) -> Result<T, Error> {
        let (mut reader, writer) = io::pipe().map_err(Error::Start)?;
        let mut process = self.start(Network::Host, false, writer.into(), Stdio::null())?;
        process.send(&Job::Pack { from: from.to_owned() })?;
        let result = read(&mut reader);
        // Who did not read to the end leaves no writer waiting.
        drop(reader);
        match process.reply()? {
            Reply::Done => Ok(result),
            // Then the reader has something to say, and says it.
            Reply::Failed(text) if text.contains("Broken pipe") => Ok(result),
            other => Err(unexpected(other)),
        }
    }

    /// Removes what sandboxes made.
    pub fn remove(&self, paths: Vec<String>) -> Result<(), Error> {
        let mut process = self.start(Network::Host, false, Stdio::null(), Stdio::null())?;
        process.send(&Job::Remove { paths })?;
        match process.reply()? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn start(&self, network: Network, is_run: bool, output: Stdio, errors: Stdio) -> Result<Process, Error> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::Start)?;
        let child = Command::new(&self.program)
            .arg(OUTER)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(Error::Start)?;
        let mut process = Process { child, socket: ours };
        let directory = self.directory.to_string_lossy().into_owned();
        process.send(&Setup { directory, network, is_run })?;
        match process.reply()? {
            Reply::Unshared => {}
            other => return Err(unexpected(other)),
        }
        self.ids.give(process.child.id()).map_err(Error::Give)?;
        process.send(&())?;
        Ok(process)
    }
}

fn unexpected(reply: Reply) -> Error {
    match reply {
        Reply::Failed(text) => Error::Inside(text),
        other => Error::Inside(format!("{other:?}")),
    }
}

/// A sandbox at work. Dropped, it is killed, and waited for.
struct Process {
    child: Child,
    socket: UnixStream,
}

impl Drop for Process {
    fn drop(&mut self) {
        // An inner process that has not got to dying with its parent finds the end of its orders.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn send(&mut self, message: &impl serde::Serialize) -> Result<(), Error> {
        match wire::send(&self.socket, message) {
            // It has said why, or can say no more.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(self.reply().map_or_else(|error| error, unexpected)),
            other => other.map_err(Error::Talk),
        }
    }

    fn reply(&mut self) -> Result<Reply, Error> {
        wire::receive(&self.socket).map_err(Error::Talk)?.ok_or(Error::Died)
    }

    fn follow(
        &mut self,
        reader: PipeReader,
        stop: &Stop,
        deadline: Option<Instant>,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Outcome, Error> {
        let mut reader = File::from(OwnedFd::from(reader));
        let mut buffer = vec![0; CHUNK];
        let mut is_open = true;
        loop {
            if stop.is_stopped() {
                return Ok(Outcome::Stopped);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Outcome::TimedOut);
            }
            let socket = PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN);
            let pipe = PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN);
            let mut ready = if is_open { vec![socket, pipe] } else { vec![socket] };
            let tick = Timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as _ };
            match poll(&mut ready, Some(&tick)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::Talk(error.into())),
            }
            let is_ready = |at: usize| ready.get(at).is_some_and(|fd| !fd.revents().is_empty());
            let (has_reply, has_output) = (is_ready(0), is_ready(1));
            if has_output {
                let read = reader.read(&mut buffer).map_err(Error::Talk)?;
                output(buffer.get(..read).unwrap_or_default());
                is_open = read > 0;
            } else if has_reply {
                // The command has ended, and all that it wrote was read. What it left running wrote the rest, if any.
                return match self.reply()? {
                    Reply::Exited(code) => Ok(Outcome::Exited(code)),
                    Reply::Killed(signal) => Ok(Outcome::Killed(signal)),
                    Reply::NotStarted(why) => Ok(Outcome::NotStarted(why)),
                    other => Err(unexpected(other)),
                };
            }
        }
    }
}
