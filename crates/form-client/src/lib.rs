//! The client of form-state: typed verbs, and [`reconcile`], the loop that every controller is.
#![forbid(unsafe_code)]

mod client;
mod error;
mod join;
pub mod reconcile;

pub use client::{Access, Caller, Client, Endpoint, Listed, NodeLease, Update, address_of};
pub use error::Error;
pub use join::join;
pub use reconcile::{Action, Controller, Name};
