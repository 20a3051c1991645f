//! From the kernel to the workload.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use form_guest::{CONFIG_SERIAL, GuestConfig, MAX_DRIVE, REPORT_PORT, ROOT_SERIAL, Report};
use nix::sys::reboot::set_cad_enabled;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::button::Button;
use crate::devices::{Uevents, disk, port};
use crate::health::Health;
use crate::launch::{self, Plan};
use crate::report::Reporter;
use crate::{console, etc, modules, mounts, network, power, program, supervise, users};

/// How long a disk may take to appear.
const DISK_LIMIT: Duration = Duration::from_secs(10);
/// How long the report port may take. A host without one is only missed, never needed.
const PORT_LIMIT: Duration = Duration::from_secs(3);

/// Runs the guest from its first to its last instruction.
pub(crate) fn run() -> ! {
    let mut reporter = Reporter::default();
    let mut signals = None;
    let report = match life(&mut reporter, &mut signals) {
        Ok(exit) => exit,
        Err(error) => Report::Failed { reason: format!("{error:#}") },
    };
    reporter.tell(&report);
    power::off(signals.as_ref())
}

/// Returns how the workload ended; an error is why it never began.
fn life(reporter: &mut Reporter, signals: &mut Option<SignalFd>) -> anyhow::Result<Report> {
    let signals = signals.insert(take_signals().context("cannot take signals")?);
    mounts::kernel()?;
    if let Ok(terminal) = File::open(console::terminal()) {
        let _ = console::pass_through(&terminal);
    }
    let uevents = Uevents::listen().context("cannot listen for devices")?;
    modules::load();
    let sys = Path::new("/sys");
    if let Ok(Some(port)) = uevents.wait(PORT_LIMIT, || port(sys, REPORT_PORT)) {
        *reporter = Reporter::open(&port);
    }
    reporter.tell(&Report::Booting);
    // Opened before anything takes time, so that no press is missed.
    let mut buttons = Button::all(sys);

    let config = read_config(&find_disk(&uevents, CONFIG_SERIAL)?)?;
    let root = find_disk(&uevents, ROOT_SERIAL)?;
    let read_only = is_read_only(&root);
    mounts::switch_root(&root, read_only)?;
    if !read_only {
        mounts::grow(&root);
    }
    mounts::rest();
    nix::unistd::sethostname(&config.hostname).context("cannot set the hostname")?;
    etc::write(&config);
    network::configure(&uevents, &config.interfaces)?;

    let plan = plan(&config)?;
    for volume in &config.volumes {
        make_volume(Path::new(volume), &plan)?;
    }
    let pid = launch::start(&plan)?;
    reporter.tell(&Report::Started { pid });
    let pid = Pid::from_raw(i32::try_from(pid).context("the kernel gave an impossible process id")?);
    let grace = Duration::from_secs(config.grace_seconds.into());
    let stop = Signal::try_from(config.stop_signal).unwrap_or(Signal::SIGTERM);
    let health = config.health.map(|rules| {
        let check = executed(&rules.command, &plan);
        Health::new(rules, check, Instant::now())
    });
    Ok(supervise::supervise(pid, (grace, stop), health, signals, &mut buttons, reporter)?)
}

/// Makes the directory of a volume, the user's own; one that is there is left as it is.
fn make_volume(path: &Path, plan: &Plan) -> anyhow::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    mounts::directory(path, 0o755)
        .and_then(|()| std::os::unix::fs::chown(path, Some(plan.uid), Some(plan.gid)))
        .with_context(|| format!("cannot make the volume {}", path.display()))
}

/// What a health check executes. Where its program is missing now, it is looked for again when it is to run: by exec.
fn executed(command: &[String], workload: &Plan) -> Plan {
    let first = command.first().map_or("", String::as_str);
    let path = workload.env.get("PATH").map_or("", String::as_str);
    let workdir = workload.workdir.to_string_lossy();
    let program = program::find(Path::new("/"), first, path, &workdir).unwrap_or_else(|_| first.into());
    Plan { program, arguments: command.to_vec(), heard: true, ..workload.clone() }
}

/// From here on the signals of process 1 arrive as bytes to read, not as interruptions.
fn take_signals() -> nix::Result<SignalFd> {
    // Ctrl-Alt-Del on a console asks politely (SIGINT) instead of resetting the machine.
    let _ = set_cad_enabled(false);
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn find_disk(uevents: &Uevents, serial: &str) -> anyhow::Result<PathBuf> {
    uevents
        .wait(DISK_LIMIT, || disk(Path::new("/sys"), serial))
        .context("cannot look for disks")?
        .ok_or_else(|| anyhow!("there is no disk with the serial {serial}; the host has to attach it"))
}

fn is_read_only(disk: &Path) -> bool {
    let name = disk.file_name().unwrap_or_default();
    fs::read_to_string(Path::new("/sys/block").join(name).join("ro")).is_ok_and(|ro| ro.trim() == "1")
}

fn read_config(drive: &Path) -> anyhow::Result<GuestConfig> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_DRIVE)? + 1;
    File::open(drive)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read the config drive {}", drive.display()))?;
    Ok(form_guest::decode(&bytes)?)
}

/// What the config and the image together say is to be executed.
fn plan(config: &GuestConfig) -> anyhow::Result<Plan> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let identity = users::resolve(&config.user, &read("/etc/passwd"), &read("/etc/group"))?;
    let mut env = config.env.clone();
    env.entry("PATH".into()).or_insert_with(|| program::DEFAULT_PATH.into());
    env.entry("HOME".into()).or_insert_with(|| identity.home.clone().unwrap_or_else(|| "/".into()));
    env.entry("HOSTNAME".into()).or_insert_with(|| config.hostname.clone());
    let workdir = if config.workdir.is_empty() { "/" } else { &config.workdir };
    let first = config.entrypoint.first().map_or("", String::as_str);
    let path = env.get("PATH").map_or("", String::as_str);
    let program = program::find(Path::new("/"), first, path, workdir)?;
    Ok(Plan {
        program,
        arguments: config.entrypoint.clone(),
        env,
        workdir: workdir.into(),
        uid: identity.uid,
        gid: identity.gid,
        groups: identity.groups,
        terminal: console::terminal(),
        heard: false,
    })
}
