//! A service asked whether it is ready, by its own program: so that an image needs nothing beside it to be watched.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Identity;
use crate::identity::IdentityError;

/// Until the answer is there: less than those wait who call this, so that they hear why.
const PATIENCE: Duration = Duration::from_secs(4);
/// An answer is a line for each thing that is waited for.
const MOST_BYTES: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("it is not ready: {0}")]
    NotReady(String),
    #[error("{address} gave no answer within {} s", PATIENCE.as_secs())]
    Slow { address: SocketAddr },
    #[error("asking {address}")]
    Connection { address: SocketAddr, source: io::Error },
    #[error("{address} answered with something else than HTTP")]
    Answer { address: SocketAddr },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{0:?} is no name that a certificate could have")]
    Name(String),
}

/// Asks `/readyz` of the `service` that listens at `address`, which has to show a certificate of that name; `identity`
/// says whose CA counts.
pub async fn ready(identity: &Identity, service: &str, address: SocketAddr) -> Result<(), ProbeError> {
    let address = reachable(address);
    let name = ServerName::try_from(service.to_owned()).map_err(|_| ProbeError::Name(service.to_owned()))?;
    let connector = TlsConnector::from(Arc::new(identity.client()?));
    let asked = async {
        let stream = TcpStream::connect(address).await?;
        let mut stream = connector.connect(name, stream).await?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {service}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        stream.take(MOST_BYTES).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, asked).await.map_err(|_| ProbeError::Slow { address })?;
    let answer = answer.map_err(|source| ProbeError::Connection { address, source })?;
    let (status, body) = parse(&answer).ok_or(ProbeError::Answer { address })?;
    if status == 200 { Ok(()) } else { Err(ProbeError::NotReady(body)) }
}

/// The status and the body of an answer over HTTP/1.1.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    Some((status, body.trim().to_owned()))
}

/// Where a listener can be reached from its own machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_status_and_a_body() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\na: b\r\n\r\n{}\n"), Some((200, "{}".to_owned())));
        assert_eq!(parse(b"HTTP/1.1 503 Service Unavailable\r\n\r\nx"), Some((503, "x".to_owned())));
        for bad in ["", "HTTP/1.1 200 OK", "HTTP/1.1 x\r\n\r\n", "SSH-2.0-x\r\n\r\n"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        let at = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(at("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(at("[::]:2"), "[::1]:2");
        assert_eq!(at("192.0.2.1:3"), "192.0.2.1:3");
    }
}
