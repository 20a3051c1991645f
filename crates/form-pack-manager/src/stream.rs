//! A blob on its way out: read in pieces by threads that may block, no further ahead than the reader is quick.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::{Body, Bytes};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const PIECE: u64 = 256 << 10;
/// Pieces that wait for a slow reader.
const AHEAD: usize = 1;

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
