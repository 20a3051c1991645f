//! The three things of the kernel that have no safe name: all of this crate's `unsafe` is here.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc::{IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, IFNAMSIZ, c_char, c_int};
use rustix::fs::Mode;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Gid, Resource, Rlimit, Uid, geteuid, setrlimit, setsid, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::process::Command;

/// A descriptor whose readability can be awaited.
#[derive(Debug)]
pub(crate) struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor must stay open, and the same, for as long as it is registered. An OwnedFd does, and it
        // is never given out again.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Waits until it is readable; the guard says when it is not any more.
    pub(crate) async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }
}

impl AsFd for Readable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Who a process is to be, and the one group that it needs beside its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    pub(crate) id: u32,
    pub(crate) group: Option<Gid>,
}

/// What a machine's process may have open: its disks, its network cards, and what it makes of them.
const DESCRIPTORS: u64 = 1024;

/// Lets a process keep `handed`, and nothing else that is ours: neither our session (so that what ends ours, a
/// terminal, Ctrl-C, does not reach it), nor our user, nor any capability, nor a way to get one back.
pub(crate) fn confine(command: &mut Command, user: Option<User>, handed: Vec<OwnedFd>) {
    // SAFETY: between fork and exec only async-signal-safe functions may be called, for another thread may have held any
    // lock at the fork. `confine_self` makes system calls and nothing else: through rustix, which has no state, with
    // numbers that were made before. It does not allocate: its errors are bare numbers.
    unsafe {
        command.pre_exec(move || Ok(confine_self(user, &handed)?));
    }
}

fn confine_self(user: Option<User>, handed: &[OwnedFd]) -> rustix::io::Result<()> {
    setsid()?;
    for descriptor in handed {
        fcntl_setfd(descriptor, FdFlags::empty())?;
    }
    umask(Mode::RWXG | Mode::RWXO);
    for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, DESCRIPTORS)] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    // While we still may. Where the service may not, the rest is enough: what is bounded here can be gained only at an
    // exec, and no_new_privs lets nothing be gained there.
    for capability in 0..64 {
        // SAFETY: this prctl takes plain numbers, and changes nothing but the calling thread's bounding set.
        if unsafe { nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            break;
        }
    }
    if let Some(User { id, group }) = user {
        // The threads' own calls: there is one thread here, and those of libc would look for others. Groups first, for
        // after the last step none of them is allowed.
        set_thread_groups(group.as_slice())?;
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

// The number of a tun ioctl has the size of an int in it, whatever the ioctl really takes; hence the "bad" (nix's word).
nix::ioctl_write_ptr_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, size_of::<c_int>()), Request);
nix::ioctl_write_int_bad!(tun_set_persist, nix::request_code_write!(b'T', 203, size_of::<c_int>()));
nix::ioctl_write_int_bad!(tun_set_owner, nix::request_code_write!(b'T', 204, size_of::<c_int>()));

/// `struct ifreq`, as far as TUNSETIFF reads it.
#[repr(C)]
struct Request {
    name: [c_char; IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

/// What taps are made with; a container has it only if it is given.
pub(crate) const TUN: &str = "/dev/net/tun";

pub(crate) fn open_tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(TUN)
}

/// Makes a tap that stays when nobody has it open (the kernel's Documentation/networking/tuntap.rst), or sees to it that
/// this one does. Netlink cannot.
pub(crate) fn ensure_tap(name: &str) -> io::Result<()> {
    let tap = open_tap(name)?;
    // A tap without an owner is everybody's who can open the device: a machine's user could take another machine's.
    let owner = geteuid().as_raw().cast_signed();
    // SAFETY: the descriptor is open for the call; the argument is a plain number.
    unsafe { tun_set_owner(tap.as_raw_fd(), owner) }?;
    // SAFETY: as before.
    unsafe { tun_set_persist(tap.as_raw_fd(), 1) }?;
    Ok(())
}

/// The tap itself, to send and receive by. One at a time has it.
pub(crate) fn open_tap(name: &str) -> io::Result<File> {
    let device = open_tun()?;
    let flags = i16::try_from(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).map_err(io::Error::other)?;
    let mut request = Request { name: [0; IFNAMSIZ], flags, rest: [0; 22] };
    // One byte is left for the NUL.
    if name.len() >= IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    // SAFETY: the descriptor is open for the call, and `request` has the layout and the size of struct ifreq (40
    // bytes on 64-bit), of which the kernel reads all.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }?;
    Ok(device)
}

const _: () = assert!(size_of::<Request>() == 40);
