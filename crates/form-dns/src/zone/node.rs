use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use hickory_proto::rr::{Record, RecordType};

use super::ZoneError;

/// What stands at one name: who put in what, and what is answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    /// By owner; never an empty list.
    owned: BTreeMap<Arc<str>, Arc<[Record]>>,
    /// By type; made of `owned`. Few types stand at one name, so a list beats a map.
    answers: Vec<(RecordType, Arc<[Record]>)>,
}

impl Node {
    /// The node in which `owner` has `records`, all of which are of this name.
    pub(super) fn with(mut self, owner: &Arc<str>, records: &[&Record]) -> Result<Self, ZoneError> {
        self.owned.remove(owner);
        if !records.is_empty() {
            self.check_alias(records)?;
            self.owned.insert(Arc::clone(owner), records.iter().map(|&record| record.clone()).collect());
        }
        self.answers = answers(self.owned.values().flat_map(|records| records.iter()));
        Ok(self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.owned.is_empty()
    }

    pub(super) fn get(&self, rtype: RecordType) -> Option<&[Record]> {
        self.answers.iter().find(|(known, _)| *known == rtype).map(|(_, records)| records.as_ref())
    }

    /// The least TTL of all that stands here.
    pub(super) fn ttl(&self) -> u32 {
        self.answers.iter().flat_map(|(_, records)| records.first()).map(|record| record.ttl).min().unwrap_or(0)
    }

    /// RFC 2181, section 10.1: one CNAME, and nothing beside it. `self` holds the other owners.
    fn check_alias(&self, records: &[&Record]) -> Result<(), ZoneError> {
        let others =
            self.owned.iter().flat_map(|(owner, records)| records.iter().map(move |record| (&**owner, record)));
        let own = records.iter().map(|&record| ("the same owner", record));
        let is_alias = |record: &Record| record.record_type() == RecordType::CNAME;
        let all: Vec<_> = others.chain(own).collect();
        let Some((_, alias)) = all.iter().find(|(_, record)| is_alias(record)) else { return Ok(()) };
        match all.iter().find(|(_, record)| record.data != alias.data) {
            Some((other, record)) => Err(ZoneError::Alias { name: record.name.clone(), other: (*other).to_owned() }),
            None => Ok(()),
        }
    }
}

/// RRsets: by RFC 2181, sections 5 and 5.2, each record once, and one TTL for all.
fn answers<'r>(records: impl Iterator<Item = &'r Record>) -> Vec<(RecordType, Arc<[Record]>)> {
    let mut sets: BTreeMap<RecordType, (u32, Vec<&Record>)> = BTreeMap::new();
    let mut seen = HashSet::new();
    for record in records {
        let (ttl, set) = sets.entry(record.record_type()).or_insert((record.ttl, Vec::new()));
        *ttl = record.ttl.min(*ttl);
        if seen.insert(&record.data) {
            set.push(record);
        }
    }
    let with_ttl = |ttl, record: &Record| Record::from_rdata(record.name.clone(), ttl, record.data.clone());
    sets.into_iter()
        .map(|(rtype, (ttl, set))| (rtype, set.into_iter().map(|record| with_ttl(ttl, record)).collect()))
        .collect()
}
