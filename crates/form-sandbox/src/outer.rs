use std::env;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::inner;
use crate::job::{Network, Reply, Setup};
use crate::wire;

/// The first argument of the program that is a sandbox and not what it else is.
pub(crate) const OUTER: &str = "form-sandbox-outer";
const INNER: &str = "form-sandbox-inner";

/// Makes this process a sandbox, and never returns, if it was started as one. A program that uses [`Sandbox`] calls it
/// before all else: before it reads arguments, and before it has a second thread.
///
/// [`Sandbox`]: crate::Sandbox
pub fn entry() {
    let role = match env::args_os().nth(1) {
        Some(role) if role == OUTER => outer as fn(&UnixStream) -> io::Result<i32>,
        Some(role) if role == INNER => inner::inner,
        _ => return,
    };
    let code = match socket() {
        Ok(socket) => match role(&socket) {
            Ok(code) => code,
            // Whoever is to hear of it may be gone.
            Err(error) => drop_reply(&socket, &Reply::Failed(chain(&error))),
        },
        Err(_) => 2,
    };
    std::process::exit(code);
}

fn drop_reply(socket: &UnixStream, reply: &Reply) -> i32 {
    let _ = wire::send(socket, reply);
    1
}

fn chain(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn socket() -> io::Result<UnixStream> {
    Ok(UnixStream::from(rustix::stdio::stdin().try_clone_to_owned()?))
}

/// Says what failed.
pub(crate) fn doing<T, E: Into<io::Error>>(what: &str, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{what}: {error}"))
    })
}

/// Dies with its parent. To be set again after every change of credentials, which clears it.
pub(crate) fn die_with_parent() -> io::Result<()> {
    doing("asking to die with the builder", prctl::set_pdeathsig(Signal::SIGKILL))
}

fn outer(socket: &UnixStream) -> io::Result<i32> {
    die_with_parent()?;
    // Whoever is gone already sends nothing, and this ends.
    let Some(setup): Option<Setup> = wire::receive(socket)? else { return Ok(2) };
    // From here on paths are relative: what is above this directory may be closed to the sandbox's root.
    doing("entering the sandbox's directory", env::set_current_dir(&setup.directory))?;
    let mut spaces = CloneFlags::CLONE_NEWUSER;
    if setup.is_run {
        spaces |= CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        if setup.network == Network::None {
            spaces |= CloneFlags::CLONE_NEWNET;
        }
    }
    doing("making namespaces (are user namespaces allowed here?)", unshare(spaces))?;
    wire::send(socket, &Reply::Unshared)?;
    let Some(()) = wire::receive(socket)? else { return Ok(2) };
    doing("dropping groups", setgroups(&[]))?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    doing("becoming the sandbox's root", setresgid(gid, gid, gid))?;
    doing("becoming the sandbox's root", setresuid(uid, uid, uid))?;
    die_with_parent()?;
    let mut inner = Command::new("/proc/self/exe");
    inner.arg(INNER).env_clear().stdin(Stdio::from(socket.as_fd().try_clone_to_owned()?));
    let status = doing("starting the inner process", inner.status())?;
    Ok(status.code().unwrap_or(1))
}
