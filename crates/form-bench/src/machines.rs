//! Machines beside a bare QEMU: the very same command line, run again without us.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::Row;
use crate::cloud::{Cloud, until};

const ROUNDS: usize = 5;

/// How long from the wish to a monitor that answers, and to a page.
#[derive(Clone, Copy)]
struct Times {
    monitor: f64,
    page: f64,
}

pub(crate) async fn compare(cloud: &Cloud, guest: &Path) -> Result<Vec<Row>> {
    let hello = guest.join("examples/hello").display().to_string();
    cloud.form(&["run", &hello, "--name", "bench"]).await?;
    let dir = only_dir(&cloud.data.join("machines/instances"))?;
    let shown = cloud.form(&["get", "instance", "bench", "-o", "yaml"]).await?;
    let address = shown.lines().find_map(|line| line.trim().strip_prefix("- ")?.parse::<IpAddr>().ok());
    let page = SocketAddr::new(address.context("the instance has no address")?, 8080);
    let line = command_line(&dir)?;
    cloud.form(&["instance", "stop", "bench"]).await?;

    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(through_us(cloud, &dir, page).await?);
        bare.push(without_us(&line, &dir, page).await?);
    }
    cloud.form(&["instance", "delete", "bench"]).await?;

    let median = |times: &[Times], of: fn(&Times) -> f64| crate::quantile(times.iter().map(of).collect(), 0.5);
    let row = |what, of: fn(&Times) -> f64, more: bool| {
        let (ours, bare) = (median(&ours, of), median(&bare, of));
        let ratio = if more { format!("{:+.0} ms", (ours - bare) * 1e3) } else { format!("{:.2}", ours / bare) };
        Row { what, ours: format!("{ours:.3} s"), peer: format!("{bare:.3} s"), ratio }
    };
    Ok(vec![
        row(
            "form instance start to a VMM that answers (bare: the same QEMU command line)",
            |times| times.monitor,
            true,
        ),
        row("form instance start to an HTTP answer (bare: the same guest)", |times| times.page, false),
    ])
}

async fn through_us(cloud: &Cloud, dir: &Path, page: SocketAddr) -> Result<Times> {
    let start = Instant::now();
    let wish = cloud.form(&["instance", "start", "bench", "--no-wait"]);
    let monitor = monitor(dir);
    let (wish, monitor) = tokio::join!(wish, async { monitor.await.map(|()| start.elapsed()) });
    wish?;
    let times = Times { monitor: monitor?.as_secs_f64(), page: answers(page, start).await? };
    cloud.form(&["instance", "stop", "bench"]).await?;
    Ok(times)
}

async fn without_us(line: &[String], dir: &Path, page: SocketAddr) -> Result<Times> {
    let _ = std::fs::remove_file(dir.join("qmp.sock"));
    let start = Instant::now();
    let (program, arguments) = line.split_first().context("an empty command line")?;
    let quiet = || Stdio::null();
    let process = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .stdin(quiet())
        .stdout(quiet())
        .stderr(quiet())
        .spawn()?;
    let mut process = Killed(process);
    monitor(dir).await?;
    let monitor = start.elapsed().as_secs_f64();
    let times = Times { monitor, page: answers(page, start).await? };
    process.0.kill()?;
    process.0.wait()?;
    Ok(times)
}

/// A process that does not outlive a failure of ours.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn monitor(dir: &Path) -> Result<()> {
    // By way of a descriptor: a socket's address has room for 108 bytes, and a path may have more.
    let dir = std::fs::File::open(dir)?;
    let socket = format!("/proc/self/fd/{}/qmp.sock", dir.as_raw_fd());
    until("QEMU's monitor answers", || Ok(UnixStream::connect(&socket).ok().map(drop))).await
}

/// Asks until there is a page; seconds since `start`.
async fn answers(page: SocketAddr, start: Instant) -> Result<f64> {
    let ask = move || -> Option<()> {
        let mut stream = TcpStream::connect_timeout(&page, Duration::from_millis(20)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.contains("200 OK").then_some(())
    };
    until("the guest gives its page", || Ok(ask())).await?;
    Ok(start.elapsed().as_secs_f64())
}

fn only_dir(parent: &Path) -> Result<PathBuf> {
    let mut dirs = std::fs::read_dir(parent)?.flatten().map(|entry| entry.path());
    dirs.next().ok_or_else(|| anyhow!("{} is empty", parent.display()))
}

/// The command line of the QEMU that works in `dir`.
fn command_line(dir: &Path) -> Result<Vec<String>> {
    for process in std::fs::read_dir("/proc")?.flatten() {
        if std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == dir) {
            let line = std::fs::read(process.path().join("cmdline"))?;
            let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
            return Ok(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect());
        }
    }
    Err(anyhow!("no QEMU works in {}", dir.display()))
}
