//! `form node join`: makes this machine a node of a cluster.
//!
//! ```text
//!   keys ──▶ asked, with the token ──▶ certificates ──▶ joined.toml ──▶ form up
//! ```
//!
//! Killed anywhere, it is repeated with the same word: the keys are on the disk before they are shown, so form-state knows
//! the machine again. Until joined.toml is written, nothing takes this machine for a node.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use form_client::Endpoint;
use form_service::identity::{IdentityError, SigningRequest};
use form_service::{Config as _, Identity};
use form_types::v1::{self, JoinRequest};
use tokio::net::UdpSocket;

use crate::error::Error;
use crate::invitation::Invitation;
use crate::joined::{self, Joined};
use crate::output::{say, tell};
use crate::{cli, up};

/// What a node may run; form-pack-manager only the first does yet.
const SERVICES: [&str; 4] = [
    vmm_service::Config::SERVICE,
    form_dns::Config::SERVICE,
    form_pack_manager::Config::SERVICE,
    formnet::Config::SERVICE,
];

pub(crate) async fn join(args: cli::NodeJoin) -> Result<(), Error> {
    form_service::run::init_process();
    let invitation = Invitation::decode(&word(args.token)?).map_err(Error::Usage)?;
    let config = up::Config::of(&args.up)?;
    let data_dir = config.data_dir.as_path();
    let _lock = up::lock(data_dir).map_err(|error| Error::Failed(form_service::run::chain(&error)))?;
    if up::pki_in(data_dir).join("ca.pem").exists() {
        let text = "a cloud was made in {}, and one machine is in one cloud; give another --data-dir, or remove that";
        return Err(Error::Failed(text.replace("{}", &data_dir.display().to_string())));
    }
    if let Some(joined) = Joined::read(data_dir).map_err(Error::Failed)? {
        if joined.token == invitation.token_name() {
            return told(&joined, &args.up, data_dir);
        }
        check_cluster(&invitation, data_dir)?;
        joined::forget(data_dir).map_err(Error::file(data_dir))?;
    }

    let ca = invitation.ca_pem();
    let mut requests = Vec::new();
    for service in SERVICES {
        let dir = joined::identities(data_dir).join(service);
        requests.push((service, SigningRequest::open_or_create(&dir).map_err(failed)?, dir));
    }
    let node = args.name.unwrap_or_default();
    let asked = JoinRequest {
        token: invitation.secret.clone(),
        requests: requests.iter().map(|(service, request, _)| signing(service, request)).collect(),
        node: node.clone(),
    };
    let answer = form_client::join(invitation.state.clone(), &ca, asked.clone()).await;
    // Neither the token nor the operator gave a name: the host has one.
    let answer = match answer {
        Err(form_client::Error::Invalid(text)) if node.is_empty() && text.starts_with("node: missing") => {
            form_client::join(invitation.state.clone(), &ca, JoinRequest { node: config.node(), ..asked }).await
        }
        answer => answer,
    };
    let joined = answer.map_err(|error| refused(error, &invitation.state))?;
    if joined.certificates.len() != requests.len() {
        return Err(Error::Answer(format!("{} certificates for {} keys", joined.certificates.len(), requests.len())));
    }
    for ((_, request, dir), certificate) in requests.iter().zip(&joined.certificates) {
        request.identity(&ca, certificate).and_then(|identity| identity.save(dir)).map_err(failed)?;
    }
    let address = own_address(&invitation.state).await?;
    let token = invitation.token_name();
    let joined = Joined { node: joined.node, state: invitation.state, address, zone: invitation.zone, token };
    joined.write(data_dir).map_err(Error::file(data_dir))?;
    told(&joined, &args.up, data_dir)
}

/// The word, or what stands in standard input, where it is in no list of processes.
fn word(given: String) -> Result<String, Error> {
    if given != "-" {
        return Ok(given);
    }
    let mut text = String::new();
    std::io::stdin().take(64 << 10).read_to_string(&mut text).map_err(Error::file("standard input"))?;
    Ok(text.trim().to_owned())
}

/// That a machine that has joined is invited by the same cluster again.
fn check_cluster(invitation: &Invitation, data_dir: &Path) -> Result<(), Error> {
    let dir = joined::identities(data_dir).join(vmm_service::Config::SERVICE);
    let strip = |pem: &str| pem.replace(char::is_whitespace, "");
    match Identity::load(&dir) {
        Ok(identity) if strip(&identity.ca_pem) == strip(&invitation.ca_pem()) => Ok(()),
        _ => Err(Error::Failed(format!(
            "this machine is a node of another cluster; to have it leave that, stop it (form down --machines) and remove {}",
            data_dir.display()
        ))),
    }
}

fn signing(service: &str, request: &SigningRequest) -> v1::SigningRequest {
    v1::SigningRequest { service: service.to_owned(), csr: request.csr().to_vec() }
}

/// The address of this machine that form-state would see: the kernel knows which way it goes; nothing is sent.
async fn own_address(state: &Endpoint) -> Result<IpAddr, Error> {
    let unknown = |error: std::io::Error| Error::Failed(format!("the way to {}: {error}", String::from(state.clone())));
    let mut found = tokio::net::lookup_host(String::from(state.clone())).await.map_err(unknown)?;
    let there = found.next().ok_or_else(|| unknown(std::io::Error::other("the name has no address")))?;
    let any: SocketAddr = if there.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await.map_err(unknown)?;
    socket.connect(there).await.map_err(unknown)?;
    Ok(socket.local_addr().map_err(unknown)?.ip().to_canonical())
}

fn told(joined: &Joined, flags: &cli::Up, data_dir: &Path) -> Result<(), Error> {
    let up = match flags.data_dir {
        Some(_) => format!("form up --data-dir {}", data_dir.display()),
        None => "form up".to_owned(),
    };
    say(format_args!("this machine is node {}", joined.node))?;
    if joined.address.is_loopback() {
        tell("form-state was reached over loopback: other machines will not find this one; set `address` of form up");
    }
    tell(format_args!("run its services: {up}"));
    Ok(())
}

fn refused(error: form_client::Error, state: &Endpoint) -> Error {
    let state = String::from(state.clone());
    match error {
        form_client::Error::Unavailable(why) => Error::Failed(format!(
            "form-state cannot be reached at {state}: {why}; is that the address that machines reach it at? `form node \
             invite --address` names another"
        )),
        form_client::Error::AlreadyExists(why) => Error::Failed(format!(
            "{why}; give this machine another --name, or if that node is no more: form node remove"
        )),
        error => Error::Failed(error.to_string()),
    }
}

fn failed(error: IdentityError) -> Error {
    Error::Failed(form_service::run::chain(&error))
}
