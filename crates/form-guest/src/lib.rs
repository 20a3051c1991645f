//! What the host tells a guest, and what the guest tells back.
//!
//! The host writes a [`GuestConfig`] to a *config drive*: a read-only virtio-blk disk with the serial
//! [`CONFIG_SERIAL`]. The guest writes [`Report`]s, one JSON object a line, to the virtio-serial port
//! [`REPORT_PORT`]. Both directions are bounded, and a guest is never trusted: see [`ReportDecoder`].
//!
//! This crate does no I/O.
#![forbid(unsafe_code)]

mod config;
mod drive;
mod mac;
mod report;

pub use config::{Gateways, GuestConfig, HealthCheck, Interface, InvalidConfig, VERSION};
pub use drive::{DriveError, MAX_DRIVE, SECTOR, decode, encode};
pub use mac::{InvalidMac, MacAddr};
pub use report::{MAX_LINE, MAX_REASON, Report, ReportDecoder, ReportError};

/// The virtio-blk serial of the root disk.
pub const ROOT_SERIAL: &str = "form-root";
/// The virtio-blk serial of the config drive.
pub const CONFIG_SERIAL: &str = "form-config";
/// The name of the virtio-serial port that carries [`Report`]s.
pub const REPORT_PORT: &str = "org.formation.report.0";
