//! One WireGuard interface: the kernel's, or where the kernel has none, boringtun's in a process of its own.

mod helper;
mod kernel;
mod key;
mod uapi;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{Error, Result, file};
use crate::links::{Links, check_name};

pub use self::helper::entry;
pub use self::key::PrivateKey;

/// What moves the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The kernel.
    Kernel,
    /// A process of ours.
    Userspace,
}

impl Backend {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Kernel => "kernel",
            Backend::Userspace => "userspace",
        }
    }
}

/// What is wanted of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelPeer {
    /// Its key, in base64.
    pub public_key: String,
    /// Where to reach it; none: where it is now, or wherever it calls from.
    pub endpoint: Option<SocketAddr>,
    /// What it may send from, and what is sent to it.
    pub allowed: Vec<IpNet>,
    /// How often it hears of us when there is nothing to say, seconds.
    pub keepalive: Option<u16>,
}

/// What is so of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Its key, in base64.
    pub public_key: String,
    /// Where it is: where we were told, or where it last called from.
    pub endpoint: Option<SocketAddr>,
    /// What it may send from, and what is sent to it.
    pub allowed: Vec<IpNet>,
    /// When keys were last agreed on; a few milliseconds off.
    pub last_handshake: Option<SystemTime>,
    /// From it, bytes.
    pub rx_bytes: u64,
    /// To it, bytes.
    pub tx_bytes: u64,
}

/// An interface that is up. It stays when this is dropped.
#[derive(Clone, Debug)]
pub struct Tunnel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    interface: String,
    backend: Backend,
    /// What was last seen, so that a peer that is as it should be costs nothing. Never locked while anyone is asked.
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    allowed: Vec<IpNet>,
    keepalive: Option<u16>,
    /// What we were told last.
    asked: Option<SocketAddr>,
    /// Where it is.
    endpoint: Option<SocketAddr>,
    last_handshake: Option<SystemTime>,
}

/// For so long a session is good (the WireGuard paper, 6.1: REJECT_AFTER_TIME).
const SESSION: Duration = Duration::from_secs(180);
/// With a helper that neither ends nor answers.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

impl Tunnel {
    /// Makes `interface` what it should be: the kernel's if the kernel can, else with a helper. One that is there already
    /// is adopted; its peers and their sessions stay.
    ///
    /// The program that runs must call [`entry`] first in its main. Its addresses and its way up are [`Links`]' part.
    ///
    /// # Errors
    /// If the name is something else's, or no tunnel can be made here: the message says why.
    pub async fn up(interface: &str, private_key: &PrivateKey, listen_port: u16) -> Result<Self> {
        Self::up_with_program(interface, private_key, listen_port, Path::new("/proc/self/exe")).await
    }

    /// As [`Tunnel::up`], for a program that is not the one to be run again, as a test is not.
    ///
    /// # Errors
    /// As [`Tunnel::up`].
    pub async fn up_with_program(
        interface: &str,
        private_key: &PrivateKey,
        listen_port: u16,
        program: &Path,
    ) -> Result<Self> {
        check_name(interface)?;
        let links = Links::connect()?;
        let answers = answers(interface);
        if !answers {
            links.delete_dead_tunnel(interface).await?;
        }
        let backend = if answers {
            Backend::Userspace
        } else if links.ensure_wireguard(interface, async || is_bare(interface).await).await? {
            Backend::Kernel
        } else {
            start(program, interface).await?;
            Backend::Userspace
        };
        let tunnel = Self(Arc::new(Inner { interface: interface.to_owned(), backend, known: Mutex::default() }));
        let port = tunnel.read().await?;
        tunnel.set_device(private_key, (port != listen_port).then_some(listen_port)).await?;
        Ok(tunnel)
    }

    /// What moves the packets.
    pub fn backend(&self) -> Backend {
        self.0.backend
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.0.interface
    }

    /// Makes a peer what is wanted. Nothing happens if it is so already.
    ///
    /// A peer moves, and says so by calling from elsewhere. So an endpoint that was asked for before is not set again
    /// while there is a session, as far as [`Tunnel::peers`] last saw; without one, it is.
    ///
    /// # Errors
    /// If the key is none, or the tunnel does not answer.
    pub async fn set_peer(&self, peer: &TunnelPeer) -> Result<()> {
        let mut wanted = peer.clone();
        tidy(&mut wanted.allowed);
        let before = self.known().get(&peer.public_key).cloned();
        if before.as_ref().is_some_and(|known| known.is(&wanted)) {
            if let Some(known) = self.known().get_mut(&peer.public_key) {
                known.asked = wanted.endpoint.or(known.asked);
            }
            return Ok(());
        }
        // It is made anew, and where it is must not be lost by that: it may have moved since it was last seen.
        let endpoint = match (wanted.endpoint, &before) {
            (None, Some(_)) => {
                self.read().await?;
                self.known().get(&peer.public_key).and_then(|known| known.endpoint)
            }
            (endpoint, _) => endpoint,
        };
        let known = Known {
            allowed: wanted.allowed.clone(),
            keepalive: wanted.keepalive,
            asked: wanted.endpoint,
            endpoint,
            last_handshake: None,
        };
        self.ask("set a peer of", move |backend, interface| match backend {
            Backend::Userspace => uapi::set_peer(interface, &wanted, endpoint).map_err(Failure::Io),
            Backend::Kernel => kernel::set_peer(interface, &wanted).map_err(Failure::Kernel),
        })
        .await?;
        self.known().insert(peer.public_key.clone(), known);
        Ok(())
    }

    /// Cuts a peer off. That there is none is fine.
    ///
    /// # Errors
    /// If the key is none, or the tunnel does not answer.
    pub async fn remove_peer(&self, public_key: &str) -> Result<()> {
        let key = public_key.to_owned();
        self.ask("remove a peer of", move |backend, interface| match backend {
            Backend::Userspace => uapi::remove_peer(interface, &key).map_err(Failure::Io),
            Backend::Kernel => kernel::remove_peer(interface, &key).map_err(Failure::Kernel),
        })
        .await?;
        self.known().remove(public_key);
        Ok(())
    }

    /// All peers, as they are.
    ///
    /// # Errors
    /// If the tunnel does not answer.
    pub async fn peers(&self) -> Result<Vec<PeerState>> {
        Ok(self.look().await?.1)
    }

    /// Another key of ours. Peers stay, and agree on new sessions as soon as they know it.
    ///
    /// # Errors
    /// If the tunnel does not answer.
    pub async fn set_private_key(&self, key: &PrivateKey) -> Result<()> {
        self.set_device(key, None).await?;
        for known in self.known().values_mut() {
            known.last_handshake = None;
        }
        Ok(())
    }

    /// Whether the interface is there, and what moves its packets.
    pub async fn is_up(&self) -> bool {
        let there = match Links::connect() {
            Ok(links) => links.exists(self.interface()).await.unwrap_or(false),
            Err(_) => false,
        };
        there && (self.backend() == Backend::Kernel || answers(self.interface()))
    }

    /// Removes the interface, whatever moves its packets, and its peers with it. That there is none is fine.
    ///
    /// # Errors
    /// If the name is something else's, or the kernel refuses.
    pub async fn down(interface: &str) -> Result<()> {
        check_name(interface)?;
        let name = interface.to_owned();
        blocking(move || end_helper(&name)).await?;
        Links::connect()?.delete_wireguard(interface).await
    }

    async fn set_device(&self, key: &PrivateKey, port: Option<u16>) -> Result<()> {
        let addresses = match self.backend() {
            Backend::Kernel => Links::connect()?.addresses_of(self.interface()).await?,
            Backend::Userspace => Vec::new(),
        };
        let key = key.clone();
        self.ask("set the key of", move |backend, interface| match backend {
            Backend::Userspace => uapi::set_device(interface, &key, port).map_err(Failure::Io),
            Backend::Kernel => kernel::set_device(interface, &key, port, &addresses).map_err(Failure::Kernel),
        })
        .await
    }

    /// The port that it listens on.
    async fn read(&self) -> Result<u16> {
        Ok(self.look().await?.0)
    }

    async fn look(&self) -> Result<(u16, Vec<PeerState>)> {
        let said = self
            .ask("ask", |backend, interface| match backend {
                Backend::Userspace => uapi::get(interface).map_err(Failure::Io),
                Backend::Kernel => kernel::get(interface).map_err(Failure::Kernel),
            })
            .await?;
        let mut known = self.known();
        let mut before = std::mem::take(&mut *known);
        for (peer, keepalive) in &said.peers {
            let mut now = before.remove(&peer.public_key).unwrap_or_default();
            now.allowed.clone_from(&peer.allowed);
            tidy(&mut now.allowed);
            (now.keepalive, now.endpoint, now.last_handshake) = (*keepalive, peer.endpoint, peer.last_handshake);
            known.insert(peer.public_key.clone(), now);
        }
        Ok((said.listen_port, said.peers.into_iter().map(|(peer, _)| peer).collect()))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `question` where it may wait.
    async fn ask<T: Send + 'static>(
        &self,
        action: &'static str,
        question: impl FnOnce(Backend, &str) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        let inner = self.0.clone();
        blocking(move || {
            question(inner.backend, &inner.interface).map_err(|failure| {
                let interface = inner.interface.clone();
                match failure {
                    Failure::Io(source) => Error::Tunnel { action, interface, source },
                    Failure::Kernel(source) => Error::WireGuard { action, interface, source },
                }
            })
        })
        .await
    }
}

#[derive(Debug)]
enum Failure {
    Io(std::io::Error),
    Kernel(defguard_wireguard_rs::error::WireguardInterfaceError),
}

impl Known {
    fn is(&self, wanted: &TunnelPeer) -> bool {
        let has_session = || {
            let age = self.last_handshake.and_then(|time| time.elapsed().ok());
            age.is_some_and(|age| age < SESSION)
        };
        // Of one that was adopted we do not know what was asked for; while it has a session, it is where it should be.
        let is_there = |endpoint| {
            self.endpoint == Some(endpoint) || (self.asked.is_none_or(|asked| asked == endpoint) && has_session())
        };
        self.allowed == wanted.allowed && self.keepalive == wanted.keepalive && wanted.endpoint.is_none_or(is_there)
    }
}

/// So that equal sets are equal.
fn tidy(prefixes: &mut Vec<IpNet>) {
    for prefix in &mut *prefixes {
        *prefix = prefix.trunc();
    }
    prefixes.sort_unstable();
    prefixes.dedup();
}

/// Starts a helper. There may be one that ends, or that a formnet before us started just now: then it is waited for.
async fn start(program: &Path, interface: &str) -> Result<()> {
    let failed = |message| Error::Helper { interface: interface.to_owned(), message };
    let mut left = PATIENCE;
    loop {
        match helper::start(program, interface).await {
            Ok(()) => return Ok(()),
            Err(helper::Refused::Locked(message)) => {
                left = left.checked_sub(PAUSE).ok_or_else(|| failed(message))?;
            }
            Err(helper::Refused::Failed(message)) => return Err(failed(message)),
        }
        tokio::time::sleep(PAUSE).await;
        if answers(interface) {
            return Ok(());
        }
    }
}

/// Whether a WireGuard interface of the kernel's has no key yet.
async fn is_bare(interface: &str) -> bool {
    let name = interface.to_owned();
    blocking(move || Ok(kernel::is_bare(&name).unwrap_or(false))).await.unwrap_or(false)
}

fn answers(interface: &str) -> bool {
    uapi::connect(interface).is_ok()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::System { action: "wait for a thread", source: std::io::Error::other(error) })?
}

/// Ends the helper of `interface`, if there is one, and waits until it is gone: its interface goes with it.
fn end_helper(interface: &str) -> Result<()> {
    let failed = |source: rustix::io::Errno| Error::Tunnel {
        action: "end the tunnel of",
        interface: interface.to_owned(),
        source: source.into(),
    };
    let path = uapi::path(interface, "sock");
    if let Ok(socket) = uapi::connect(interface) {
        let process = rustix::net::sockopt::socket_peercred(&socket).map_err(failed)?.pid;
        let process = pidfd_open(process, PidfdFlags::empty()).map_err(failed)?;
        for signal in [Signal::TERM, Signal::KILL] {
            match pidfd_send_signal(&process, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(failed(error)),
            }
            let patience = Timespec { tv_sec: 3, tv_nsec: 0 };
            if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).map_err(failed)? > 0 {
                break;
            }
        }
    }
    // One that was killed leaves its socket.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file("delete", &path)(error)),
        _ => Ok(()),
    }
}
