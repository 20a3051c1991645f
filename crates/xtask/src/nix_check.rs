//! `cargo xtask nix-check`: the flake, as far as this machine can.
//!
//! Anywhere, every `.nix` file is parsed, the lock is looked at, and what is made from the table is compared. With nix,
//! and with `FORMATION_NIXPKGS` and `FORMATION_CRANE` saying what to take for the two inputs, it is evaluated and built,
//! built again and compared, and an image is started and asked whether it is ready.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use flate2::read::MultiGzDecoder;
use serde_json::Value;

use crate::host::{is_installed, output, run, say};
use crate::{deploy, table};

/// Of the two that there are.
const INPUTS: [&str; 2] = ["crane", "nixpkgs"];
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the image's port is published.
const PORT: u16 = 13004;

pub(crate) fn nix_check() -> Result<()> {
    let files = table::parse_all()?;
    say(format_args!("nix-check: {} files are Nix", files.len()));
    if is_installed("nixfmt") {
        let files = files.into_iter().map(PathBuf::into_os_string);
        run("nixfmt", &std::iter::once("--check".into()).chain(files).collect::<Vec<_>>())?;
    } else {
        say("skipped: nixfmt is not installed; whether those files are formatted was not looked at");
    }
    lock(&fs::read_to_string("flake.lock").context("cannot read flake.lock")?)?;
    deploy::deploy(true)?;
    say("nix-check: the lock is whole, and deploy/ is what nix/services.nix gives");

    let inputs = ["FORMATION_NIXPKGS", "FORMATION_CRANE"].map(std::env::var_os);
    let [Some(nixpkgs), Some(crane)] = inputs else {
        say("skipped: FORMATION_NIXPKGS and FORMATION_CRANE name no inputs; the flake was not evaluated or built");
        return Ok(());
    };
    if !is_installed("nix") {
        say("skipped: nix is not installed; the flake was not evaluated or built");
        return Ok(());
    }
    let nix = Nix { nixpkgs, crane };
    nix.run(&["flake", "check", "--no-build", "--all-systems"])?;
    let images = nix.names()?;
    for name in &images {
        let started = Instant::now();
        // Of one evaluation, so that an edit meanwhile does not count as another result.
        let derivation = nix.derivation(name)?;
        let path = nix.realise(&derivation)?;
        say(format_args!("nix-check: {name} in {:.0?}: {}", started.elapsed(), path.display()));
        // Builds it once more, and fails if the bytes are others.
        nix.run(&["build", "--no-link", "--rebuild", &derivation])?;
    }
    say(format_args!("nix-check: {} images are the same when built twice", images.len()));
    start(&nix)
}

/// Two inputs, both locked whole.
fn lock(text: &str) -> Result<()> {
    let lock: Value = serde_json::from_str(text).context("flake.lock")?;
    if lock.get("version") != Some(&Value::from(7)) {
        bail!("flake.lock: its version is not 7");
    }
    let nodes = lock.get("nodes").and_then(Value::as_object).context("flake.lock: there are no nodes")?;
    let mut names: Vec<_> = nodes.keys().map(String::as_str).filter(|name| *name != "root").collect();
    names.sort_unstable();
    if names != INPUTS {
        bail!("flake.lock: the inputs are {} and not {}", names.join(", "), INPUTS.join(", "));
    }
    for name in INPUTS {
        let field = |key: &str| lock.pointer(&format!("/nodes/{name}/locked/{key}"));
        let text = |key: &str| field(key).and_then(Value::as_str).unwrap_or_default();
        let hash = text("narHash").strip_prefix("sha256-").unwrap_or_default();
        let whole = text("type") == "github"
            && text("rev").len() == 40
            && text("rev").bytes().all(|byte| byte.is_ascii_hexdigit())
            && hash.len() == 44
            && hash.ends_with('=')
            && field("lastModified").is_some_and(Value::is_u64);
        if !whole {
            bail!("flake.lock: {name} has not all of type, rev, narHash and lastModified");
        }
    }
    Ok(())
}

struct Nix {
    nixpkgs: OsString,
    crane: OsString,
}

impl Nix {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nix");
        command.args(["--extra-experimental-features", "nix-command flakes"]).args(arguments);
        command.arg("--no-write-lock-file").args(["--override-input", "nixpkgs"]).arg(&self.nixpkgs);
        command.args(["--override-input", "crane"]).arg(&self.crane);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let status = self.command(arguments).status().context("cannot run nix")?;
        if !status.success() {
            bail!("nix {} failed ({status})", arguments.join(" "));
        }
        Ok(())
    }

    fn output(&self, arguments: &[&str]) -> Result<String> {
        let done = self.command(arguments).stderr(Stdio::inherit()).output().context("cannot run nix")?;
        if !done.status.success() {
            bail!("nix {} failed ({})", arguments.join(" "), done.status);
        }
        String::from_utf8(done.stdout).context("nix printed something else than text")
    }

    fn build(&self, name: &str) -> Result<PathBuf> {
        self.realise(&self.derivation(name)?)
    }

    /// What builds `name`, as the tree is now.
    fn derivation(&self, name: &str) -> Result<String> {
        let derivation = self.output(&["eval", "--raw", &format!(".#{name}.drvPath")])?;
        Ok(format!("{derivation}^out"))
    }

    fn realise(&self, derivation: &str) -> Result<PathBuf> {
        let out = self.output(&["build", "--no-link", "--print-out-paths", derivation])?;
        Ok(PathBuf::from(out.trim()))
    }

    /// The images of this system.
    fn names(&self) -> Result<Vec<String>> {
        let system = format!("{}-linux", std::env::consts::ARCH);
        let all = self.output(&["eval", "--json", &format!(".#packages.{system}"), "--apply", "builtins.attrNames"])?;
        let all: Vec<String> = serde_json::from_str(&all).context("nix eval printed no list of names")?;
        let images = all.into_iter().filter(|name| name.ends_with("-image") || name.ends_with("-image-slim"));
        Ok(images.collect())
    }
}

/// Starts form-state's image in podman, with an identity of its own, and waits until it says that it is ready.
fn start(nix: &Nix) -> Result<()> {
    if !is_installed("podman") || !is_installed("curl") {
        say("skipped: podman and curl are not both installed; no image was started");
        return Ok(());
    }
    let version = nix.output(&["eval", "--raw", ".#form-state-image.imageTag"])?;
    let identities = tempfile::tempdir().context("cannot make a directory")?;
    let form = nix.build("form")?.join("bin/form");
    run(&form.display().to_string(), &["init".as_ref(), identities.path().as_os_str()])?;
    let tls = identities.path().join("form-state");
    run("chown", &["-R".as_ref(), "65532:65532".as_ref(), tls.as_os_str()])?;
    open(identities.path())?;
    let image = nix.build("form-state-image")?;
    load(&image)?;

    let (name, published) = (format!("formation-nix-check-{}", std::process::id()), format!("127.0.0.1:{PORT}:3004"));
    let mount = format!("{}:/etc/formation/form-state/tls:ro", tls.display());
    let image = format!("localhost/formation/form-state:{version}");
    let started = Instant::now();
    let flags = ["run", "--detach", "--rm", "--read-only", "--cap-drop", "all", "--name", &name];
    let limits = ["--runtime", "runc", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
    let arguments: Vec<&str> =
        flags.into_iter().chain(limits).chain(["--publish", &published, "--volume", &mount, &image]).collect();
    run("podman", &arguments)?;
    let answered = ready(&name, &tls, started);
    let logs = output("podman", &["logs", &name]).unwrap_or_default();
    let _ = output("podman", &["rm", "--force", "--time", "5", "--volumes", &name]);
    answered.with_context(|| format!("{image} does not become ready; it says: {logs}"))
}

/// Loads an image into podman; decompressed, as older versions take a compressed one for broken.
fn load(image: &Path) -> Result<()> {
    let file = fs::File::open(image).with_context(|| format!("cannot open {}", image.display()))?;
    let mut podman =
        Command::new("podman").args(["load", "--quiet"]).stdin(Stdio::piped()).spawn().context("cannot run podman")?;
    if let Some(mut input) = podman.stdin.take() {
        std::io::copy(&mut MultiGzDecoder::new(file), &mut input).context("cannot give podman the image")?;
    }
    let status = podman.wait().context("cannot wait for podman")?;
    if !status.success() {
        bail!("podman load failed ({status})");
    }
    Ok(())
}

/// The image's own program says so, and so does the port from outside.
fn ready(name: &str, tls: &Path, started: Instant) -> Result<()> {
    let (port, ca) = (format!("form-state:{PORT}:127.0.0.1"), tls.join("ca.pem").display().to_string());
    let url = format!("https://form-state:{PORT}/readyz");
    loop {
        let inside = output("podman", &["exec", name, "/usr/local/bin/form-state", "--health"]);
        let outside =
            output("curl", &["--fail", "--silent", "--show-error", "--cacert", &ca, "--resolve", &port, &url]);
        match (inside, outside) {
            (Ok(_), Ok(answer)) => {
                say(format_args!("nix-check: form-state's image is ready after {:.1?}: {answer}", started.elapsed()));
                return Ok(());
            }
            (inside, outside) if started.elapsed() > PATIENCE => {
                inside?;
                outside?;
            }
            _ => std::thread::park_timeout(Duration::from_millis(200)),
        }
    }
}

/// Lets the container's user pass through the directory; what is in it has modes of its own.
fn open(directory: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).context("cannot open a directory to others")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there() -> String {
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../flake.lock")).unwrap()
    }

    #[test]
    fn the_lock_has_two_inputs_and_all_of_both() {
        lock(&there()).unwrap();
        for (from, to) in [
            ("\"nixpkgs\": {", "\"other\": {"),
            ("sha256-", "sha1-"),
            ("\"lastModified\"", "\"modified\""),
            ("\"rev\": \"", "\"rev\": \"x"),
            ("\"version\": 7", "\"version\": 6"),
        ] {
            assert!(there().contains(from));
            assert!(lock(&there().replacen(from, to, 1)).is_err(), "{from}");
        }
    }

    #[test]
    fn every_file_of_the_flake_is_nix() {
        std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).unwrap();
        assert!(table::parse_all().unwrap().len() > 5);
    }
}
