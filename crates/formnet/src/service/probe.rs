//! Whether a node answers through the mesh, and how fast: a datagram to its own address there, and the same one back.
//!
//! ```text
//!   "fmp1" · kind (0 asks, 1 answers) · 8 random bytes · as many zeros as were asked for
//! ```
//!
//! An answer is as long as what it answers, so nobody is sent more than they sent; and only nodes get so far: the rules
//! let nobody else's packets from the mesh in.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::oneshot;

/// Where nodes answer each other, UDP, at their own addresses in the mesh.
pub(crate) const PORT: u16 = 3001;
/// How long an answer is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

const MAGIC: &[u8; 4] = b"fmp1";
const HEAD: usize = 13;
const ASK: u8 = 0;
const ANSWER: u8 = 1;
/// Beyond what any mesh has for its MTU.
const MOST: usize = 65_507;

type Nonce = [u8; 8];

pub(crate) struct Probe {
    socket: UdpSocket,
    waiting: Mutex<HashMap<Nonce, (IpAddr, oneshot::Sender<Instant>)>>,
}

impl Probe {
    /// At this node's own address, which has to be there.
    pub(crate) async fn bind(address: IpAddr) -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::bind((address, PORT)).await?, waiting: Mutex::default() })
    }

    /// Answers, and hears answers, until it is dropped.
    pub(crate) async fn serve(&self) {
        let mut buffer = vec![0; MOST];
        loop {
            let Ok((length, from)) = self.socket.recv_from(&mut buffer).await else {
                // An error of one that we sent to, told late. It has nothing to do with the next.
                continue;
            };
            let Some(packet) = buffer.get_mut(..length) else { continue };
            self.hear(packet, from).await;
        }
    }

    async fn hear(&self, packet: &mut [u8], from: SocketAddr) {
        let Some((magic, rest)) = packet.split_first_chunk_mut::<4>() else { return };
        let Some((kind, rest)) = rest.split_first_mut() else { return };
        let Some((nonce, _)) = rest.split_first_chunk::<8>() else { return };
        match (&*magic == MAGIC, *kind) {
            (true, ASK) => {
                *kind = ANSWER;
                // Lost, as any packet may be.
                let _ = self.socket.send_to(packet, from).await;
            }
            (true, ANSWER) => {
                let mut waiting = self.waiting();
                if waiting.get(nonce).is_some_and(|(of, _)| *of == from.ip())
                    && let Some((_, heard)) = waiting.remove(nonce)
                {
                    let _ = heard.send(Instant::now());
                }
            }
            _ => {}
        }
    }

    /// The time to `address` and back, of a packet that is `size` bytes long with its headers. `None`: no answer came.
    pub(crate) async fn ping(&self, address: IpAddr, size: usize) -> Option<Duration> {
        let headers = if address.is_ipv4() { 28 } else { 48 };
        let mut packet = vec![0; size.saturating_sub(headers).clamp(HEAD, MOST)];
        let mut nonce = Nonce::default();
        getrandom::fill(&mut nonce).ok()?;
        let head = MAGIC.iter().chain(&[ASK]).chain(&nonce);
        packet.iter_mut().zip(head).for_each(|(to, from)| *to = *from);

        let (heard, answer) = oneshot::channel();
        self.waiting().insert(nonce, (address, heard));
        let start = Instant::now();
        let sent = self.socket.send_to(&packet, (address, PORT)).await;
        let answer = async { tokio::time::timeout(PATIENCE, answer).await.ok()?.ok() };
        let at = if sent.is_ok() { answer.await } else { None };
        self.waiting().remove(&nonce);
        at.map(|at| at.duration_since(start))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Nonce, (IpAddr, oneshot::Sender<Instant>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// At another address of loopback each, as nodes are.
    async fn node(address: [u8; 4]) -> Arc<Probe> {
        let probe = Arc::new(Probe::bind(IpAddr::from(address)).await.unwrap());
        let serving = Arc::clone(&probe);
        tokio::spawn(async move { serving.serve().await });
        probe
    }

    #[tokio::test]
    async fn a_node_answers_and_one_that_is_not_there_does_not() {
        let one = node([127, 0, 77, 1]).await;
        let _two = node([127, 0, 77, 2]).await;
        for size in [0, 100, 1420, 9000] {
            assert!(one.ping([127, 0, 77, 2].into(), size).await.is_some(), "{size}");
        }
        assert_eq!(one.ping([127, 0, 77, 3].into(), 100).await, None);
        assert!(one.waiting().is_empty());
    }

    #[tokio::test]
    async fn nonsense_and_answers_that_nobody_asked_for_do_nothing() {
        let one = node([127, 0, 77, 4]).await;
        let other = UdpSocket::bind("127.0.77.5:0").await.unwrap();
        let mut answer = [MAGIC.as_slice(), &[ANSWER], &[7; 8]].concat();
        for packet in [&b""[..], b"f", b"fmp1", b"fmp1\0short", b"xxxx\0\0\0\0\0\0\0\0\0", &answer] {
            other.send_to(packet, ("127.0.77.4", PORT)).await.unwrap();
        }
        // It lives, and answers what is as it should be.
        if let Some(kind) = answer.get_mut(4) {
            *kind = ASK;
        }
        other.send_to(&answer, ("127.0.77.4", PORT)).await.unwrap();
        let mut buffer = [0; 64];
        let (length, _) = other.recv_from(&mut buffer).await.unwrap();
        assert_eq!((length, buffer[4]), (HEAD, ANSWER));
        assert!(one.waiting().is_empty());
    }
}
