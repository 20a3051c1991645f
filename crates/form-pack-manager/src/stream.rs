//! Bytes on their way out and in, piece by piece: a thread that may block has one for a piece, and not for as long as the
//! other side takes.

use std::io::{self, Read, Write};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const PIECE: u64 = 256 << 10;
/// Pieces that wait for a slow reader.
const AHEAD: usize = 1;

/// Writes all of `body` to `out`, which comes back. A pause may be as long as `idle`.
pub(crate) async fn write<W: Write + Send + 'static>(body: Body, mut out: W, idle: Duration) -> Result<W, WriteError> {
    let mut body = body.into_data_stream();
    loop {
        let mut piece = Vec::new();
        while (piece.len() as u64) < PIECE {
            match tokio::time::timeout(idle, body.next()).await {
                Ok(Some(Ok(bytes))) => piece.extend_from_slice(&bytes),
                Ok(Some(Err(error))) => return Err(WriteError::Body(error)),
                Ok(None) => break,
                Err(_) => return Err(WriteError::Idle),
            }
        }
        if piece.is_empty() {
            return Ok(out);
        }
        let written = tokio::task::spawn_blocking(move || out.write_all(&piece).map(|()| out));
        out = written.await.map_err(io::Error::from).flatten().map_err(WriteError::Out)?;
    }
}

/// Why a body was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("it did not come whole")]
    Body(#[source] axum::Error),
    #[error("nothing came for too long")]
    Idle,
    #[error("it cannot be written")]
    Out(#[source] io::Error),
}

/// The first `length` bytes of `reader`. Who takes none for as long as `idle` gets no more.
pub(crate) fn body(reader: Box<dyn Read + Send>, length: u64, idle: Duration) -> Body {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let (mut reader, mut left) = (reader, length);
        while left > 0 {
            // A thread for each piece, not for the whole: many slow readers must not hold all threads there are.
            let read = tokio::task::spawn_blocking(move || {
                let wanted = left.min(PIECE);
                let mut piece = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
                let read = reader.by_ref().take(wanted).read_to_end(&mut piece);
                (reader, read.map(|_| Bytes::from(piece)))
            });
            let Ok((back, piece)) = read.await else { return };
            reader = back;
            let piece = match piece {
                Ok(piece) if piece.is_empty() => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                piece => piece,
            };
            left = left.saturating_sub(piece.as_ref().map_or(left, |piece| piece.len() as u64));
            if !matches!(tokio::time::timeout(idle, sender.send(piece)).await, Ok(Ok(()))) {
                return;
            }
        }
    });
    Body::from_stream(ReceiverStream::new(receiver))
}
