use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid, setsid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use crate::job::{Job, Network, Reply, Run};
use crate::outer::{die_with_parent, doing};
use crate::{archive, files, seccomp, wire};

/// What root may do in its own sandbox: what package managers and build scripts need of what Docker gives. Left out of
/// that: to make devices, to open raw sockets, to bind low ports of what is not ours, to write the audit log.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT);

pub(crate) fn inner(socket: &UnixStream) -> io::Result<i32> {
    die_with_parent()?;
    // If the builder went before that, there is nothing to receive.
    let Some(job): Option<Job> = wire::receive(socket)? else { return Ok(2) };
    let reply = match job {
        Job::Run(run) => self::run(*run)?,
        Job::Unpack { into } => {
            archive::unpack(rustix::stdio::stdout().try_clone_to_owned()?, &into).map(|()| Reply::Done)?
        }
        Job::Pack { from } => {
            archive::pack(rustix::stdio::stdout().try_clone_to_owned()?, &from).map(|()| Reply::Done)?
        }
        Job::Remove { paths } => paths.iter().try_for_each(|path| archive::remove(path)).map(|()| Reply::Done)?,
    };
    wire::send(socket, &reply)?;
    Ok(0)
}

fn run(run: Run) -> io::Result<Reply> {
    doing("naming the sandbox", nix::unistd::sethostname("build"))?;
    if run.network == Network::None {
        doing("bringing the loopback up", loopback_up())?;
    }
    files::enter(&run)?;
    limit(Resource::RLIMIT_NPROC, run.limits.processes)?;
    limit(Resource::RLIMIT_NOFILE, run.limits.files)?;
    limit(Resource::RLIMIT_FSIZE, run.limits.file_bytes)?;
    limit(Resource::RLIMIT_CORE, 0)?;
    doing("leaving the session", setsid())?;
    become_user(&run)?;
    // As process 1 we are of the command's user, which must not look into us.
    doing("closing the inner process", prctl::set_dumpable(false))?;
    doing("giving up new privileges", prctl::set_no_new_privs())?;
    seccomp::apply()?;

    let (program, arguments) = run.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(run.env).current_dir(&run.workdir).stdin(Stdio::null());
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(Reply::NotStarted(error.to_string())),
    };
    let child = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    // Orphans come to process 1. When it ends, so do those that are left.
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(Reply::Exited(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Ok(Reply::Killed(signal as i32)),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return doing("waiting for the command", Err(error)),
        }
    }
}

/// No more than the builder itself has.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let (_, hard) = doing("reading a limit", getrlimit(resource))?;
    let most = most.min(hard);
    doing("setting a limit", setrlimit(resource, most, most))
}

fn become_user(run: &Run) -> io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // The kernel says which is the last that it knows.
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !KEPT.contains(capability) => {
                doing("giving up a capability", remove_capability_from_bounding_set(capability))?;
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    let groups: Vec<Gid> = run.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(run.uid), Gid::from_raw(run.gid));
    doing("setting groups", setgroups(&groups))?;
    doing("becoming the group of the step", setresgid(gid, gid, gid))?;
    doing("becoming the user of the step", setresuid(uid, uid, uid))?;
    // The kernel has taken all from another user than root.
    let kept = if run.uid == 0 { KEPT } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    doing("keeping few capabilities", set_capabilities(None, sets))?;
    doing("clearing ambient capabilities", clear_ambient_capability_set())?;
    die_with_parent()
}

/// `ip link set lo up`: one message of rtnetlink(7), of which the answer is waited for.
fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink};
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32_u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&REQUEST_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    // ifinfomsg: no family, no type; the loopback is the first interface of every network namespace.
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&1_i32.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(socket.as_fd(), &message, SendFlags::empty(), &kernel)?;
    let mut answer = [0; 64];
    let (read, _) = rustix::net::recv(socket.as_fd(), &mut answer, RecvFlags::empty())?;
    // nlmsghdr, then nlmsgerr: a negative errno, or 0.
    let code = answer.get(..read).and_then(|answer| answer.get(16..20)).and_then(|code| code.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}
