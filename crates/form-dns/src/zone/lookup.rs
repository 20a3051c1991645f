use std::borrow::Borrow;
use std::ops::Bound;

use hickory_proto::rr::rdata::HINFO;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::key::Key;
use super::node::Node;
use super::{Snapshot, Zone, absolute};

/// What one of our zones says to a question.
///
/// | found | `exists` | `answers` | `authorities` |
/// | --- | --- | --- | --- |
/// | records | true | they, after the aliases that lead to them | - |
/// | the name, not the type (NODATA) | true | aliases, if any | SOA |
/// | no such name (NXDOMAIN) | false | aliases, if any | SOA |
/// | a name that another server is asked for | true | aliases, if any | NS, and not authoritative |
/// | an alias that leads out of our zones | true | aliases | - |
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Whether the name exists: the last one, if there were aliases (RFC 6604, section 3).
    pub exists: bool,
    /// Whether the first of the names belongs to us, and not to a server that we refer to.
    pub authoritative: bool,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authorities: Vec<Record>,
    /// The additional section: addresses of the names in the others, as far as they are ours.
    pub additionals: Vec<Record>,
}

pub(super) fn lookup(snapshot: &Snapshot, name: &Name, rtype: RecordType) -> Option<Answer> {
    let mut answer = Answer { exists: true, authoritative: true, ..Answer::default() };
    let mut name = absolute(name.clone());
    for hop in 0..=MAX_ALIASES {
        let key = Key::of(&name);
        let Some((origin, zone)) = snapshot.zone_of(&key) else {
            // The first name must be ours; where an alias leads out of our zones, the client asks on.
            return if hop == 0 { None } else { Some(answer) };
        };
        match find(snapshot, &key, origin) {
            Found::Apex => {
                let records = apex(zone, rtype).or_else(|| own(snapshot.names.get(&key)?, &name, rtype));
                match records {
                    Some(records) => answer.answers.extend(records),
                    None => answer.authorities.push(negative(zone)),
                }
            }
            Found::Node(node) => match own(node, &name, rtype) {
                Some(records) => answer.answers.extend(records),
                None => match node.get(RecordType::CNAME).and_then(<[Record]>::first) {
                    Some(alias) => {
                        answer.answers.push(named(alias, &name));
                        if let RData::CNAME(target) = &alias.data {
                            name = absolute(target.0.clone());
                            continue;
                        }
                    }
                    None => answer.authorities.push(negative(zone)),
                },
            },
            Found::Empty => answer.authorities.push(negative(zone)),
            Found::Nothing => {
                answer.exists = false;
                answer.authorities.push(negative(zone));
            }
            Found::Referral(ns) => {
                answer.authoritative = hop > 0;
                answer.authorities.extend(ns.iter().cloned());
            }
        }
        break;
    }
    answer.additionals = additionals(snapshot, answer.answers.iter().chain(&answer.authorities));
    Some(answer)
}

/// Aliases that are followed; a longer chain is cut there, and a loop with it.
const MAX_ALIASES: usize = 8;
/// Names whose addresses are added to an answer: it is a courtesy, and must stay a cheap one.
const MAX_ADDITIONAL_NAMES: usize = 8;

enum Found<'s> {
    Apex,
    Node(&'s Node),
    /// The name exists, since there are names below it (RFC 8020), and has no records.
    Empty,
    Nothing,
    Referral(&'s [Record]),
}

/// RFC 1034, section 4.3.2, step 3, inside the zone `origin`, which is the deepest at or above `name`.
fn find<'s>(snapshot: &'s Snapshot, name: &Key, origin: &[u8]) -> Found<'s> {
    let mut cut = None;
    let mut closest = None;
    for at in name.with_ancestors().take_while(|at| *at != origin) {
        let node = snapshot.names.get(at);
        // A server that we refer to is asked for all that is below its name, so the topmost counts.
        cut = node.and_then(|node| node.get(RecordType::NS)).or(cut);
        if closest.is_none() && (node.is_some() || has_below(snapshot, at)) {
            closest = Some((at, node));
        }
    }
    if let Some(ns) = cut {
        return Found::Referral(ns);
    }
    let name: &[u8] = name.borrow();
    match closest {
        _ if name == origin => Found::Apex,
        Some((encloser, node)) if encloser == name => node.map_or(Found::Empty, |node| Found::Node(node)),
        // RFC 4592, section 3.3.1: only the closest encloser's wildcard counts, not that of a name further up.
        _ => {
            let wildcard = Key::wildcard_below(closest.map_or(origin, |(encloser, _)| encloser));
            match snapshot.names.get(&wildcard) {
                Some(node) => Found::Node(node),
                // RFC 4592, section 2.2.2: an empty wildcard still is one.
                None if has_below(snapshot, wildcard.borrow()) => Found::Empty,
                None => Found::Nothing,
            }
        }
    }
}

/// Whether any name is below `name`. In canonical order, it would follow at once.
fn has_below(snapshot: &Snapshot, name: &[u8]) -> bool {
    let after: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Excluded(name), Bound::Unbounded);
    let is_below = |next: Option<&Key>| next.is_some_and(|next| Borrow::<[u8]>::borrow(next).starts_with(name));
    is_below(snapshot.names.range::<[u8], _>(after).next().map(|(name, _)| name))
        || is_below(snapshot.zones.range::<[u8], _>(after).next().map(|(name, _)| name))
}

/// The records of a node that answer `rtype`, with the spelling of the question.
fn own(node: &Node, name: &Name, rtype: RecordType) -> Option<Vec<Record>> {
    if rtype == RecordType::ANY {
        return Some(vec![minimal(name, node.ttl())]);
    }
    node.get(rtype).map(|records| records.iter().map(|record| named(record, name)).collect())
}

fn apex(zone: &Zone, rtype: RecordType) -> Option<Vec<Record>> {
    match rtype {
        RecordType::SOA => Some(vec![zone.soa.clone().into_record_of_rdata()]),
        RecordType::NS => Some(zone.ns.clone()),
        RecordType::ANY => Some(vec![minimal(&zone.soa.name, zone.soa.ttl)]),
        _ => None,
    }
}

/// RFC 8482, section 4.2: ANY is answered with as little as possible.
fn minimal(name: &Name, ttl: u32) -> Record {
    Record::from_rdata(name.clone(), ttl, RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new())))
}

fn named(record: &Record, name: &Name) -> Record {
    Record::from_rdata(name.clone(), record.ttl, record.data.clone())
}

/// RFC 2308, sections 3 and 5: the SOA, with the lesser of its TTL and its minimum.
fn negative(zone: &Zone) -> Record {
    let mut soa = zone.soa.clone();
    soa.ttl = soa.ttl.min(soa.data.minimum);
    soa.into_record_of_rdata()
}

/// RFC 1034, section 4.3.2, step 6; RFC 2782: addresses of what the records point to.
fn additionals<'r>(snapshot: &Snapshot, records: impl Iterator<Item = &'r Record>) -> Vec<Record> {
    let mut targets: Vec<&Name> = Vec::new();
    for record in records {
        let target = match &record.data {
            RData::MX(mx) => &mx.exchange,
            RData::SRV(srv) => &srv.target,
            RData::NS(ns) => &ns.0,
            _ => continue,
        };
        if targets.len() < MAX_ADDITIONAL_NAMES && !targets.contains(&target) {
            targets.push(target);
        }
    }
    let mut additionals = Vec::new();
    for target in targets {
        let key = Key::of(target);
        // Glue below a referral is not ours to answer with, but is what the referral needs.
        let Some(node) = snapshot.zone_of(&key).and_then(|_| snapshot.names.get(&key)) else { continue };
        for rtype in [RecordType::A, RecordType::AAAA] {
            additionals.extend(node.get(rtype).unwrap_or_default().iter().map(|record| named(record, target)));
        }
    }
    additionals
}
