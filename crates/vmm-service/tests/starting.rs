//! vmm-service before there is a form-state.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use form_service::Identity;
use form_service::identity::Authority;
use reqwest::{Client, StatusCode};
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn it_listens_from_the_first_says_what_it_waits_for_and_can_be_stopped() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
        return println!("skipped: it needs root and /dev/net/tun from its start");
    }
    form_service::run::init_process();
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls");
    let ca = Authority::open_or_create(&dir.path().join("pki")).unwrap();
    ca.issue("vmm-service", "node", &[], &[]).unwrap().save(&tls).unwrap();
    for file in ["vmlinuz", "initramfs"] {
        std::fs::write(dir.path().join(file), "none is booted").unwrap();
    }
    // Free a moment ago.
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (listen, nobody): (SocketAddr, SocketAddr) = (free(), free());
    let path = |path: &Path| path.display().to_string();
    let settings = [
        format!("identity_dir={}", path(&tls)),
        format!("data_dir={}", path(&dir.path().join("data"))),
        format!("guest_dir={}", path(dir.path())),
        format!("listen={listen}"),
        format!("state={nobody}"),
    ];
    let mut service = Command::new(env!("CARGO_BIN_EXE_vmm-service"));
    service.args(settings.iter().map(|setting| format!("--set={setting}")));
    let mut service = service.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();

    let identity = Identity::load(&tls).unwrap();
    let client = Client::builder().tls_backend_preconfigured(identity.client().unwrap());
    let client = client.resolve("vmm-service", listen).no_proxy().build().unwrap();
    let ask = |path: &'static str| {
        let request = client.get(format!("https://vmm-service:{}{path}", listen.port()));
        async move { request.send().await }
    };
    let answer = async {
        loop {
            match ask("/healthz").await {
                Ok(answer) => break answer,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("an answer, without a form-state");
    assert_eq!(answer.status(), StatusCode::OK);
    let answer = ask("/readyz").await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let waits = answer.text().await.unwrap();
    assert!(waits.contains("form-state has not listed the instances yet"), "{waits}");
    assert_eq!(service.try_wait().unwrap(), None, "it goes on waiting");

    let process = rustix::process::Pid::from_raw(service.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(PATIENCE, service.wait()).await.expect("an end").unwrap();
    assert!(ended.success(), "{ended}");
}
