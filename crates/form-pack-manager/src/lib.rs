//! Builds packages: a Formfile and a build context in, an OCI image and a root disk out.
//!
//! ```text
//! tar stream --> context --+                +--> layer  --> OCI layers, configuration, manifest --+
//! image -------> layers ---+--> tree, step -+                                                     +--> store
//! RUN ---------> sandbox --+    after step  +--> rootfs --> ext4 image, zstd ---------------------+
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
pub mod image;
pub mod layer;
mod logs;
mod registry;
pub mod rootfs;
mod secrets;
mod service;
pub mod store;
mod stream;
pub mod tree;
mod users;
pub mod workshop;

pub use config::Config;
pub use service::{RunError, run};

#[cfg(test)]
mod testing;
