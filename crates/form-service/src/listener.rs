//! REST and gRPC on one TLS port, with a limit on everything that a stranger could use up.

mod pace;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{HeaderValue, Request, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use rustls::ServerConfig;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use self::pace::{Pace, Paced, Phase};
use crate::together::{Unvectored, gathered};
use crate::{Health, Peer, Problem};

/// What a service's [`Health`] waits for until its listener serves.
pub const LISTENING: &str = "listener";

/// Samples of histograms pile up until somebody scrapes; this often they are folded, scraped or not.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// What a listener lets be used at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    pub requests: usize,
    /// The head of a request, bytes.
    pub header_bytes: usize,
    /// The body of a request, bytes.
    pub body_bytes: usize,
    /// Until TLS stands, from there until the first request's head has come, and for the head of each later one that was
    /// begun.
    pub handshake: Duration,
    /// From an answer over HTTP/1 until the next request begins. Longer than clients keep connections that they do not
    /// use, so that it is mostly they who close them.
    pub idle: Duration,
    /// From a request's head to its answer's head. A stream may go on for longer.
    pub request: Duration,
    /// After the stop was asked for, until what is still open is cut.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            requests: 1024,
            header_bytes: 16 * 1024,
            body_bytes: 4 * 1024 * 1024,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(120),
            request: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// Where a request came from; every request carries it as an extension.
#[derive(Clone, Copy, Debug)]
pub struct Remote(pub SocketAddr);

/// What a listener serves.
#[derive(Default)]
pub struct Routes {
    /// Under all of the listener's limits.
    pub limited: Router,
    /// Those whose bodies are streams of any length: they see to the body's length and to its pace themselves, and stand
    /// under all limits but [`Limits::body_bytes`] and [`Limits::request`].
    pub streams: Router,
}

impl From<Router> for Routes {
    fn from(limited: Router) -> Self {
        Self { limited, ..Self::default() }
    }
}

/// Serves `routes`, and `/healthz`, `/readyz` and `/metrics` beside them, until `shutdown`; then lets what is under way
/// end. A request from a service of the cluster carries its [`Peer`] as an extension.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    routes: impl Into<Routes>,
    health: Health,
    limits: Limits,
    shutdown: CancellationToken,
) {
    health.done(LISTENING);
    let service = limited(routes.into(), limits).merge(probes(health));
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(limits.connections));
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    // Where this future is dropped, its connections go too.
    let _cut = cut.clone().drop_guard();
    let mut upkeep = tokio::time::interval(METRICS_UPKEEP);

    loop {
        // The slot comes before the connection: past the limit, connections wait in the kernel's queue.
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accepted => accepted,
            _ = upkeep.tick() => {
                if let Some(handle) = metrics_handle() {
                    handle.run_upkeep();
                }
                continue;
            }
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer is gone already. The first wants time, and neither is ours to die of.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let connection =
            connection(stream, Remote(remote), acceptor.clone(), service.clone(), limits, shutdown.clone());
        let cut = cut.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = cut.cancelled() => {}
            }
            drop(slot);
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(limits.drain, tasks.wait()).await.is_err() {
        tracing::info!("connections that were still open are cut");
    }
    cut.cancel();
    tasks.wait().await;
}

async fn connection(
    stream: TcpStream,
    remote: Remote,
    acceptor: TlsAcceptor,
    service: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    // Answers are small and whole; waiting to fill a segment only adds latency.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::select! {
        handshake = tokio::time::timeout(limits.handshake, acceptor.accept(stream)) => handshake,
        // Nothing was asked yet, so nothing is lost.
        () = shutdown.cancelled() => return,
    };
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    let peer = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(Peer::of);
    let pace = Pace::new(limits);
    let service = hyper::service::service_fn(|mut request: Request<hyper::body::Incoming>| {
        pace.asked(request.version());
        request.extensions_mut().insert(remote);
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        let answer = service.clone().oneshot(request.map(Body::new));
        let pace = Arc::clone(&pace);
        async move {
            let answer = answer.await;
            pace.answered();
            answer
        }
    });

    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Pace has one that does not cut who is idle.
        .header_read_timeout(None)
        // hyper's least is 8 KiB.
        .max_buf_size(limits.header_bytes.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(256)
        // What a hundred clients may send ahead of those who read it; hyper's own is a MiB each.
        .initial_stream_window_size(128 << 10)
        .keep_alive_interval(Duration::from_secs(20));
    let io = TokioIo::new(Paced { stream: Unvectored(stream), pace: Arc::clone(&pace) });
    let mut connection = std::pin::pin!(builder.serve_connection(io, service));
    let overdue = tokio::select! {
        ended = gathered(connection.as_mut()) => return log_end(ended),
        overdue = pace.overdue() => Some(overdue),
        () = shutdown.cancelled() => None,
    };
    if overdue == Some(Phase::First) {
        return tracing::debug!("a connection asked for nothing");
    }
    // In order: what is under way is answered, and the other side is told that nothing more comes.
    connection.as_mut().graceful_shutdown();
    log_end(gathered(connection).await);
}

fn log_end(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

fn limited(routes: Routes, limits: Limits) -> Router {
    // One stack and not a layer each: the router boxes what it is given at every call of `layer`.
    let all = tower::ServiceBuilder::new()
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            tracing::error!("a request's handler panicked");
            Problem::internal().into_response()
        }))
        .layer(axum::error_handling::HandleErrorLayer::new(|_: axum::BoxError| async { Problem::overloaded() }))
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::new(limits.requests))
        .map_response(move |response: Response<_>| as_problem(response, limits))
        // axum has a limit of its own for bodies that it reads whole; one is enough.
        .layer(axum::extract::DefaultBodyLimit::disable());
    let whole = tower::ServiceBuilder::new()
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, limits.request))
        .layer(RequestBodyLimitLayer::new(limits.body_bytes));
    routes
        .limited
        .fallback(|| async {
            Problem::not_found("there is nothing at this address; /openapi.yaml tells what there is")
        })
        .layer(whole)
        .merge(routes.streams)
        .layer(all)
}

/// Errors are problem documents, also those that layers and extractors made and not a handler.
fn as_problem<B>(response: Response<B>, limits: Limits) -> Response
where
    Response<B>: axum::response::IntoResponse,
{
    let status = response.status();
    let is_text = response.headers().get(header::CONTENT_TYPE).is_none_or(|kind| kind.as_bytes().starts_with(b"text/"));
    if !is_text || !(status.is_client_error() || status.is_server_error()) {
        return response.into_response();
    }
    let problem = match status {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(status, "too-large", format!("the body is larger than the limit, {} bytes", limits.body_bytes))
        }
        StatusCode::GATEWAY_TIMEOUT => Problem::new(status, "timeout", "the answer took too long; try again"),
        status => {
            let kind = status.canonical_reason().unwrap_or("error").to_lowercase().replace(' ', "-");
            Problem::new(status, &kind, "")
        }
    };
    // What else was said stays: Allow, Retry-After.
    let (mut parts, _) = response.into_parts();
    let (problem, body) = problem.into_response().into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(problem.headers);
    Response::from_parts(parts, body)
}

impl Problem {
    fn overloaded() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many requests are under way; try again soon")
    }
}

fn probes(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn readyz(State(health): State<Health>) -> Response {
    let waits = health.waits();
    let status = if waits.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(json!({"ready": waits.is_empty(), "waits_for": waits}))).into_response()
}

async fn metrics() -> Response {
    let text = metrics_handle().map(PrometheusHandle::render).unwrap_or_default();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The bounds of histograms, which are all of seconds.
const SECONDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Collects metrics from now on. Once in a process; later calls change nothing.
pub fn init_metrics() {
    metrics_handle();
}

fn metrics_handle() -> Option<&'static PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().set_buckets(&SECONDS).ok()?.install_recorder().ok()).as_ref()
}
