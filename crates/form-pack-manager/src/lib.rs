//! Builds packages: a Formfile and a build context in, an OCI image and a root disk out.
//!
//! ```text
//! Formfile ------> formfile --+
//!                             +--> tree --+--> layer  --> OCI layer, configuration, manifest --+
//! tar stream ----> context ---+           +--> rootfs --> ext4 image, zstd --------------------+--> store
//! ```
//!
//! The store is an OCI registry too: `registry` is the way in and out of it for everybody's tools.
//!
//! [`builder::build`] is the way through all of it. The same input gives the same bytes, hence the same digests.
//! All of that blocks; [`run`], the service around it, calls it from threads that may.

mod api;
pub mod builder;
mod builds;
mod config;
pub mod context;
pub mod formfile;
pub mod layer;
mod registry;
pub mod rootfs;
mod service;
pub mod store;
mod stream;
pub mod tree;

pub use config::Config;
pub use service::{RunError, run};

#[cfg(test)]
mod testing;
