//! The network of one node: the encrypted mesh, the networks of instances, who may reach whom.
#![forbid(unsafe_code)]

mod changes;
mod error;
pub mod links;
pub mod rules;
pub mod tunnel;

pub use error::{Error, Result};
