//! The resource store and what makes it the cloud's: the API, who may do what, the scheduler.
//!
//! ```text
//!   REST ─┐                                   ┌─ store::SqliteStore
//!         ├─▶ Registry: rules, claims, tokens ─┤
//!   gRPC ─┘        ▲            ▲              └─ (an engine for more than one machine)
//!             scheduler     janitor
//! ```
#![forbid(unsafe_code)]

mod api;
mod auth;
pub mod cluster;
mod config;
mod error;
mod expiry;
mod janitor;
mod keys;
mod registry;
mod scheduler;
mod service;
pub mod store;
mod tokens;

pub use api::openapi::{document as openapi, yaml as openapi_yaml};
pub use auth::{Identity, Role};
pub use cluster::Cluster;
pub use config::{Config, IPV4_RANGE};
pub use error::Error;
pub use registry::{JoinError, Registry};
pub use service::{RunError, run};
