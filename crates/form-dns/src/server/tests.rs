use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::thread::JoinHandle;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

use super::*;
use crate::testing::{cluster, name};

/// A server on a thread of its own, so that the tests can be plain and blocking clients.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start() -> Self {
        Self::with(ServerConfig::default(), "127.0.0.1:0")
    }

    fn with(config: ServerConfig, address: &str) -> Self {
        let config = ServerConfig { addresses: vec![address.parse().unwrap()], udp_workers: 2, ..config };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let guard = runtime.enter();
        // Another test may have the UDP port that goes with the TCP port we got.
        let mut attempts = (0..20).map(|_| Server::bind(Handler::new(cluster()), config.clone()));
        let server = attempts.find_map(Result::ok).expect("no port is free over both TCP and UDP");
        drop(guard);
        let address = server.addresses().unwrap()[0];
        let stop = CancellationToken::new();
        let token = stop.clone();
        let thread = std::thread::spawn(move || runtime.block_on(server.run(token)));
        Self { address, stop, thread: Some(thread) }
    }

    fn udp(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.connect(self.address).unwrap();
        socket
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// What `tool` prints, if it is installed.
    fn judge(&self, tool: &str, args: &[&str]) -> Option<String> {
        let port = self.address.port().to_string();
        let mut command = Command::new(tool);
        command.args(["@127.0.0.1", "-p", &port]).args(args);
        match command.output() {
            Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
            Err(e) => {
                eprintln!("skipped: {tool} does not run ({e}); apt-get install bind9-dnsutils knot-dnsutils");
                None
            }
        }
    }

    fn stop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn query(id: u16, qname: &str, rtype: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name(qname), rtype));
    message.to_vec().unwrap()
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    bytes
}

fn read_answer(stream: &mut TcpStream) -> Message {
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut bytes).unwrap();
    Message::from_vec(&bytes).unwrap()
}

fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_))
}

#[test]
fn dig_and_kdig_read_all_kinds_of_answers() {
    let server = Running::start();
    let text = "hello.default.formation.internal.";
    for tool in ["dig", "kdig"] {
        let ask = |args: &[&str]| {
            let answer = server.judge(tool, &[&["+short"], args].concat())?;
            // kdig mentions on the way that it asks again over TCP.
            let is_data = |line: &&str| !line.is_empty() && !line.starts_with(";;");
            Some(answer.lines().filter(is_data).map(str::to_owned).collect::<Vec<_>>())
        };
        let Some(a) = ask(&[text, "A"]) else { continue };
        assert_eq!(a, ["100.64.0.10"], "{tool}");
        assert_eq!(ask(&[text, "AAAA"]).unwrap(), ["fd00::10"], "{tool}");
        assert_eq!(ask(&["-x", "100.64.0.10"]).unwrap(), [text], "{tool}");
        assert_eq!(ask(&["_http._tcp.example.org", "SRV"]).unwrap(), [format!("0 5 80 {text}")], "{tool}");
        assert_eq!(ask(&["any.wild.example.org", "TXT"]).unwrap(), ["\"wild\""], "{tool}");
        assert_eq!(ask(&["example.org", "MX"]).unwrap(), ["10 mail.example.org."], "{tool}");
        assert_eq!(ask(&["example.org", "NS"]).unwrap(), ["ns.formation.internal."], "{tool}");
        assert_eq!(ask(&["www.example.org", "A"]).unwrap(), [text, "100.64.0.10"], "{tool}");
        // Truncated over UDP, so both ask again over TCP.
        let big = ask(&["big.example.org", "A"]).unwrap();
        assert_eq!(big.len(), 200, "{tool}: {big:?}");
        assert_eq!(ask(&["+tcp", text, "A"]).unwrap(), ["100.64.0.10"], "{tool}");
    }
}

#[test]
fn dig_and_kdig_tell_nxdomain_nodata_and_refused_apart() {
    let server = Running::start();
    for tool in ["dig", "kdig"] {
        let Some(nxdomain) = server.judge(tool, &["nothing.formation.internal", "A"]) else { continue };
        assert!(nxdomain.contains("NXDOMAIN") && nxdomain.contains("30\tIN\tSOA"), "{nxdomain}");
        let nodata = server.judge(tool, &["hello.default.formation.internal", "TXT"]).unwrap();
        assert!(nodata.contains("NOERROR") && nodata.contains("SOA") && !nodata.contains("NXDOMAIN"), "{nodata}");
        let refused = server.judge(tool, &["example.com", "A"]).unwrap();
        assert!(refused.contains("REFUSED"), "{refused}");
        let transfer = server.judge(tool, &["example.org", "AXFR"]).unwrap();
        assert!(!transfer.contains("mail.example.org"), "{transfer}");
        for answer in [nxdomain, nodata, refused, transfer] {
            assert!(!answer.contains("malformed") && !answer.to_lowercase().contains("warning: extra"), "{answer}");
        }
    }
}

#[test]
fn no_datagram_stops_the_server_from_answering_the_next_query() {
    let server = Running::start();
    let socket = server.udp();
    let ids = std::cell::Cell::new(0_u16);
    let mut runner = TestRunner::new(ProptestConfig { cases: 1000, rng_seed: RngSeed::Fixed(7), ..Default::default() });
    let mutated = (prop::collection::vec((0_usize..50, any::<u8>()), 0..8), 0_usize..60).prop_map(|(damage, cut)| {
        let mut bytes = query(0, "www.example.org.", RecordType::A);
        for (at, byte) in damage {
            if let Some(old) = bytes.get_mut(at) {
                *old = byte;
            }
        }
        bytes.truncate(cut);
        bytes
    });
    let hostile = prop_oneof![prop::collection::vec(any::<u8>(), 0..600), mutated];
    let result = runner.run(&hostile, |mut bytes| {
        // All that is hostile has id 0, and no good query has.
        bytes.iter_mut().take(2).for_each(|byte| *byte = 0);
        socket.send(&bytes).unwrap();
        let id = ids.get().wrapping_add(1).max(1);
        ids.set(id);
        socket.send(&query(id, "hello.default.formation.internal.", RecordType::A)).unwrap();
        let mut buffer = [0; 2048];
        loop {
            let len = socket.recv(&mut buffer).unwrap();
            let Ok(answer) = Message::from_vec(&buffer[..len]) else { continue };
            if answer.metadata.id == id {
                prop_assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
                prop_assert_eq!(answer.answers.len(), 1);
                return Ok(());
            }
        }
    });
    result.unwrap();
}

#[test]
fn rfc7766_6_2_1_1_queries_on_one_connection_are_all_answered() {
    let server = Running::start();
    let mut stream = server.tcp();
    let both =
        [framed(&query(1, "example.org.", RecordType::SOA)), framed(&query(2, "nothing.example.org.", RecordType::A))];
    // The length and the message may come in any pieces.
    for piece in both.concat().chunks(5) {
        stream.write_all(piece).unwrap();
    }
    assert_eq!(read_answer(&mut stream).metadata.id, 1);
    let second = read_answer(&mut stream);
    assert_eq!((second.metadata.id, second.metadata.response_code), (2, ResponseCode::NXDomain));
}

#[test]
fn rfc7766_6_2_3_a_client_that_sends_half_a_message_is_let_go() {
    let config = ServerConfig { tcp_timeout: Duration::from_millis(100), ..ServerConfig::default() };
    let server = Running::with(config, "127.0.0.1:0");
    let mut stream = server.tcp();
    stream.write_all(&[0, 40, 1, 2, 3]).unwrap();
    assert!(is_closed(&mut stream));
}

#[test]
fn connections_over_the_limit_wait_until_another_ends() {
    let config = ServerConfig { tcp_connections: 1, ..ServerConfig::default() };
    let server = Running::with(config, "127.0.0.1:0");
    let ask = |stream: &mut TcpStream| stream.write_all(&framed(&query(1, "example.org.", RecordType::SOA))).unwrap();
    let mut first = server.tcp();
    ask(&mut first);
    read_answer(&mut first);
    let mut second = server.tcp();
    ask(&mut second);
    second.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(second.read(&mut [0; 1]).is_err(), "the second connection was answered beside the first");
    drop(first);
    second.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(read_answer(&mut second).metadata.id, 1);
}

#[test]
fn a_stop_closes_idle_connections_and_frees_the_address() {
    let mut server = Running::start();
    let mut stream = server.tcp();
    stream.write_all(&framed(&query(1, "example.org.", RecordType::SOA))).unwrap();
    read_answer(&mut stream);
    server.stop();
    assert!(is_closed(&mut stream));
    drop(Running::with(ServerConfig::default(), &server.address.to_string()));
}

#[test]
fn an_address_that_the_machine_does_not_have_yet_can_be_listened_on() {
    drop(Running::with(ServerConfig::default(), "198.51.100.53:0"));
    drop(Running::with(ServerConfig::default(), "[2001:db8::53]:0"));
}

#[test]
fn a_second_server_on_the_same_address_is_refused() {
    let server = Running::start();
    let config = ServerConfig { addresses: vec![server.address], ..ServerConfig::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    let error = Server::bind(Handler::new(cluster()), config).unwrap_err();
    assert!(error.to_string().contains("is another name server running there?"));
}
