//! Serves `h0.p.formation.internal` to `h99999.p.formation.internal`, for dnsperf and for trying things out:
//!
//! `cargo run --release -p form-dns --example serve -- 127.0.0.1:5300 2`
//!
//! The second argument is the number of UDP workers. Runs until it is interrupted.

use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;

use form_dns::rr::rdata::A;
use form_dns::rr::{Name, RData, Record};
use form_dns::{Handler, Server, ServerConfig, ZoneConfig, Zones};
use tokio_util::sync::CancellationToken;

const NAMES: u32 = 100_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("the first argument is the address to listen on")?.parse()?;
    let udp_workers = arguments.next().map_or(Ok(1), |workers| workers.parse())?;

    let zones = Arc::new(Zones::new());
    zones.add_zone(ZoneConfig {
        origin: Name::from_ascii("formation.internal.")?,
        nameservers: vec![Name::from_ascii("ns.formation.internal.")?],
        contact: Name::from_ascii("hostmaster.formation.internal.")?,
        serial: 1,
        ttl: 3600,
        negative_ttl: 30,
    })?;
    for i in 0..NAMES {
        let name = Name::from_ascii(format!("h{i}.p.formation.internal."))?;
        let address = A(Ipv4Addr::from(0x0a00_0000_u32.saturating_add(i)));
        zones.upsert(&format!("Instance/p/h{i}"), vec![Record::from_rdata(name, 5, RData::A(address))])?;
    }

    let config = ServerConfig { addresses: vec![address], udp_workers, ..ServerConfig::default() };
    let server = Server::bind(Handler::new(zones), config)?;
    writeln!(std::io::stdout(), "answering on {address}")?;
    let stop = CancellationToken::new();
    let interrupted = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.cancel();
        }
    });
    server.run(stop).await;
    Ok(())
}
