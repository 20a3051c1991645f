//! One HTTP/2 connection with as little of a client around it as there can be: the load shares the processor with what it
//! measures, so what it costs itself hides part of the difference between us and a peer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use form_service::Identity;
use form_service::together::{Unvectored, gathered};
use http::{Request, Response, Uri, uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::body::Body;

/// Runs hyper's side of a connection after the clients that were woken with it, so that their requests travel together.
#[derive(Clone)]
struct Gathering;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Gathering {
    fn execute(&self, work: F) {
        tokio::spawn(gathered(work));
    }
}

#[derive(Clone)]
pub(crate) struct Connection {
    requests: SendRequest<Body>,
    authority: uri::Authority,
}

impl Connection {
    /// Connects to `address`, a server with a certificate for `name`.
    pub(crate) async fn open(address: &str, name: &'static str, identity: &Identity) -> Result<Self> {
        let mut tls = identity.client()?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(name.try_into()?, stream).await?;
        let (requests, connection) = Builder::new(Gathering).handshake(TokioIo::new(Unvectored(stream))).await?;
        tokio::spawn(connection);
        Ok(Self { requests, authority: address.parse().context("an address")? })
    }
}

impl tower::Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(uri::Scheme::HTTPS);
        parts.authority = Some(self.authority.clone());
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        Box::pin(self.requests.send_request(request))
    }
}
