//! Names and records for tests, out of text as in a zone file.

use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record};

use crate::zone::{ZoneConfig, Zones};

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// `name ttl type data`
pub(crate) fn record(line: &str) -> Record {
    let words: Vec<_> = line.split_whitespace().collect();
    let data = match (words[2], &words[3..]) {
        ("A", [address]) => RData::A(A(address.parse().unwrap())),
        ("AAAA", [address]) => RData::AAAA(AAAA(address.parse().unwrap())),
        ("CNAME", [target]) => RData::CNAME(CNAME(name(target))),
        ("NS", [target]) => RData::NS(NS(name(target))),
        ("PTR", [target]) => RData::PTR(PTR(name(target))),
        ("MX", [preference, target]) => RData::MX(MX::new(preference.parse().unwrap(), name(target))),
        ("SRV", [priority, weight, port, target]) => RData::SRV(SRV::new(
            priority.parse().unwrap(),
            weight.parse().unwrap(),
            port.parse().unwrap(),
            name(target),
        )),
        ("TXT", [text]) => RData::TXT(TXT::new(vec![(*text).to_owned()])),
        other => panic!("{other:?}"),
    };
    Record::from_rdata(name(words[0]), words[1].parse().unwrap(), data)
}

pub(crate) fn records(lines: &str) -> Vec<Record> {
    lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(record).collect()
}

pub(crate) fn zone(origin: &str) -> ZoneConfig {
    ZoneConfig {
        origin: name(origin),
        nameservers: vec![name("ns.formation.internal.")],
        contact: name("hostmaster.formation.internal."),
        serial: 1,
        ttl: 3600,
        negative_ttl: 30,
    }
}

/// A cluster's zones, with some of everything.
pub(crate) fn cluster() -> Arc<Zones> {
    let zones = Zones::new();
    for origin in ["formation.internal.", "example.org.", "64.100.in-addr.arpa.", "0.0.d.f.ip6.arpa."] {
        zones.add_zone(zone(origin)).unwrap();
    }
    let owners = [
        ("Node/one", "ns.formation.internal. 60 A 100.64.0.1"),
        (
            "Instance/default/hello",
            "hello.default.formation.internal. 5 A 100.64.0.10
             hello.default.formation.internal. 5 AAAA fd00::10
             10.0.64.100.in-addr.arpa. 5 PTR hello.default.formation.internal.",
        ),
        (
            "Record/default/web",
            "www.example.org. 60 CNAME hello.default.formation.internal.
             out.example.org. 60 CNAME www.example.com.
             gone.example.org. 60 CNAME nothing.example.org.
             loop.example.org. 60 CNAME pool.example.org.
             pool.example.org. 60 CNAME loop.example.org.
             example.org. 60 MX 10 mail.example.org.
             mail.example.org. 60 A 192.0.2.25
             _http._tcp.example.org. 60 SRV 0 5 80 hello.default.formation.internal.
             *.wild.example.org. 60 TXT wild
             host.wild.example.org. 60 A 192.0.2.1
             sub.example.org. 60 NS ns.sub.example.org.
             ns.sub.example.org. 60 A 192.0.2.53
             a.b.c.example.org. 60 TXT deep",
        ),
    ];
    for (owner, lines) in owners {
        zones.upsert(owner, records(lines)).unwrap();
    }
    let big = (0..200).map(|i| format!("big.example.org. 60 A 10.0.{}.{}\n", i / 100, i % 100)).collect::<String>();
    zones.upsert("Record/default/big", records(&big)).unwrap();
    Arc::new(zones)
}
