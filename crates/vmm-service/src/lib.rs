//! The virtual machines of one node.
//!
//! ```text
//!   Vm (a handle) ──commands──▶ one task for each machine ──▶ Driver ──▶ QEMU, a process that outlives us
//!                 ◀──status────        │
//!                                      └──▶ Store: what must survive, in the machine's own directory
//! ```
//!
//! **Invariant:** this process may be killed at any instant. What is wanted is on disk before it is acknowledged, and
//! [`Vm::open`] finds out what is, adopts a machine that still runs, and goes on from there.
//!
//! **Invariant:** a guest is hostile. What it writes to its console or its report port costs bounded disk and memory.
//!
//! **Invariant:** so is a QEMU that a guest took over. It has a user of its own, no capability, and no file but those
//! that were opened for it: there is none that it could open by name and its neighbour could not.

pub mod accel;
mod atomic;
mod config;
pub mod disk;
pub mod driver;
mod error;
mod host;
pub mod logs;
mod reports;
mod restart;
mod rotate;
mod service;
pub mod store;
mod sys;
pub mod users;
mod vm;
mod watch;

pub use accel::Accelerator;
pub use config::{Config, MACHINE_UIDS, check_machine_uids};
pub use error::{Error, Result};
pub use host::{Host, open_all};
pub use restart::RestartPolicy;
pub use service::{RunError, run, stop_all};
pub use store::{Exit, Nic, Port, VmSpec};
pub use vm::{Health, Phase, Vm, VmStatus};
