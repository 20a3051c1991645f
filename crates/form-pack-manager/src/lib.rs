//! Builds packages: a Formfile and a build context in, an OCI image and a root disk out.
//!
//! ```text
//! Formfile ------> formfile --+
//!                             +--> tree --+--> layer  --> OCI layer, configuration, manifest --+
//! tar stream ----> context ---+           +--> rootfs --> ext4 image, zstd --------------------+--> store
//! ```
//!
//! [`builder::build`] is the way through all of it. The same input gives the same bytes, hence the same digests.
//! Everything here blocks; the service calls it from threads that may.

pub mod builder;
pub mod context;
pub mod formfile;
pub mod layer;
pub mod rootfs;
pub mod store;
pub mod tree;

#[cfg(test)]
mod testing;
