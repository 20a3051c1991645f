//! Names for the cluster: authoritative for its zones, answered out of memory.
//!
//! ```text
//! controller --upsert, remove--> zone::Zones --snapshot--> handler::Handler <--bytes-- server::Server <--UDP, TCP-- clients
//! ```
//!
//! [`Zones`] is what is known: each resource of the cluster owns its records, a change replaces them in one step, and
//! who looks something up meanwhile sees all of it or nothing. [`Handler`] turns one message into its answer and
//! nothing else. [`Server`] holds the sockets and their limits. [`run`] is the service around them: its controllers follow
//! the cluster's instances, zones and records.

mod config;
pub mod handler;
mod names;
pub mod server;
mod service;
pub mod zone;

pub use config::Config;
pub use handler::Handler;
pub use server::{Server, ServerConfig, ServerError};
pub use service::{RunError, run};
pub use zone::{Answer, ZoneConfig, ZoneError, Zones};

/// The types of names and records that the interface speaks, so that callers need not name the same version.
pub use hickory_proto::rr;

#[cfg(test)]
mod testing;
