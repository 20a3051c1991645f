//! What a node's formnet tells of the mesh, as JSON: written here, read by `form net`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// `GET /v1/mesh`: one node's end of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeshView {
    pub node: String,
    pub interface: String,
    /// `kernel` or `userspace`.
    pub backend: String,
    /// Bytes.
    pub mtu: u32,
    /// How often something that others had changed was put right since it started.
    pub repairs: u64,
    /// What is in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    pub peers: Vec<PeerView>,
}

/// A node or a laptop, as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// `Node` or `Peer`.
    pub kind: String,
    /// Of a Peer: `PROJECT/NAME`.
    pub name: String,
    pub public_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_age_seconds: Option<u64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// Of the last probe that was answered, milliseconds; of nodes alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// The part of the last ten probes that was lost, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    pub is_up: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// `GET /v1/mesh/objects`: one thing in the kernel that formnet made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectView {
    /// `bridge`, `tap`, `wireguard`, `route` or `table`.
    pub kind: String,
    pub name: String,
    pub owner: String,
}

/// `POST /v1/mesh/ping?node=NAME`: probes through the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PingView {
    pub from: String,
    pub to: String,
    pub address: IpAddr,
    /// Of a packet with its headers, bytes.
    pub size: usize,
    /// Milliseconds each; `None`: lost.
    pub times_ms: Vec<Option<f64>>,
}

/// `GET /v1/mesh/trace?from=ADDRESS&to=ADDRESS`: one step of a packet's way, as far as this node can tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// What was looked at.
    pub what: String,
    pub is_fine: bool,
    /// What was found.
    pub found: String,
}
