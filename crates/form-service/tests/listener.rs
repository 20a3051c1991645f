//! What a stranger can do to a listener, and what it lets nobody do.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use form_service::listener::{self, Limits, Routes};
use form_service::{Authority, CancellationToken, Health, Identity, Problem, probe};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

struct Server {
    address: SocketAddr,
    identity: Identity,
    health: Health,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn serve(routes: impl Into<Routes>, limits: Limits) -> Server {
    form_service::run::init_process();
    let dir = tempfile::tempdir().unwrap();
    let identity = Authority::open_or_create(dir.path()).unwrap().issue("example", "one", &[], &[]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (health, shutdown) = (Health::default(), CancellationToken::new());
    let tls = identity.server().unwrap();
    let routes = routes.into();
    let task = tokio::spawn(listener::serve(listener, tls, routes, health.clone(), limits, shutdown.clone()));
    Server { address, identity, health, shutdown, task }
}

impl Server {
    fn client(&self) -> reqwest::Client {
        let ca = reqwest::Certificate::from_pem(self.identity.ca_pem.as_bytes()).unwrap();
        reqwest::Client::builder().tls_certs_only([ca]).resolve("example", self.address).build().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("https://example:{}{path}", self.address.port())
    }

    async fn tls(&self, protocol: &str) -> TlsStream<TcpStream> {
        let mut config = self.identity.client().unwrap();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("example").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    async fn is_alive(&self) -> bool {
        let answer = self.client().get(self.url("/healthz")).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }
}

async fn problem(answer: reqwest::Response) -> Problem {
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let status = answer.status();
    let problem: Problem = answer.json().await.unwrap();
    assert_eq!(problem.status, status.as_u16());
    problem
}

/// All that the other end still says; returns when it hangs up.
async fn rest(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

fn hasty() -> Limits {
    Limits { handshake: Duration::from_millis(200), ..Limits::default() }
}

#[tokio::test]
async fn who_never_begins_the_handshake_is_hung_up_on() {
    let server = serve(Router::new(), hasty()).await;
    assert!(rest(TcpStream::connect(server.address).await.unwrap()).await.is_empty());
    assert!(server.is_alive().await);
}

#[tokio::test]
async fn who_asks_for_nothing_or_for_half_a_thing_is_hung_up_on() {
    let server = serve(Router::new(), hasty()).await;
    for protocol in ["h2", "http/1.1"] {
        for said in [&b""[..], b"PRI * HT", b"GET /healthz HTTP/1.1\r\nhost: exa"] {
            let mut stream = server.tls(protocol).await;
            stream.write_all(said).await.unwrap();
            rest(stream).await;
        }
    }
    assert!(server.is_alive().await);
}

/// Asks for the health over HTTP/1, and reads all of the answer.
async fn ask(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: example\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\nok\n") {
        assert_ne!(stream.read_buf(&mut said).await.unwrap(), 0, "{}", String::from_utf8_lossy(&said));
    }
}

#[tokio::test]
async fn a_connection_that_is_kept_for_later_outlives_the_time_for_a_head_and_is_closed_in_order() {
    let limits = Limits { idle: Duration::from_secs(2), ..hasty() };
    let server = serve(Router::new(), limits).await;
    let mut kept = server.tls("http/1.1").await;
    ask(&mut kept).await;
    tokio::time::sleep(limits.handshake * 3).await;
    ask(&mut kept).await;
    // rustls has an end without a close_notify be an error.
    assert_eq!(kept.read(&mut [0]).await.unwrap(), 0);
    assert!(server.is_alive().await);
}

#[tokio::test]
async fn an_answer_that_goes_on_is_not_idle_and_is_let_go_on() {
    let (say, said) = mpsc::channel::<Bytes>(1);
    let said = Arc::new(tokio::sync::Mutex::new(said));
    let body = move || {
        let said = Arc::clone(&said);
        Body::from_stream(futures::stream::unfold(said, async |said| {
            let next = said.lock().await.recv().await;
            next.map(|bytes| (Ok::<_, std::io::Error>(bytes), said))
        }))
    };
    let limits = Limits { idle: Duration::from_millis(200), ..hasty() };
    let server = serve(Router::new().route("/stream", get(async move || body())), limits).await;
    let mut stream = server.tls("http/1.1").await;
    stream.write_all(b"GET /stream HTTP/1.1\r\nhost: example\r\n\r\n").await.unwrap();
    say.send("early".into()).await.unwrap();
    tokio::time::sleep(limits.idle * 5).await;
    say.send("late".into()).await.unwrap();
    drop(say);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    let all = String::from_utf8_lossy(&all);
    assert!(all.contains("early") && all.ends_with("4\r\nlate\r\n0\r\n\r\n"), "{all}");
}

#[tokio::test]
async fn a_later_head_that_does_not_come_to_its_end_is_hung_up_on() {
    let server = serve(Router::new(), Limits { idle: Duration::from_secs(3600), ..hasty() }).await;
    let mut slow = server.tls("http/1.1").await;
    ask(&mut slow).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: exa").await.unwrap();
    assert!(rest(slow).await.is_empty());
    assert!(server.is_alive().await);
}

#[tokio::test]
async fn a_connection_past_the_limit_waits_until_another_goes() {
    let server = serve(Router::new(), Limits { connections: 1, ..Limits::default() }).await;
    let (first, second) = (server.client(), server.client());
    assert_eq!(first.get(server.url("/healthz")).send().await.unwrap().status(), 200);
    let waiting = tokio::spawn(second.get(server.url("/healthz")).send());
    assert_eq!(first.get(server.url("/healthz")).send().await.unwrap().status(), 200);
    assert!(!waiting.is_finished());
    drop(first);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_past_the_limit_is_told_to_come_again() {
    let (entered, mut inside) = mpsc::channel::<()>(1);
    let leave = Arc::new(Notify::new());
    let routes = Router::new().route(
        "/slow",
        get({
            let leave = Arc::clone(&leave);
            async move || {
                entered.send(()).await.unwrap();
                leave.notified().await;
            }
        }),
    );
    let server = serve(routes, Limits { requests: 1, ..Limits::default() }).await;
    let client = server.client();
    let first = tokio::spawn(client.get(server.url("/slow")).send());
    inside.recv().await.unwrap();
    let refused = client.get(server.url("/slow")).send().await.unwrap();
    assert_eq!(problem(refused).await.kind, "/problems/overloaded");
    assert!(server.is_alive().await, "a probe is answered all the same");
    leave.notify_one();
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_head_or_a_body_that_is_too_large_is_refused() {
    let routes = Router::new().route("/", post(async |body: Bytes| body.len().to_string()));
    let server = serve(routes, Limits { body_bytes: 3 << 20, ..Limits::default() }).await;
    let client = server.client();
    let fits = client.post(server.url("/")).body(vec![b'x'; 3 << 20]).send().await.unwrap();
    assert_eq!(fits.text().await.unwrap(), (3 << 20).to_string());

    let large = client.post(server.url("/")).body(vec![b'x'; (3 << 20) + 1]).send().await.unwrap();
    assert_eq!(problem(large).await.kind, "/problems/too-large");
    // Without a length that could be refused beforehand.
    let chunks = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 64 << 10]));
    let chunks = futures::StreamExt::take(chunks, 64);
    let unsized_body = client.post(server.url("/")).body(reqwest::Body::wrap_stream(chunks)).send().await.unwrap();
    assert_eq!(problem(unsized_body).await.kind, "/problems/too-large");

    let head = client.get(server.url("/healthz")).header("x-large", "x".repeat(20 << 10)).send().await;
    assert!(head.map_or(true, |answer| answer.status() == 431));
    let mut one = server.tls("http/1.1").await;
    one.write_all(format!("GET / HTTP/1.1\r\nx-large: {}\r\n\r\n", "x".repeat(20 << 10)).as_bytes()).await.unwrap();
    let said = rest(one).await;
    assert!(said.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&said));
    assert!(server.is_alive().await);
}

#[tokio::test]
async fn a_stream_may_be_longer_and_take_longer_than_the_limits_and_a_panic_in_it_is_an_error_all_the_same() {
    let slow = async |body: Body| {
        let mut body = body.into_data_stream();
        let mut length = 0;
        while let Some(bytes) = futures::StreamExt::next(&mut body).await {
            length += bytes.unwrap().len();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        length.to_string()
    };
    let streams =
        Router::new().route("/stream", post(slow)).route("/panic", get(async || -> () { panic!("as the test asks") }));
    let limited = Router::new().route("/whole", post(slow));
    let limits = Limits { body_bytes: 1000, request: Duration::from_millis(100), ..Limits::default() };
    let server = serve(Routes { limited, streams }, limits).await;
    let client = server.client();
    let sent = |path: &str, length| client.post(server.url(path)).body(vec![b'x'; length]).send();
    assert_eq!(sent("/stream", 100_000).await.unwrap().text().await.unwrap(), "100000");
    assert_eq!(problem(sent("/whole", 100_000).await.unwrap()).await.kind, "/problems/too-large");
    assert_eq!(problem(sent("/whole", 10).await.unwrap()).await.kind, "/problems/timeout");
    assert_eq!(problem(sent("/nothing", 10).await.unwrap()).await.kind, "/problems/not-found");
    let broken = client.get(server.url("/panic")).send().await.unwrap();
    assert_eq!(problem(broken).await.kind, "/problems/internal");
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_given_up_and_a_panic_is_an_error() {
    let routes = Router::new()
        .route("/never", get(async || std::future::pending::<()>().await))
        .route("/panic", get(async || -> () { panic!("as the test asks") }));
    let server = serve(routes, Limits { request: Duration::from_millis(100), ..Limits::default() }).await;
    let client = server.client();
    let late = client.get(server.url("/never")).send().await.unwrap();
    assert_eq!(problem(late).await.kind, "/problems/timeout");
    let broken = client.get(server.url("/panic")).send().await.unwrap();
    assert_eq!(problem(broken).await.kind, "/problems/internal");
    let nothing = client.get(server.url("/nothing")).send().await.unwrap();
    assert_eq!(problem(nothing).await.kind, "/problems/not-found");
    let method = client.post(server.url("/never")).send().await.unwrap();
    assert_eq!(method.headers()["allow"], "GET,HEAD");
    assert_eq!(problem(method).await.kind, "/problems/method-not-allowed");
}

#[tokio::test]
async fn a_stop_lets_what_is_under_way_finish_and_takes_nothing_new() {
    let (entered, mut inside) = mpsc::channel::<()>(1);
    let leave = Arc::new(Notify::new());
    let routes = Router::new().route(
        "/slow",
        get({
            let leave = Arc::clone(&leave);
            async move || {
                entered.send(()).await.unwrap();
                leave.notified().await;
                "done"
            }
        }),
    );
    let server = serve(routes, Limits { drain: Duration::from_secs(60), ..Limits::default() }).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    let asked = tokio::spawn(server.client().get(server.url("/slow")).send());
    inside.recv().await.unwrap();
    server.shutdown.cancel();
    // Who has not asked yet is hung up on, and does not hold up the stop.
    let _ = idle.read(&mut [0]).await;
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    leave.notify_one();
    assert_eq!(asked.await.unwrap().unwrap().text().await.unwrap(), "done");
    server.task.await.unwrap();
}

#[tokio::test]
async fn what_never_ends_is_cut_when_the_stop_has_waited_long_enough() {
    let routes = Router::new().route(
        "/endless",
        get(async || Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>())),
    );
    let server = serve(routes, Limits { drain: Duration::from_millis(100), ..Limits::default() }).await;
    let answer = server.client().get(server.url("/endless")).send().await.unwrap();
    server.shutdown.cancel();
    server.task.await.unwrap();
    assert!(answer.bytes().await.is_err(), "the connection is gone, not only forgotten");
}

#[tokio::test]
async fn a_service_is_ready_when_it_waits_for_nothing_and_says_what_it_waits_for() {
    let server = serve(Router::new(), Limits::default()).await;
    server.health.wait_for("zones", "the first list has not come");
    let client = server.client();
    let waiting = client.get(server.url("/readyz")).send().await.unwrap();
    assert_eq!(waiting.status(), 503);
    let said: Value = waiting.json().await.unwrap();
    assert_eq!(said["waits_for"]["zones"], "the first list has not come");
    server.health.done("zones");
    assert_eq!(client.get(server.url("/readyz")).send().await.unwrap().status(), 200);

    metrics::histogram!("form_example_seconds").record(0.002);
    let metrics = client.get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("form_example_seconds_bucket{le=\"0.0025\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_service_that_is_asked_by_its_own_program_is_ready_waits_or_is_not_there() {
    let server = serve(Router::new(), Limits::default()).await;
    let ask = |service| probe::ready(&server.identity, service, server.address);
    ask("example").await.unwrap();
    server.health.wait_for("zones", "the first list has not come");
    let waits = ask("example").await.unwrap_err().to_string();
    assert!(waits.contains("the first list has not come"), "{waits}");
    // Whoever else has the port shows another name.
    assert!(matches!(ask("form-dns").await, Err(probe::ProbeError::Connection { .. })));
    server.shutdown.cancel();
    server.task.await.unwrap();
    let gone = probe::ready(&server.identity, "example", server.address).await;
    assert!(matches!(gone, Err(probe::ProbeError::Connection { .. })), "{gone:?}");
}

#[tokio::test]
async fn noise_does_not_bring_a_listener_down() {
    let server = serve(Router::new(), hasty()).await;
    let mut seed = 0x5eed_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let openings: [&[u8]; 5] = [
        b"",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        // An empty SETTINGS, and the head of a HEADERS frame.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x40\x01\x05\0\0\0\x01",
        b"POST / HTTP/1.1\r\nhost: example\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: ",
    ];
    for round in 0..60 {
        let mut noise = openings[round % openings.len()].to_vec();
        noise.extend((0..random() % 2000).map(|_| random() as u8));
        let mut plain = TcpStream::connect(server.address).await.unwrap();
        let _ = plain.write_all(&noise).await;
        for protocol in ["h2", "http/1.1"] {
            let mut stream = server.tls(protocol).await;
            let _ = stream.write_all(&noise).await;
            let _ = stream.shutdown().await;
        }
    }
    assert!(server.is_alive().await);
}
