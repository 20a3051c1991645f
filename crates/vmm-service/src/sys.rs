//! The two things of the kernel that have no safe name: all of this crate's `unsafe` is here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit, setsid, umask};
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
