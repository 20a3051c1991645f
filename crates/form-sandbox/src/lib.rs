//! Runs one step of a build where it can reach nothing of the host.
//!
//! ```text
//!   builder ──spawn──▶ outer: new user, mount, pid, net, ipc, uts, cgroup namespaces; waits for its ids
//!      │ writes the map of ids    │
//!      └───────"go on"───────────▶├──spawn──▶ inner: process 1. Mounts the overlay, /proc, /dev; pivots; gives up what
//!                                 │             it may; seccomp ──spawn──▶ the command
//!   killed or gone: outer dies ───┴──▶ inner dies ──▶ the pid namespace and all in it die
//! ```
//!
//! Both are this same program, run again ([`entry`]): namespaces are entered by one thread, and a service has many. What
//! is to be done comes through a socket, so that no secret is ever an argument or in an environment. Only the sandbox has
//! the ids that its files have, so what packs, unpacks and removes those files runs in the user namespace, too.
#![forbid(unsafe_code)]

mod archive;
mod files;
mod host;
mod ids;
mod inner;
mod job;
mod outer;
mod seccomp;
mod wire;

pub use host::{Error, Outcome, Sandbox, Stop};
pub use ids::{Ids, IdsError};
pub use job::{Limits, Mount, Network, Run};
pub use outer::entry;
