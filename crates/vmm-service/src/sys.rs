//! The three things of the kernel that have no safe name. All of this crate's `unsafe` is here.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::libc::{IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, IFNAMSIZ, c_char, c_int};
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

/// Gives a process a session of its own, so that what ends ours (a terminal, Ctrl-C) does not reach it.
pub(crate) fn detach(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe functions may be called; setsid(2) is one, and the closure
    // does nothing else, not even allocate.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
}

// The number of a tun ioctl has the size of an int in it, whatever the ioctl really takes; hence the "bad" (nix's word).
nix::ioctl_write_ptr_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, size_of::<c_int>()), Request);
nix::ioctl_write_int_bad!(tun_set_persist, nix::request_code_write!(b'T', 203, size_of::<c_int>()));

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

/// Makes a tap that stays when nobody has it open (the kernel's Documentation/networking/tuntap.rst). Netlink cannot.
pub(crate) fn create_tap(name: &str) -> io::Result<()> {
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
    // SAFETY: the descriptor is open for the call; the argument is a plain number.
    unsafe { tun_set_persist(device.as_raw_fd(), 1) }?;
    Ok(())
}

const _: () = assert!(size_of::<Request>() == 40);
