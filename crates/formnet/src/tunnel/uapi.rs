//! What a userspace tunnel is told, and says (wireguard.com/xplatform: lines of `key=value` over a socket).
//!
//! boringtun is given whole sections only, for what it does not have it takes for absent; and a peer that it has it
//! refuses to change (it panics), so a change is a removal and an addition in one request, which it does at once.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use zeroize::Zeroizing;

use super::{PeerState, PrivateKey, TunnelPeer};

/// Where the sockets are. Not ours to choose: boringtun and wg(8) have it built in.
const DIRECTORY: &str = "/var/run/wireguard";
const PATIENCE: Duration = Duration::from_secs(5);
/// Of an answer: some hundred bytes a peer.
const MOST_BYTES: u64 = 64 << 20;

/// What a tunnel says of itself.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) listen_port: u16,
    pub(super) peers: Vec<(PeerState, Option<u16>)>,
}

pub(super) fn path(interface: &str, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}/{interface}.{suffix}"))
}

pub(super) fn connect(interface: &str) -> io::Result<UnixStream> {
    let socket = UnixStream::connect(path(interface, "sock"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

pub(super) fn get(interface: &str) -> io::Result<Said> {
    parse(&ask(interface, "get=1\n\n")?)
}

/// The key comes before the port: a packet that finds a port and no key makes boringtun panic. A port is given only if
/// it is another one, for it keeps the sockets of the one before open.
pub(super) fn set_device(interface: &str, key: &PrivateKey, port: Option<u16>) -> io::Result<()> {
    let mut request = Zeroizing::new(String::with_capacity(128));
    request.push_str("set=1\nprivate_key=");
    request.push_str(&key.hex());
    if let Some(port) = port {
        let _ = write!(request, "\nlisten_port={port}");
    }
    request.push_str("\n\n");
    ask(interface, &request).map(drop)
}

/// `endpoint` stands for the one of `peer`.
pub(super) fn set_peer(interface: &str, peer: &TunnelPeer, endpoint: Option<SocketAddr>) -> io::Result<()> {
    let key = hex(&peer.public_key)?;
    // remove=false, because boringtun takes what it heard in one section over into the next.
    let mut request = format!("set=1\npublic_key={key}\nremove=true\npublic_key={key}\nremove=false\n");
    if let Some(endpoint) = endpoint {
        let _ = writeln!(request, "endpoint={endpoint}");
    }
    if let Some(keepalive) = peer.keepalive {
        let _ = writeln!(request, "persistent_keepalive_interval={keepalive}");
    }
    for prefix in &peer.allowed {
        let _ = writeln!(request, "allowed_ip={prefix}");
    }
    request.push('\n');
    ask(interface, &request).map(drop)
}

pub(super) fn remove_peer(interface: &str, public_key: &str) -> io::Result<()> {
    let key = hex(public_key)?;
    ask(interface, &format!("set=1\npublic_key={key}\nremove=true\n\n")).map(drop)
}

fn ask(interface: &str, request: &str) -> io::Result<Zeroizing<String>> {
    let mut socket = connect(interface)?;
    // One write, so that we are killed before it or after it: half a request would be taken for a whole one.
    socket.write_all(request.as_bytes())?;
    // The answer to a get has the private key in it.
    let mut answer = Zeroizing::new(String::with_capacity(4096));
    socket.take(MOST_BYTES).read_to_string(&mut answer)?;
    match answer.lines().rev().find_map(|line| line.strip_prefix("errno=")) {
        Some("0") => Ok(answer),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.parse().unwrap_or(nix::libc::EPROTO))),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tunnel said nothing")),
    }
}

fn parse(answer: &str) -> io::Result<Said> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the tunnel said something else than peers");
    let mut said = Said::default();
    for line in answer.lines().filter(|line| !line.is_empty()) {
        let (key, value) = line.split_once('=').ok_or_else(bad)?;
        if key == "public_key" {
            let public_key = HEXLOWER_PERMISSIVE.decode(value.as_bytes()).map_err(|_| bad())?;
            let state = PeerState { public_key: BASE64.encode(&public_key), ..PeerState::default() };
            said.peers.push((state, None));
            continue;
        }
        if key == "listen_port" {
            said.listen_port = value.parse().map_err(|_| bad())?;
        }
        let Some((peer, keepalive)) = said.peers.last_mut() else { continue };
        let number = || value.parse::<u64>().map_err(|_| bad());
        let mut since = |time| {
            let before = peer.last_handshake.unwrap_or(SystemTime::UNIX_EPOCH);
            peer.last_handshake = before.checked_add(time).filter(|time| *time > SystemTime::UNIX_EPOCH);
        };
        match key {
            "endpoint" => peer.endpoint = Some(value.parse().map_err(|_| bad())?),
            "allowed_ip" => peer.allowed.push(value.parse().map_err(|_| bad())?),
            "persistent_keepalive_interval" => *keepalive = value.parse().ok().filter(|seconds| *seconds > 0),
            "last_handshake_time_sec" => since(Duration::from_secs(number()?)),
            "last_handshake_time_nsec" => since(Duration::from_nanos(number()?)),
            "rx_bytes" => peer.rx_bytes = number()?,
            "tx_bytes" => peer.tx_bytes = number()?,
            _ => {}
        }
    }
    Ok(said)
}

fn hex(public_key: &str) -> io::Result<String> {
    let bytes = BASE64.decode(public_key.as_bytes()).ok().filter(|bytes| bytes.len() == 32);
    let bytes = bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a peer's key is no WireGuard key"))?;
    Ok(HEXLOWER_PERMISSIVE.encode(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_read_with_what_they_have_and_what_they_lack() {
        let key = "ab".repeat(32);
        let text = format!(
            "private_key={key}\nlisten_port=51820\npublic_key={key}\npersistent_keepalive_interval=25\n\
             endpoint=[fd00::1]:7\nallowed_ip=10.0.0.0/24\nallowed_ip=fd00::/64\nlast_handshake_time_sec=5\n\
             last_handshake_time_nsec=7\nrx_bytes=1\ntx_bytes=2\npublic_key={key}\nrx_bytes=0\nerrno=0\n\n"
        );
        let said = parse(&text).unwrap();
        assert_eq!(said.listen_port, 51820);
        let [(one, Some(25)), (two, None)] = &said.peers[..] else { panic!("{said:?}") };
        assert_eq!(one.allowed.len(), 2);
        assert_eq!(one.last_handshake, Some(SystemTime::UNIX_EPOCH + Duration::new(5, 7)));
        assert_eq!((one.rx_bytes, one.tx_bytes), (1, 2));
        assert_eq!((two.last_handshake, two.endpoint), (None, None));
        assert!(parse("what").is_err());
    }
}
