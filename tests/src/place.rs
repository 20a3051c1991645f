//! Where a cloud runs: a machine, as far as the network goes.
//!
//! ```text
//!   the story's namespace:   bridge lan ──── veth ──── eth0 192.0.2.1   machine 1: a network namespace and a
//!                                │                                       mount namespace, held by one process
//!                                └─────────── veth ──── eth0 192.0.2.2   machine 2
//! ```

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

/// The story's own namespace, or a machine within it.
pub(crate) struct Place(Option<Machine>);

struct Machine {
    address: Ipv4Addr,
    /// Its namespaces last as long as this process.
    holder: Child,
}

const BRIDGE: &str = "lan";

impl Place {
    pub(crate) fn here() -> Self {
        Self(None)
    }

    /// The machines that a story has, in one Ethernet.
    pub(crate) fn machines(count: u8) -> Vec<Self> {
        ip(&format!("link add {BRIDGE} type bridge"));
        ip(&format!("link set {BRIDGE} up"));
        (1..=count).map(Self::machine).collect()
    }

    fn machine(number: u8) -> Self {
        // The embedded WireGuard is spoken to by files that have the interface's name, and each machine has one of that.
        let prepare = "mount -t tmpfs none /run/wireguard && ip link set lo up && echo ready && exec sleep infinity";
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--kill-child", "--fork", "sh", "-c", prepare])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().expect("its output")).read_line(&mut ready).expect("a machine");
        assert_eq!(ready, "ready\n");
        let address = Ipv4Addr::new(192, 0, 2, number);
        let place = Self(Some(Machine { address, holder }));
        let pid = place.pid();
        ip(&format!("link add lan{number} type veth peer name eth0 netns {pid}"));
        ip(&format!("link set lan{number} master {BRIDGE} up"));
        for words in [format!("address add {address}/24 dev eth0"), "link set eth0 up".to_owned()] {
            let done = place.command("ip").args(words.split(' ')).status().expect("ip");
            assert!(done.success(), "ip {words}");
        }
        place
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.0.as_ref().map_or(Ipv4Addr::LOCALHOST, |machine| machine.address)
    }

    /// A program on it.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        if self.0.is_none() {
            return Command::new(program);
        }
        let mut command = Command::new("nsenter");
        let pid = self.pid().to_string();
        command.args(["--target", &pid, "--net", "--mount", "--wdns=/", "--"]).arg(program);
        command
    }

    /// The process that holds the namespaces: the shell that `unshare` has forked.
    fn pid(&self) -> u32 {
        let holder = self.0.as_ref().expect("a machine").holder.id();
        let children = std::fs::read_to_string(format!("/proc/{holder}/task/{holder}/children")).expect("its child");
        children.trim().parse().expect("a process id")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(machine) = &mut self.0 {
            let _ = machine.holder.kill();
            let _ = machine.holder.wait();
        }
    }
}

#[track_caller]
fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().expect("ip");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}
