//! Namespaces, and what is typed in them.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, anyhow, ensure};
use formnet::links::Links;
use formnet::tunnel::{PrivateKey, Tunnel, TunnelPeer};
use nix::sched::{CloneFlags, setns};

/// Two namespaces, a and b, and a wire.
pub(super) fn wire() -> Result<()> {
    sh("ip netns add a; ip netns add b
        ip link add ua netns a type veth peer name ub netns b
        ip -n a addr add 10.9.0.1/24 dev ua; ip -n b addr add 10.9.0.2/24 dev ub
        ip -n a link set ua up; ip -n b link set ub up; ip -n a link set lo up; ip -n b link set lo up")
    .map(drop)
}

/// Runs lines of a shell, up to the first that fails.
pub(super) fn sh(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Starts a program that runs until it is told to end.
pub(super) fn start(line: &[&str]) -> Result<Child> {
    let (program, arguments) = line.split_first().context("an empty command line")?;
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| (*program).to_owned())
}

/// Runs `work` in the namespace `name`, on a thread and a runtime of its own.
pub(super) fn within<T: Send, F: Future<Output = Result<T>>>(name: &str, work: impl FnOnce() -> F + Send) -> Result<T> {
    let run = || {
        setns(File::open(format!("/run/netns/{name}"))?, CloneFlags::CLONE_NEWNET)?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async { work().await })
    };
    std::thread::scope(|scope| scope.spawn(run).join()).map_err(|_| anyhow!("a thread panicked"))?
}

/// One end of our tunnel: `wgN` with 10.77.0.N in the namespace `name`, and its peer.
pub(super) async fn end(number: u8, key: &PrivateKey, other: &PrivateKey) -> Result<Tunnel> {
    let interface = format!("wg{number}");
    let tunnel = Tunnel::up(&interface, key, port(number)).await?;
    let links = Links::connect()?;
    let address: ipnet::IpNet = format!("10.77.0.{number}/32").parse()?;
    links.ensure_link(&interface, &[address], 1420).await?;
    links.ensure_route("10.77.0.0/24".parse()?, &interface, Some(address.addr())).await?;
    let there = 3 - number;
    tunnel
        .set_peer(&TunnelPeer {
            public_key: other.public(),
            endpoint: Some(format!("10.9.0.{there}:{}", port(there)).parse()?),
            allowed: vec![format!("10.77.0.{there}/32").parse()?],
            keepalive: None,
        })
        .await?;
    Ok(tunnel)
}

fn port(number: u8) -> u16 {
    5000 + u16::from(number)
}
