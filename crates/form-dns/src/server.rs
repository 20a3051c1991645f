//! Sockets and their limits.
//!
//! Answers come out of memory, so a datagram is answered where it is read, by one of a few workers for each address:
//! nothing is queued and no task is made for it, and under a flood the kernel drops what is too much. Each TCP
//! connection is a task; there are at most so many, and a client has so long to send a whole message or take its answer.
//!
//! hickory's own server has neither limit, which is why only its messages and types are used here.

mod sockets;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::handler::Handler;

/// Where to listen, and how much to give to clients.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Addresses to listen on, over UDP and TCP. They may appear on the machine later (`IP_FREEBIND`). Port 0 takes a
    /// free one, the same for both. Name each address: from a wildcard, an answer may leave by another one.
    pub addresses: Vec<SocketAddr>,
    /// UDP sockets for each address, which the kernel spreads clients over; at least 1.
    pub udp_workers: usize,
    /// TCP connections at once, over all addresses. More wait in the kernel.
    pub tcp_connections: usize,
    /// How long a TCP client may take for a message, or for taking its answer (RFC 7766, section 6.2.3).
    pub tcp_timeout: Duration,
}

impl Default for ServerConfig {
    /// No addresses; a worker for each processor; 1000 connections; 10 seconds.
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            udp_workers: std::thread::available_parallelism().map_or(1, usize::from),
            tcp_connections: 1000,
            tcp_timeout: Duration::from_secs(10),
        }
    }
}

/// A server that has its sockets, and answers as soon as it runs.
#[derive(Debug)]
pub struct Server {
    handler: Handler,
    config: ServerConfig,
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Server {
    /// Takes all sockets, or fails at the first that cannot be had. Must be called inside a tokio runtime.
    pub fn bind(handler: Handler, config: ServerConfig) -> Result<Self, ServerError> {
        let mut server = Self { handler, config, udp: Vec::new(), tcp: Vec::new() };
        for &address in &server.config.addresses {
            let error = |transport| move |source| ServerError::Bind { address, transport, source };
            // TCP first: it is not shared, so another server on the address is noticed.
            let tcp = sockets::tcp(address).map_err(error("TCP"))?;
            let bound = tcp.local_addr().map_err(error("TCP"))?;
            server.tcp.push(tcp);
            for _ in 0..server.config.udp_workers.max(1) {
                server.udp.push(sockets::udp(bound).map_err(error("UDP"))?);
            }
        }
        Ok(server)
    }

    /// The addresses that it listens on, with the ports it got.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, ServerError> {
        let error = |source| ServerError::Socket { source };
        self.tcp.iter().map(|listener| listener.local_addr().map_err(error)).collect()
    }

    /// Answers until `stop` is cancelled. Then messages that are read are answered, and connections closed.
    pub async fn run(self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        for socket in self.udp {
            tasks.spawn(udp::serve(socket, self.handler.clone(), stop.clone()));
        }
        let connections = Arc::new(Semaphore::new(self.config.tcp_connections));
        for listener in self.tcp {
            let limits = tcp::Limits { connections: Arc::clone(&connections), timeout: self.config.tcp_timeout };
            tasks.spawn(tcp::serve(listener, self.handler.clone(), limits, stop.clone()));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                // A listener that is gone in silence would look like a network fault to everyone.
                tracing::error!(%error, "a listener failed; stopping the others");
                stop.cancel();
            }
        }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address cannot be had.
    #[error("cannot listen on {address} over {transport}; is another name server running there?")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// `TCP` or `UDP`.
        transport: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A socket does not say where it is.
    #[error("cannot read the address of a socket")]
    Socket {
        /// What the system said.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
