use std::io;

use hickory_server::net::xfer::Protocol;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::handler::Handler;

pub(super) async fn serve(socket: UdpSocket, handler: Handler, stop: CancellationToken) {
    // A query is far smaller; what is longer than this is cut and then refused as broken.
    let mut buffer = vec![0; 4096];
    'ready: loop {
        tokio::select! {
            () = stop.cancelled() => return,
            ready = socket.readable() => if ready.is_err() { return },
        }
        for _ in 0..BURST {
            match answer_one(&socket, &handler, &mut buffer) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue 'ready,
                // An ICMP error for an answer sent before, or an address that has gone and may come back.
                Err(error) => tracing::debug!(%error, "a datagram failed"),
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Datagrams that are answered before others on the thread get their turn.
const BURST: usize = 64;

fn answer_one(socket: &UdpSocket, handler: &Handler, buffer: &mut [u8]) -> io::Result<()> {
    let (len, client) = socket.try_recv_from(buffer)?;
    let message = buffer.get(..len).unwrap_or_default();
    let Some(answer) = handler.respond(message, client, Protocol::Udp) else { return Ok(()) };
    match socket.try_send_to(&answer, client) {
        // The queue of the interface is full: an answer is lost, as UDP may, and the client asks again.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
        sent => sent.map(drop),
    }
}
