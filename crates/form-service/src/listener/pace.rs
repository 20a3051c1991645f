//! How long a connection may take over what.
//!
//! ```text
//!   First ──a request over HTTP/2──▶ Many      nothing is due: hyper asks such a peer itself whether it lives
//!     │
//!     └─────a request──▶ Busy ──its answer──▶ Idle ──bytes──▶ Head ──a request──▶ Busy
//!   due: handshake       never                idle            handshake
//! ```
//!
//! hyper's own limit on a head begins when the answer before it ends; so it cuts who only keeps a connection for later,
//! and without a close_notify, which a client has to take for a broken answer.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::Limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    First,
    Many,
    Busy,
    Idle,
    Head,
}

pub(super) struct Pace {
    handshake: Duration,
    idle: Duration,
    now: Mutex<(Phase, Instant)>,
}

impl Pace {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let now = Mutex::new((Phase::First, Instant::now()));
        Arc::new(Self { handshake: limits.handshake, idle: limits.idle, now })
    }

    pub(super) fn asked(&self, version: Version) {
        self.enter(|_| Some(if version < Version::HTTP_2 { Phase::Busy } else { Phase::Many }));
    }

    pub(super) fn answered(&self) {
        self.enter(|phase| (phase == Phase::Busy).then_some(Phase::Idle));
    }

    fn heard(&self) {
        self.enter(|phase| (phase == Phase::Idle).then_some(Phase::Head));
    }

    fn enter(&self, next: impl FnOnce(Phase) -> Option<Phase>) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = next(now.0) {
            *now = (next, Instant::now());
        }
    }

    /// Waits until something was due; says in what.
    pub(super) async fn overdue(&self) -> Phase {
        loop {
            let (phase, since) = *self.now.lock().unwrap_or_else(PoisonError::into_inner);
            let due = match phase {
                Phase::Many => return std::future::pending().await,
                Phase::Busy => None,
                Phase::Idle => Some(since + self.idle),
                Phase::First | Phase::Head => Some(since + self.handshake),
            };
            let now = Instant::now();
            if due.is_some_and(|due| due <= now) {
                return phase;
            }
            // What changes meanwhile is looked at then: a wake-up for each request would cost more than it is worth.
            let look_again = now + self.handshake;
            tokio::time::sleep_until(due.map_or(look_again, |due| due.min(look_again))).await;
        }
    }
}

/// A stream that tells when something came.
pub(super) struct Paced<S> {
    pub(super) stream: S,
    pub(super) pace: Arc<Pace>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.pace.heard();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
