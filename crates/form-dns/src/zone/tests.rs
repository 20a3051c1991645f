use super::*;
use crate::testing::{cluster, name, record, records, zone};

/// The answer as text: each record as `name ttl type data`, sections separated by `|`.
fn ask(zones: &Zones, question: &str, rtype: RecordType) -> String {
    let Some(answer) = zones.lookup(&name(question), rtype) else { return "refused".to_owned() };
    let show = |records: &[Record]| {
        let one = |r: &Record| format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data);
        records.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let code = if answer.exists { "ok" } else { "nxdomain" };
    let code = if answer.authoritative { code.to_owned() } else { format!("{code} elsewhere") };
    let soa = |text: String| if text.contains(" SOA ") { "soa".to_owned() } else { text };
    format!("{code} | {} | {}", show(&answer.answers), soa(show(&answer.authorities)))
}

#[test]
fn several_owners_share_an_rrset_and_each_takes_only_its_own_away() {
    let zones = Zones::new();
    zones.add_zone(zone("x.")).unwrap();
    zones.upsert("a", records("www.x. 60 A 10.0.0.1\nwww.x. 60 A 10.0.0.2")).unwrap();
    zones.upsert("b", records("WWW.x. 20 A 10.0.0.2\nwww.x. 20 A 10.0.0.3")).unwrap();
    let all = "ok | www.x. 20 A 10.0.0.1, www.x. 20 A 10.0.0.2, www.x. 20 A 10.0.0.3 | ";
    assert_eq!(ask(&zones, "www.x.", RecordType::A), all);
    assert!(zones.remove("b"));
    assert_eq!(ask(&zones, "www.x.", RecordType::A), "ok | www.x. 60 A 10.0.0.1, www.x. 60 A 10.0.0.2 | ");
    assert!(zones.remove("a"));
    assert!(!zones.remove("a"));
    assert_eq!(ask(&zones, "www.x.", RecordType::A), "nxdomain |  | soa");
}

#[test]
fn an_upsert_replaces_all_that_the_owner_had() {
    let zones = Zones::new();
    zones.add_zone(zone("x.")).unwrap();
    zones.upsert("a", records("old.x. 60 A 10.0.0.1\nboth.x. 60 A 10.0.0.1")).unwrap();
    zones.upsert("a", records("new.x. 60 A 10.0.0.2\nboth.x. 60 A 10.0.0.2")).unwrap();
    assert_eq!(ask(&zones, "old.x.", RecordType::A), "nxdomain |  | soa");
    assert_eq!(ask(&zones, "new.x.", RecordType::A), "ok | new.x. 60 A 10.0.0.2 | ");
    assert_eq!(ask(&zones, "both.x.", RecordType::A), "ok | both.x. 60 A 10.0.0.2 | ");
}

#[test]
fn the_serial_grows_by_one_with_each_change_of_the_zone_and_with_no_other() {
    let zones = Zones::new();
    zones.add_zone(ZoneConfig { serial: u32::MAX, ..zone("x.") }).unwrap();
    zones.add_zone(zone("y.")).unwrap();
    let serials = || (zones.serial(&name("x")).unwrap(), zones.serial(&name("y")).unwrap());
    assert!(zones.upsert("a", records("www.x. 60 A 10.0.0.1\nftp.x. 60 A 10.0.0.1")).unwrap());
    assert_eq!(serials(), (0, 1));
    assert!(!zones.upsert("a", records("www.x. 60 A 10.0.0.1\nftp.x. 60 A 10.0.0.1")).unwrap());
    assert_eq!(serials(), (0, 1));
    assert!(zones.upsert("a", records("www.x. 61 A 10.0.0.1\nwww.y. 60 A 10.0.0.1")).unwrap());
    assert_eq!(serials(), (1, 2));
    assert!(zones.remove("a"));
    assert_eq!(serials(), (2, 3));
}

#[test]
fn a_zone_that_is_added_again_changes_only_if_it_says_something_else() {
    let zones = Zones::new();
    assert!(zones.add_zone(zone("x.")).unwrap());
    zones.upsert("a", records("www.x. 60 A 10.0.0.1")).unwrap();
    assert!(!zones.add_zone(zone("x.")).unwrap());
    assert_eq!(zones.serial(&name("x.")), Some(2));
    assert!(zones.add_zone(ZoneConfig { ttl: 7, ..zone("x.") }).unwrap());
    assert_eq!(zones.serial(&name("x.")), Some(3));
    assert!(zones.add_zone(ZoneConfig { ttl: 7, serial: 100, ..zone("x.") }).unwrap());
    assert_eq!(zones.serial(&name("x.")), Some(100));
    assert_eq!(ask(&zones, "www.x.", RecordType::A), "ok | www.x. 60 A 10.0.0.1 | ");
}

#[test]
fn records_wait_for_their_zone_and_outlive_it() {
    let zones = Zones::new();
    zones.upsert("a", records("www.x. 60 A 10.0.0.1")).unwrap();
    assert_eq!(ask(&zones, "www.x.", RecordType::A), "refused");
    zones.add_zone(zone("x.")).unwrap();
    assert_eq!(ask(&zones, "www.x.", RecordType::A), "ok | www.x. 60 A 10.0.0.1 | ");
    assert!(zones.remove_zone(&name("X")));
    assert_eq!(ask(&zones, "www.x.", RecordType::A), "refused");
}

#[test]
fn a_record_belongs_to_the_deepest_zone() {
    let zones = Zones::new();
    zones.add_zone(zone("x.")).unwrap();
    zones.add_zone(zone("deep.y.x.")).unwrap();
    zones.upsert("a", records("www.deep.y.x. 60 A 10.0.0.1")).unwrap();
    assert_eq!((zones.serial(&name("x.")), zones.serial(&name("deep.y.x."))), (Some(1), Some(2)));
    // The zone below makes this name exist.
    assert_eq!(ask(&zones, "y.x.", RecordType::A), "ok |  | soa");
}

#[test]
fn what_cannot_be_served_is_refused_and_changes_nothing() {
    let zones = Zones::new();
    zones.add_zone(zone("x.")).unwrap();
    zones.upsert("a", records("www.x. 60 A 10.0.0.1")).unwrap();
    let alias = |lines| zones.upsert("b", records(lines)).unwrap_err().to_string();
    assert!(alias("ok.x. 60 A 10.0.0.1\nwww.x. 60 CNAME y.").contains("also of a; remove one"));
    assert!(alias("z.x. 60 CNAME y.\nz.x. 60 CNAME x.").contains("another CNAME"));
    assert_eq!(ask(&zones, "ok.x.", RecordType::A), "nxdomain |  | soa");

    let mut chaos = record("www.x. 60 A 10.0.0.1");
    chaos.dns_class = DNSClass::CH;
    assert!(matches!(zones.upsert("c", vec![chaos]), Err(ZoneError::Class { .. })));
    let opt = Record::update0(name("www.x."), 0, RecordType::OPT);
    assert!(matches!(zones.upsert("c", vec![opt]), Err(ZoneError::Type { .. })));
    assert!(matches!(
        zones.add_zone(ZoneConfig { nameservers: Vec::new(), ..zone("z.") }),
        Err(ZoneError::NoNameserver { .. })
    ));
    assert_eq!(zones.serial(&name("x.")), Some(2));
}

#[test]
fn readers_see_a_change_whole_or_not_at_all() {
    let zones = Zones::new();
    zones.add_zone(zone("x.")).unwrap();
    let pair = |i: u32| records(&format!("a.x. 60 CNAME b{i}.x.\nb{i}.x. 60 A 10.0.0.{i}"));
    zones.upsert("o", pair(0)).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..20_000 {
                let answer = zones.lookup(&name("a.x."), RecordType::A).unwrap();
                assert_eq!(answer.answers.len(), 2, "{answer:?}");
            }
        });
        let mut i = 0;
        while !reader.is_finished() {
            i = (i + 1) % 250;
            zones.upsert("o", pair(i)).unwrap();
        }
    });
}

#[test]
fn rfc1034_4_3_2_aliases_are_followed_inside_our_zones() {
    let zones = cluster();
    let hello = "www.example.org. 60 CNAME hello.default.formation.internal., hello.default.formation.internal. 5 A 100.64.0.10";
    assert_eq!(ask(&zones, "www.example.org.", RecordType::A), format!("ok | {hello} | "));
    assert_eq!(ask(&zones, "www.example.org.", RecordType::CNAME).matches("CNAME").count(), 1);
    assert_eq!(ask(&zones, "out.example.org.", RecordType::A), "ok | out.example.org. 60 CNAME www.example.com. | ");
    assert_eq!(ask(&zones, "loop.example.org.", RecordType::A).matches("CNAME").count(), 9);
}

#[test]
fn rfc6604_3_the_last_name_of_a_chain_decides_the_code() {
    let zones = cluster();
    let gone = "nxdomain | gone.example.org. 60 CNAME nothing.example.org. | soa";
    assert_eq!(ask(&zones, "gone.example.org.", RecordType::A), gone);
    assert!(ask(&zones, "www.example.org.", RecordType::TXT).ends_with("hello.default.formation.internal. | soa"));
}

#[test]
fn rfc8020_2_a_name_with_names_below_it_exists() {
    let zones = cluster();
    for empty in ["c.example.org.", "b.c.example.org.", "default.formation.internal.", "_tcp.example.org."] {
        assert_eq!(ask(&zones, empty, RecordType::A), "ok |  | soa", "{empty}");
    }
    assert_eq!(ask(&zones, "d.example.org.", RecordType::A), "nxdomain |  | soa");
    assert_eq!(ask(&zones, "x.a.b.c.example.org.", RecordType::A), "nxdomain |  | soa");
}

/// RFC 4592, section 2.2.1, with its own zone.
#[test]
fn rfc4592_2_2_1_the_example_zone_answers_as_the_rfc_says() {
    let zones = Zones::new();
    zones.add_zone(zone("example.")).unwrap();
    let lines = "*.example. 3600 TXT wildcard
        *.example. 3600 MX 10 host1.example.
        sub.*.example. 3600 TXT notwild
        host1.example. 3600 A 192.0.2.1
        _ssh._tcp.host1.example. 3600 SRV 0 0 22 host1.example.
        _ssh._tcp.host2.example. 3600 SRV 0 0 22 host1.example.
        subdel.example. 3600 NS ns.example.com.";
    zones.upsert("rfc", records(lines)).unwrap();
    let ask = |name, rtype| ask(&zones, name, rtype);
    assert_eq!(ask("host3.example.", RecordType::MX), "ok | host3.example. 3600 MX 10 host1.example. | ");
    assert_eq!(ask("host3.example.", RecordType::A), "ok |  | soa");
    assert_eq!(ask("foo.bar.example.", RecordType::TXT), "ok | foo.bar.example. 3600 TXT wildcard | ");
    assert_eq!(ask("host1.example.", RecordType::MX), "ok |  | soa");
    assert_eq!(ask("sub.*.example.", RecordType::MX), "ok |  | soa");
    assert_eq!(ask("_telnet._tcp.host1.example.", RecordType::SRV), "nxdomain |  | soa");
    assert_eq!(ask("host.subdel.example.", RecordType::A), "ok elsewhere |  | subdel.example. 3600 NS ns.example.com.");
    assert_eq!(ask("ghost.*.example.", RecordType::MX), "nxdomain |  | soa");
}

#[test]
fn rfc1034_4_3_1_names_below_a_cut_are_referred_with_glue() {
    let zones = cluster();
    let referral = "ok elsewhere |  | sub.example.org. 60 NS ns.sub.example.org.";
    assert_eq!(ask(&zones, "a.sub.example.org.", RecordType::A), referral);
    assert_eq!(ask(&zones, "sub.example.org.", RecordType::NS), referral);
    let answer = zones.lookup(&name("a.sub.example.org."), RecordType::A).unwrap();
    assert_eq!(answer.additionals, [record("ns.sub.example.org. 60 A 192.0.2.53")]);
}

#[test]
fn a_hundred_thousand_names_are_found_and_changed_quickly() {
    let zones = Zones::new();
    zones.add_zone(zone("x.")).unwrap();
    for i in 0..100_000 {
        zones.upsert(&format!("i{i}"), vec![record(&format!("h{i}.p{}.x. 5 A 10.1.2.3", i % 100))]).unwrap();
    }
    assert_eq!(ask(&zones, "h777.p77.x.", RecordType::A), "ok | h777.p77.x. 5 A 10.1.2.3 | ");
    assert_eq!(zones.serial(&name("x.")), Some(100_001));
}
