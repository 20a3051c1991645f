//! Taps: made by one service, opened by another.
//!
//! A crate of its own because of its `unsafe`: what a tap is made with are ioctls, which netlink has no word for and nix
//! no safe name.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::libc::{IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, IFNAMSIZ, c_char, c_int};

/// What taps are made with; a container has it only if it is given.
pub const TUN: &str = "/dev/net/tun";

/// Makes a tap that stays when nobody has it open (the kernel's Documentation/networking/tuntap.rst), or sees to it that
/// this one does. From then on only `owner` may open it, and who has `CAP_NET_ADMIN`.
///
/// # Errors
/// If the kernel refuses; `EBUSY` if somebody has the tap open.
pub fn ensure_tap(name: &str, owner: u32) -> io::Result<()> {
    let tap = open_tap(name)?;
    // A tap without an owner is everybody's who can open the device: a machine's user could take another machine's.
    // SAFETY: the descriptor is open for the call; the argument is a plain number.
    unsafe { tun_set_owner(tap.as_raw_fd(), owner.cast_signed()) }?;
    // SAFETY: as before.
    unsafe { tun_set_persist(tap.as_raw_fd(), 1) }?;
    Ok(())
}

/// The tap itself, to send and receive by. One at a time has it.
///
/// # Errors
/// If the kernel refuses: `EBUSY` if somebody has it open, `EPERM` if it is another's, `EINVAL` if it is no tap.
pub fn open_tap(name: &str) -> io::Result<File> {
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

/// The device that taps are made with.
///
/// # Errors
/// If it is not there, or not ours to open.
pub fn open_tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(TUN)
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

const _: () = assert!(size_of::<Request>() == 40);
