//! The network of one node: the encrypted mesh, the networks of instances, who may reach whom.
//!
//! ```text
//!   form-state ──watch──▶ service: Nodes, Instances, Peers ──shares──▶ plane ──┬──▶ tunnel   WireGuard
//!                            │                                                 ├──▶ links    bridges, taps, routes
//!                            └──▶ known: on disk, for a start alone            └──▶ rules    nftables
//! ```
//!
//! What is in the kernel outlives this process, and so does the tunnel, which is a process of its own where the kernel has
//! no WireGuard. So formnet may be killed and started again, and no packet is lost.
#![forbid(unsafe_code)]

mod address;
mod changes;
mod config;
mod down;
mod error;
mod forwarding;
mod keys;
mod known;
pub mod links;
mod mtu;
mod plane;
pub mod rules;
mod service;
pub mod tunnel;
pub mod view;

pub use address::gateways;
pub use config::{Config, check_interface};
pub use down::down;
pub use error::{Error, Result};
pub use service::{RunError, run};
pub use tunnel::entry;
