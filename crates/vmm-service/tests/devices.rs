//! vmm-service in a place that was not given a device.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::process::Command;

use form_service::identity::Authority;

#[test]
fn without_what_taps_are_made_with_it_ends_and_names_it() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        return println!("skipped: a device is hidden by root, and where it is");
    }
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls");
    let ca = Authority::open_or_create(&dir.path().join("pki")).unwrap();
    ca.issue("vmm-service", "node", &[], &[]).unwrap().save(&tls).unwrap();
    let set = |key: &str, path: &Path| format!("--set={key}={}", path.display());

    let mut hidden = Command::new("unshare");
    hidden.args(["--net", "--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "sh"]);
    hidden.arg(env!("CARGO_BIN_EXE_vmm-service"));
    let said = hidden.args([set("identity_dir", &tls), set("data_dir", dir.path())]).output().unwrap();
    let message = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(1), "{message}");
    assert!(message.contains("cannot open /dev/net/tun"), "{message}");
}
