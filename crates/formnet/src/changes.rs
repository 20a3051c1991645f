//! That something changed in the kernel, by a multicast group of netlink.
//!
//! What changed is not said: whoever hears it looks at what is. So messages may be dropped (ENOBUFS is a change like any
//! other), many are one, and nothing is queued here.

use std::io;

use futures::Stream;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, Socket, SocketAddr, TokioSocket};

/// The most that one datagram of a multicast group has.
const DATAGRAM: usize = 32 << 10;

/// One item for all changes since the last one was taken. `counts` is given each datagram. The socket is of the network
/// namespace of the thread that calls.
pub(crate) fn subscribe(
    protocol: isize,
    groups: &[u32],
    counts: impl Fn(&[u8]) -> bool + Send,
) -> io::Result<impl Stream<Item = ()> + Send> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind_auto()?;
    for group in groups {
        socket.socket_mut().add_membership(*group)?;
    }
    Ok(futures::stream::unfold((socket, counts), |(socket, counts)| async move {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        loop {
            datagram.clear();
            match socket.recv_from(&mut datagram).await {
                // What has another sender than the kernel is anybody's.
                Ok(from) if is_kernel(&from) && counts(&datagram) => break,
                Ok(_) => {}
                Err(error) if is_overrun(&error) => break,
                Err(_) => return None,
            }
        }
        drain(socket.socket_ref());
        Some(((), (socket, counts)))
    }))
}

fn is_kernel(from: &SocketAddr) -> bool {
    from.port_number() == 0
}

/// Takes what is there already: whoever looks now sees it.
fn drain(socket: &Socket) {
    let mut ignored = Vec::with_capacity(DATAGRAM);
    loop {
        ignored.clear();
        match socket.recv(&mut ignored, nix::libc::MSG_DONTWAIT) {
            Err(error) if !is_overrun(&error) => return,
            _ => {}
        }
    }
}

/// More was said than we took.
fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENOBUFS)
}
