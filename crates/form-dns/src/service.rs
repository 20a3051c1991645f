//! Follows the cluster, and answers.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use form_client::reconcile::{self, Options};
use form_client::{Client, Controller};
use form_service::Context;
use form_service::identity::IdentityError;
use form_service::listener::{self, Limits};
use hickory_proto::ProtoError;
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::names::{Instances, Names, Nodes, Records, UserZones};
use crate::{Handler, Server, ServerConfig, ServerError, ZoneError, Zones};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("listening on {address} for health and metrics; is another form-dns running?")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("zone {zone}")]
    Zone { zone: String, source: ProtoError },
    #[error(transparent)]
    Zones(#[from] ZoneError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Client(#[from] form_client::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Runs until the context's shutdown.
pub async fn run(context: Context<Config>) -> Result<(), RunError> {
    let config = Arc::clone(&context.config.borrow());
    let client = Client::new(config.state.clone(), &context.identity, "form-dns")?;
    for kind in ["instances", "zones", "records"] {
        context.health.wait_for(kind, "form-state has not listed them yet");
    }
    let name = |text: &str| Name::from_ascii(text).map_err(|source| RunError::Zone { zone: text.to_owned(), source });
    let mut cluster = name(&config.zone)?;
    cluster.set_fqdn(true);
    let zones = Arc::new(Zones::new());
    let names = Arc::new(Names {
        client: client.clone(),
        zones: Arc::clone(&zones),
        health: context.health.clone(),
        cluster: cluster.clone(),
        instance_ttl: config.instance_ttl,
        served: Mutex::new(HashMap::new()),
        instances: Mutex::default(),
    });
    let server = Server::bind(
        Handler::new(Arc::clone(&zones)),
        ServerConfig { addresses: config.listen.clone(), ..ServerConfig::default() },
    )?;
    zones.add_zone(names.zone(cluster.clone(), config.instance_ttl))?;
    let ns =
        name("ns")?.append_domain(&cluster).map_err(|source| RunError::Zone { zone: config.zone.clone(), source })?;
    zones.upsert("form-dns", glue(&ns, &server.addresses()?))?;

    let mut following = JoinSet::new();
    let (nudge_records, records) = reconcile::nudges();
    follow(&mut following, &client, Nodes(Arc::clone(&names)), reconcile::nudges().1);
    follow(&mut following, &client, Instances(Arc::clone(&names)), reconcile::nudges().1);
    follow(&mut following, &client, Records(Arc::clone(&names)), records);
    let user_zones = UserZones { names, records: nudge_records };
    follow(&mut following, &client, user_zones, reconcile::nudges().1);

    let listener =
        TcpListener::bind(config.admin).await.map_err(|source| RunError::Listen { address: config.admin, source })?;
    let tls = context.identity.server()?;
    let health = context.health.clone();
    let admin =
        listener::serve(listener, tls, axum::Router::new(), health, Limits::default(), context.shutdown.clone());
    let answers = async {
        // Not before all is known: until then "there is no such name" would be a guess. Who asks tries again.
        tokio::select! {
            () = context.health.ready() => {
                tracing::info!(addresses = ?config.listen, "form-dns answers");
                server.run(context.shutdown.clone()).await;
            }
            () = context.shutdown.cancelled() => {}
        }
    };
    tokio::join!(admin, answers);
    following.abort_all();
    Ok(())
}

fn follow<C: Controller>(
    tasks: &mut JoinSet<()>,
    client: &Client,
    controller: C,
    nudges: mpsc::Receiver<form_client::Name>,
) {
    let (client, controller) = (client.clone(), Arc::new(controller));
    tasks.spawn(async move { reconcile::run(client, "", controller, Options::default(), nudges).await });
}

/// The addresses of the name server itself.
fn glue(name: &Name, addresses: &[SocketAddr]) -> Vec<Record> {
    let record = |address: &SocketAddr| {
        let data = match address.ip() {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        Record::from_rdata(name.clone(), 60, data)
    };
    addresses.iter().map(record).collect()
}
