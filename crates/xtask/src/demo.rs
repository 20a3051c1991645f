//! `cargo xtask demo`: the whole story, on this machine, in a network namespace of its own.
//!
//! What it shows is asked with a stranger's tools: `dig` for the name, `curl` for the page, which finds the name by
//! itself because the namespace's resolver is our form-dns.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::guest;
use crate::host::{self, output, run, say};

const SOCKETS: &str = "/run/wireguard";
const NAME: &str = "hello.default.formation.internal";
/// The patience with a cloud that starts; it takes a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn demo() -> Result<()> {
    let mut clock = Clock::default();
    let wanted: Vec<(&str, &str)> =
        host::VIRTUAL_MACHINES.iter().chain(&host::NETWORKS).chain(&host::TOOLS).copied().collect();
    host::ensure_packages(&wanted)?;
    clock.lap("packages of this machine");
    let image = guest::default_out();
    guest::build(&image)?;
    let image = image.canonicalize()?;
    clock.lap("guest kernel, initramfs, examples/hello");
    if !host::cargo().args(["build", "--quiet", "--workspace"]).status()?.success() {
        bail!("cargo build failed");
    }
    let form = host::target_directory().canonicalize()?.join("debug/form");
    clock.lap("form, the command");

    let data = tempfile::tempdir().context("a data directory")?;
    enter_namespace(data.path())?;
    let mut cloud = Cloud::up(&form, &image, data.path())?;
    clock.lap("form up: the cloud is ready");

    say(cloud.form(&["run", "examples/hello", "--name", "hello"])?.trim());
    clock.lap("form run examples/hello: built, placed, booted");

    let address = output("dig", &["+short", NAME, "A"])?;
    if address.trim().is_empty() {
        bail!("dig found no address for {NAME}");
    }
    say(format_args!("$ dig +short {NAME}\n{}", address.trim()));
    clock.lap("dig: the name answers");

    let page = format!("http://{NAME}:8080/");
    let greeting = output("curl", &["--silent", "--show-error", "--fail", "--max-time", "10", &page])?;
    say(format_args!("$ curl {page}\n{}", greeting.trim()));
    clock.lap("curl: the page, by that name");

    say(cloud.form(&["get", "instances", "-o", "wide"])?.trim());
    cloud.form(&["instance", "delete", "hello"])?;
    clock.lap("form instance delete");
    cloud.down()?;
    clock.lap("form down");
    clock.print();
    Ok(())
}

/// From here on, this process and its children have a network of their own, and ask our name server.
pub(crate) fn enter_namespace(scratch: &Path) -> Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if !uid.is_root() {
        // A user namespace in which we are root gives the right to make interfaces in our own network, and nowhere else.
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).context("cannot make a network namespace; run this as root, or allow user namespaces")?;
    if !uid.is_root() {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make the mounts private")?;
    let resolver = scratch.join("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\n")?;
    let target = fs::canonicalize("/etc/resolv.conf").unwrap_or_else(|_| PathBuf::from("/etc/resolv.conf"));
    mount(Some(&resolver), &target, none, MsFlags::MS_BIND, none).context("cannot point the resolver at form-dns")?;
    // The embedded WireGuard is spoken to by files, which no network namespace hides.
    fs::create_dir_all(SOCKETS).with_context(|| format!("cannot make {SOCKETS}; run this as root"))?;
    mount(Some("none"), SOCKETS, Some("tmpfs"), MsFlags::empty(), none)
        .with_context(|| format!("cannot make {SOCKETS} private"))?;
    run("ip", &["link", "set", "lo", "up"])
}

/// A cloud that is up; killed if the demo fails in its middle.
struct Cloud {
    form: PathBuf,
    data: PathBuf,
    process: Child,
}

impl Cloud {
    fn up(form: &Path, image: &Path, data: &Path) -> Result<Self> {
        let log = fs::File::create(data.join("form.log"))?;
        let process = Command::new(form)
            .args(["up", "--data-dir"])
            .arg(data)
            .arg("--guest-dir")
            .arg(image)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot run form up")?;
        let mut cloud = Self { form: form.to_owned(), data: data.to_owned(), process };
        let context = data.join("context.toml");
        let start = Instant::now();
        while !context.exists() {
            if let Some(status) = cloud.process.try_wait()? {
                bail!("form up ended ({status}):\n{}", cloud.log());
            }
            if start.elapsed() > PATIENCE {
                bail!("form up was not ready after {} s:\n{}", PATIENCE.as_secs(), cloud.log());
            }
            pause();
        }
        Ok(cloud)
    }

    fn form(&self, arguments: &[&str]) -> Result<String> {
        let done = Command::new(&self.form)
            .args(arguments)
            .env("FORM_CONTEXT", self.data.join("context.toml"))
            .stdin(Stdio::null())
            .output()
            .context("cannot run form")?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            bail!("form {} failed ({}): {}\n{}", arguments.join(" "), done.status, said.trim(), self.log());
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    fn down(&mut self) -> Result<()> {
        let data = self.data.display().to_string();
        say(self.form(&["down", "--data-dir", &data])?.trim());
        let status = self.process.wait()?;
        if !status.success() {
            bail!("form up ended with {status}:\n{}", self.log());
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.data.join("form.log")).unwrap_or_default()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // After an orderly end there is nothing left to kill.
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A short wait between two looks at a condition.
#[allow(clippy::disallowed_methods, reason = "a file is waited for, and a build tool needs no runtime to do that")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// What took how long.
struct Clock {
    last: Instant,
    laps: Vec<(&'static str, Duration)>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }
}

impl Clock {
    fn lap(&mut self, what: &'static str) {
        let now = Instant::now();
        self.laps.push((what, now - self.last));
        self.last = now;
    }

    fn print(&self) {
        say("");
        for (what, took) in &self.laps {
            say(format_args!("{:>8.2} s  {what}", took.as_secs_f64()));
        }
    }
}
