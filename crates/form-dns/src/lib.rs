//! Names for the cluster: authoritative for its zones, answered out of memory.
//!
//! ```text
//! controller --upsert, remove--> zone::Zones --snapshot--> handler::Handler <--bytes-- server::Server <--UDP, TCP-- clients
//! ```
//!
//! [`Zones`] is what is known: each resource of the cluster owns its records, a change replaces them in one step, and
//! who looks something up meanwhile sees all of it or nothing. [`Handler`] turns one message into its answer and
//! nothing else. [`Server`] holds the sockets and their limits.

pub mod handler;
pub mod server;
pub mod zone;

pub use handler::Handler;
pub use server::{Server, ServerConfig, ServerError};
pub use zone::{Answer, ZoneConfig, ZoneError, Zones};

/// The types of names and records that the interface speaks, so that callers need not name the same version.
pub use hickory_proto::rr;

#[cfg(test)]
mod testing;
