//! What every service of Formation shares, so that each one's `main.rs` is some twenty lines.
//!
//! - [`config`]: defaults, file, environment, flags; `--check-config`; reload
//! - [`mod@file`]: files that are there whole, or not at all
//! - [`identity`]: the cluster CA, and who the other end of a connection is
//! - [`listener`]: REST and gRPC on one TLS port, with limits, health and metrics
//! - [`health`]: what a service still waits for
//! - [`probe`]: a service asked whether it is ready, by its own program
//! - [`problem`]: errors for the outside (RFC 9457)
//! - [`run`]: from `main` to an orderly stop
//! - [`together`]: what spares HTTP/2 over TLS most of its calls to the kernel
#![forbid(unsafe_code)]

pub mod config;
pub mod file;
pub mod health;
pub mod identity;
pub mod listener;
pub mod logs;
pub mod probe;
pub mod problem;
pub mod run;
pub mod secret;
pub mod together;

pub use config::{Config, Live};
pub use health::Health;
pub use identity::{Authority, Identity, Peer};
pub use problem::Problem;
pub use run::{Context, main};
pub use tokio_util::sync::CancellationToken;

/// A quarter of a write's time went into glibc's allocator: threads hand each other what another has allocated.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
