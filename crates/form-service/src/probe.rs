//! A service asked whether it is ready, by its own program: so that an image needs nothing beside it to be watched.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Identity;
use crate::identity::IdentityError;

/// Until the answer is there: less than those wait who call this, so that they hear why.
const PATIENCE: Duration = Duration::from_secs(4);
/// An answer is a line for each thing that is waited for.
const MOST_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("it is not ready: {0}")]
    NotReady(String),
    #[error("{address} gave no answer within {} s", PATIENCE.as_secs())]
    Slow { address: SocketAddr },
    #[error("asking {address}")]
    Connection { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{0:?} is no name that a certificate could have")]
    Name(String),
}

/// Asks `/readyz` of the `service` that listens at `address`, which has to show a certificate of that name; `identity`
/// says whose CA counts.
pub async fn ready(identity: &Identity, service: &str, address: SocketAddr) -> Result<(), ProbeError> {
    let address = reachable(address);
    let wrong = || ProbeError::Name(service.to_owned());
    let name = ServerName::try_from(service.to_owned()).map_err(|_| wrong())?;
    let host = HeaderValue::from_str(service).map_err(|_| wrong())?;
    let connector = TlsConnector::from(Arc::new(identity.client()?));
    let asked = async {
        let stream = connector.connect(name, TcpStream::connect(address).await?).await?;
        let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = Uri::from_static("/readyz");
        request.headers_mut().insert(header::HOST, host);
        let answer = requests.send_request(request).await.map_err(io::Error::other)?;
        let (head, body) = answer.into_parts();
        let body = axum::body::to_bytes(Body::new(body), MOST_BYTES).await.map_err(io::Error::other)?;
        Ok((head.status, body))
    };
    let answer = tokio::time::timeout(PATIENCE, asked).await.map_err(|_| ProbeError::Slow { address })?;
    match answer.map_err(|source| ProbeError::Connection { address, source })? {
        (StatusCode::OK, _) => Ok(()),
        (_, body) => Err(ProbeError::NotReady(String::from_utf8_lossy(&body).trim().to_owned())),
    }
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
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        let at = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(at("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(at("[::]:2"), "[::1]:2");
        assert_eq!(at("192.0.2.1:3"), "192.0.2.1:3");
    }
}
