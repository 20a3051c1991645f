//! What the server knows: zones, and the records that resources of the cluster own.
//!
//! A lookup takes a snapshot and never waits. A change makes the next snapshot out of the one before, sharing all but
//! the path to what changed, and puts it in place in one step; so it costs by its own size, whatever the zone's.
//!
//! Records stand in one tree, in the canonical order of names (RFC 4034, section 6.1), in which all that is below a
//! name follows it at once. So whether an empty name exists is one look at its successor. A zone is only its apex: a
//! record belongs to the deepest zone above it, and records that no zone is above of wait until one comes.

mod key;
mod lookup;
mod node;
mod reverse;

pub use lookup::Answer;
pub use reverse::{reverse_name, reverse_zones};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use hickory_proto::rr::rdata::{NS, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rpds::RedBlackTreeMapSync;

use key::Key;
use node::Node;

/// All zones and records. Cheap to share behind an `Arc`; lookups from any number of threads.
#[derive(Debug, Default)]
pub struct Zones {
    current: ArcSwap<Snapshot>,
    /// What each owner has put in: the key to change it. The lock orders writers; readers never take it.
    owned: Mutex<HashMap<String, Vec<Record>>>,
}

/// What a zone says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneConfig {
    /// Name of the apex.
    pub origin: Name,
    /// Names of the servers of the zone, the primary first; at least one. Their addresses are ordinary records.
    pub nameservers: Vec<Name>,
    /// Mailbox of who is responsible, as a name.
    pub contact: Name,
    /// First serial. A server that starts anew must not go back: seconds since 1970, or a revision, both do.
    pub serial: u32,
    /// TTL in seconds of the SOA and NS records.
    pub ttl: u32,
    /// How long in seconds a client may remember that something does not exist (RFC 2308, section 4).
    pub negative_ttl: u32,
}

impl Zones {
    /// Nothing yet: every query is refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the zone, or changes what it says of itself; says whether that changed anything.
    ///
    /// The serial of a zone that is here goes on from its own or that of `config`, whichever is larger.
    pub fn add_zone(&self, config: ZoneConfig) -> Result<bool, ZoneError> {
        let origin = Key::of(&config.origin);
        if config.nameservers.is_empty() {
            return Err(ZoneError::NoNameserver { origin: config.origin });
        }
        // Nobody panics while holding the lock, and the snapshot is whole whatever happens.
        let _writers = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.current.load_full().as_ref().clone();
        let zone = match next.zones.get(&origin) {
            Some(known) => {
                let serial = known.soa.data.serial;
                let says_the_same = known.config == ZoneConfig { serial: known.config.serial, ..config.clone() };
                if says_the_same && config.serial <= serial {
                    return Ok(false);
                }
                Zone::new(ZoneConfig { serial: config.serial.max(serial.wrapping_add(1)), ..config })
            }
            None => Zone::new(config),
        };
        next.zones.insert_mut(origin, Arc::new(zone));
        self.current.store(Arc::new(next));
        Ok(true)
    }

    /// Removes the zone; says whether it was here. Its records stay, and are served by the zone above, if there is one.
    pub fn remove_zone(&self, origin: &Name) -> bool {
        let _writers = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.current.load_full().as_ref().clone();
        let removed = next.zones.remove_mut(&Key::of(origin));
        self.current.store(Arc::new(next));
        removed
    }

    /// Makes `records` all that `owner` has; says whether that changed anything.
    ///
    /// `owner` names a resource, for example `Instance/default/hello`. Several owners may have records of one name and
    /// type, which are then answered together, each once, with the least of their TTLs. On error, nothing is changed.
    pub fn upsert(&self, owner: &str, records: Vec<Record>) -> Result<bool, ZoneError> {
        let records = records.into_iter().map(accepted).collect::<Result<Vec<_>, _>>()?;
        let mut owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        let before = owned.get(owner).map(Vec::as_slice).unwrap_or_default();
        if same(before.iter(), records.iter()) {
            return Ok(false);
        }
        let next = self.current.load().with(owner, before, &records)?;
        self.current.store(Arc::new(next));
        if records.is_empty() {
            owned.remove(owner);
        } else {
            owned.insert(owner.to_owned(), records);
        }
        Ok(true)
    }

    /// Takes away all that `owner` has; says whether there was anything.
    pub fn remove(&self, owner: &str) -> bool {
        // Taking away never conflicts with anything.
        self.upsert(owner, Vec::new()).unwrap_or(false)
    }

    /// The serial of a zone.
    pub fn serial(&self, origin: &Name) -> Option<u32> {
        self.current.load().zones.get(&Key::of(origin)).map(|zone| zone.soa.data.serial)
    }

    /// What there is of `rtype` at `name`; `None` if no zone of ours is at or above it. See [`Answer`].
    ///
    /// Records in the answer have the spelling of `name`, upper and lower case included.
    pub fn lookup(&self, name: &Name, rtype: RecordType) -> Option<Answer> {
        lookup::lookup(&self.current.load(), name, rtype)
    }
}

/// Why a zone or records were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// A zone needs a server to be asked.
    #[error("the zone {origin} names no name server; name at least one")]
    NoNameserver {
        /// Apex of the zone.
        origin: Name,
    },
    /// The type cannot be owned.
    #[error("records of type {rtype} cannot be set (at {name}); use A, AAAA, CAA, CNAME, MX, NS, PTR, SRV or TXT")]
    Type {
        /// Name of the record.
        name: Name,
        /// Its type.
        rtype: RecordType,
    },
    /// The class is not that of the Internet.
    #[error("the record at {name} is not of class IN, which is the only one that is served")]
    Class {
        /// Name of the record.
        name: Name,
    },
    /// RFC 1034, section 3.6.2: an alias has no other data, and is one.
    #[error("{name} would be a CNAME and have other records or another CNAME, also of {other}; remove one of them")]
    Alias {
        /// Name of the records.
        name: Name,
        /// An owner of one of the others.
        other: String,
    },
}

/// One state of everything.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    names: RedBlackTreeMapSync<Key, Arc<Node>>,
    zones: RedBlackTreeMapSync<Key, Arc<Zone>>,
}

#[derive(Debug, Clone)]
struct Zone {
    config: ZoneConfig,
    soa: Record<SOA>,
    ns: Vec<Record>,
}

impl Zone {
    fn new(config: ZoneConfig) -> Self {
        let ZoneConfig { origin, nameservers, contact, serial, ttl, negative_ttl } = config.clone();
        let origin = absolute(origin);
        let primary = nameservers.first().cloned().unwrap_or_default();
        // Nobody transfers our zones, so refresh, retry and expiry are only the customary ones.
        let soa = SOA::new(absolute(primary), absolute(contact), serial, 3600, 600, 604_800, negative_ttl);
        let ns = |name| Record::from_rdata(origin.clone(), ttl, RData::NS(NS(absolute(name))));
        Self { ns: nameservers.into_iter().map(ns).collect(), soa: Record::from_rdata(origin, ttl, soa), config }
    }
}

impl Snapshot {
    /// The state in which `owner` has `after` instead of `before`.
    fn with(&self, owner: &str, before: &[Record], after: &[Record]) -> Result<Self, ZoneError> {
        let mut by_name: BTreeMap<Key, (Vec<&Record>, Vec<&Record>)> = BTreeMap::new();
        for record in before {
            by_name.entry(Key::of(&record.name)).or_default().0.push(record);
        }
        for record in after {
            by_name.entry(Key::of(&record.name)).or_default().1.push(record);
        }
        let owner: Arc<str> = owner.into();
        let mut next = self.clone();
        let mut touched = BTreeSet::new();
        for (name, (before, after)) in by_name {
            if same(before.iter().copied(), after.iter().copied()) {
                continue;
            }
            let node = self.names.get(&name).map(|node| node.as_ref().clone()).unwrap_or_default();
            let node = node.with(&owner, &after)?;
            if let Some((_, zone)) = self.zone_of(&name) {
                touched.insert(Key::of(&zone.soa.name));
            }
            if node.is_empty() {
                next.names.remove_mut(&name);
            } else {
                next.names.insert_mut(name, Arc::new(node));
            }
        }
        for origin in touched {
            if let Some(zone) = self.zones.get(&origin) {
                let mut zone = zone.as_ref().clone();
                // RFC 1982: serials wrap around.
                zone.soa.data.serial = zone.soa.data.serial.wrapping_add(1);
                next.zones.insert_mut(origin, Arc::new(zone));
            }
        }
        Ok(next)
    }

    /// The deepest zone at or above `name`, and its key.
    fn zone_of<'k>(&self, name: &'k Key) -> Option<(&'k [u8], &Arc<Zone>)> {
        name.with_ancestors().find_map(|at| Some((at, self.zones.get(at)?)))
    }
}

/// The record as it is kept, if it may be.
fn accepted(mut record: Record) -> Result<Record, ZoneError> {
    let rtype = record.record_type();
    match rtype {
        RecordType::A
        | RecordType::AAAA
        | RecordType::CAA
        | RecordType::CNAME
        | RecordType::MX
        | RecordType::NS
        | RecordType::PTR
        | RecordType::SRV
        | RecordType::TXT => {}
        _ => return Err(ZoneError::Type { name: record.name, rtype }),
    }
    if record.dns_class != DNSClass::IN {
        return Err(ZoneError::Class { name: record.name });
    }
    record.name.set_fqdn(true);
    Ok(record)
}

/// Whether nothing changes. The equality of records leaves out the TTL (RFC 2136, section 1.1.1).
fn same<'r>(before: impl Iterator<Item = &'r Record>, after: impl Iterator<Item = &'r Record>) -> bool {
    before.map(|record| (record.ttl, record)).eq(after.map(|record| (record.ttl, record)))
}

/// `a.b` and `a.b.` are two names to hickory and one to us.
fn absolute(mut name: Name) -> Name {
    name.set_fqdn(true);
    name
}

#[cfg(test)]
mod tests;
