use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_server::net::xfer::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::handler::Handler;

#[derive(Clone)]
pub(super) struct Limits {
    pub(super) connections: Arc<Semaphore>,
    pub(super) timeout: Duration,
}

pub(super) async fn serve(listener: TcpListener, handler: Handler, limits: Limits, stop: CancellationToken) {
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &limits) => accepted,
        };
        let (permit, stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: trying again at once would only burn the processor.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (handler, stop, patience) = (handler.clone(), stop.clone(), limits.timeout);
        clients.spawn(async move {
            let _permit = permit;
            if let Err(error) = converse(stream, client, &handler, patience, &stop).await {
                tracing::debug!(%error, %client, "a connection ended early");
            }
        });
    }
    while clients.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    limits: &Limits,
) -> io::Result<(tokio::sync::OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let permit = Arc::clone(&limits.connections).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, client) = listener.accept().await?;
    Ok((permit, stream, client))
}

/// Answers one message after the other, in order (RFC 7766, section 7 lets the client wait for none of them).
async fn converse(
    stream: TcpStream,
    client: SocketAddr,
    handler: &Handler,
    patience: Duration,
    stop: &CancellationToken,
) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    let mut message = Vec::new();
    loop {
        // The whole message has that long, so a client gains nothing by sending it byte by byte.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            read = timeout(patience, read_message(&mut stream, &mut message)) => if !read?? { return Ok(()) },
        }
        // A header is the least that could be answered; a client that sends less speaks something else.
        let Some(answer) = handler.respond(&message, client, Protocol::Tcp) else { return Ok(()) };
        let Ok(len) = u16::try_from(answer.len()) else { return Ok(()) };
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        timeout(patience, stream.write_all(&framed)).await??;
    }
}

/// RFC 1035, section 4.2.2: two bytes of length, then the message. Says whether there was one.
async fn read_message(stream: &mut BufReader<TcpStream>, message: &mut Vec<u8>) -> io::Result<bool> {
    let len = match stream.read_u16().await {
        Ok(len) => len,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(e) => return Err(e),
    };
    message.resize(usize::from(len), 0);
    stream.read_exact(message).await?;
    Ok(true)
}
