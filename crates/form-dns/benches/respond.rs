//! How long one answer takes, without sockets, among 100 000 names. `cargo bench -p form-dns`

use std::hint::black_box;
use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use form_dns::rr::rdata::A;
use form_dns::rr::{Name, RData, Record, RecordType};
use form_dns::{Handler, ZoneConfig, Zones};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_server::net::xfer::Protocol;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let zones = Arc::new(Zones::new());
    zones.add_zone(ZoneConfig {
        origin: Name::from_ascii("formation.internal.")?,
        nameservers: vec![Name::from_ascii("ns.formation.internal.")?],
        contact: Name::from_ascii("hostmaster.formation.internal.")?,
        serial: 1,
        ttl: 3600,
        negative_ttl: 30,
    })?;
    let start = Instant::now();
    for i in 0..100_000_u32 {
        let name = Name::from_ascii(format!("h{i}.p.formation.internal."))?;
        let data = RData::A(A(Ipv4Addr::from(i)));
        zones.upsert(&format!("Instance/p/h{i}"), vec![Record::from_rdata(name, 5, data)])?;
    }
    let mut report = format!("upsert: {:.1?} each\n", start.elapsed() / 100_000);

    let handler = Handler::new(Arc::clone(&zones));
    let client = "192.0.2.1:5353".parse()?;
    for (what, name) in [("address", "h777.p.formation.internal."), ("no such name", "x.p.formation.internal.")] {
        let name = Name::from_ascii(name)?;
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        message.edns = Some(Edns::new());
        let bytes = message.to_vec()?;
        let rounds = 200_000;
        let start = Instant::now();
        for _ in 0..rounds {
            black_box(zones.lookup(black_box(&name), RecordType::A));
        }
        let lookup = start.elapsed() / rounds;
        let start = Instant::now();
        for _ in 0..rounds {
            black_box(handler.respond(black_box(&bytes), client, Protocol::Udp));
        }
        report += &format!("{what}: lookup {lookup:.2?}, whole answer {:.2?}\n", start.elapsed() / rounds);
    }
    std::io::stdout().write_all(report.as_bytes())?;
    Ok(())
}
