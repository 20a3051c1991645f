//! What the cloud is made of: its resources, as Rust types, as JSON, and as rules for what is valid.
//!
//! All of it comes from `proto/formation/v1/*.proto`. The Rust types and the gRPC stubs ([`v1`]) are generated from there;
//! JSON, validation, the OpenAPI schemas and the texts of `form explain` are read from the same files' descriptors at run
//! time, so that they cannot drift. This crate does no I/O.
#![forbid(unsafe_code)]

mod descriptor;
mod format;
mod invalid;
mod json;
mod kind;
mod labels;
mod object;
mod schema;
mod validate;

/// Generated from `proto/formation/v1`.
#[allow(clippy::all, missing_docs, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("formation.v1");
}

pub use descriptor::encoded_descriptors;
pub use invalid::{Invalid, Violation};
pub use json::{from_json, same_spec, same_status, to_json};
pub use kind::{KINDS, Kind, KindInfo, Scope, kinds};
pub use labels::{Selector, SelectorError};
pub use object::{Meta, Object, ObjectError, event};
pub use prost_types::Timestamp;
pub use schema::{FieldDoc, explain, schemas};
pub use validate::validate;

/// The moment `span` from now, in whole seconds: an end that people read.
pub fn from_now(span: std::time::Duration) -> Timestamp {
    Timestamp { nanos: 0, ..timestamp(std::time::SystemTime::now() + span) }
}

/// The moment as the wire has it, UTC.
pub fn timestamp(at: std::time::SystemTime) -> Timestamp {
    Timestamp::from(at)
}
