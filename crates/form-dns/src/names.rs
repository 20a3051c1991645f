//! From the cluster's resources to names.
//!
//! | resource | what is answered |
//! | --- | --- |
//! | an Instance that runs, and is not known to be ill | A and AAAA of INSTANCE.PROJECT.ZONE, PTR of its addresses, SRV `_PORT._tcp` of its ports |
//! | a Node | the reverse zones of its prefixes |
//! | a Zone | a zone, unless its domain is the cluster's or lies in another project's |
//! | a Record | an RRset, in its Zone or in the project's part of the cluster's zone |

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use form_client::reconcile::Nudge;
use form_client::{Action, Client, Controller, Name as ResourceName};
use form_service::Health;
use form_types::v1::instance_health::State as HealthState;
use form_types::v1::instance_status::Phase;
use form_types::v1::port::Protocol;
use form_types::v1::{InstanceStatus, RecordStatus, ZoneStatus, record_spec};
use form_types::{Object, kinds};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;

use crate::zone::{ZoneConfig, Zones, reverse_name, reverse_zones};

/// Seconds that an answer may be kept where nobody says.
const DEFAULT_TTL: u32 = 60;
/// How long it may be remembered that a name does not exist; short, because instances come and go.
const NEGATIVE_TTL: u32 = 5;
/// A record that waits for its zone looks again this often, besides when the zone comes.
const ZONE_PATIENCE: Duration = Duration::from_secs(60);

/// What all controllers share.
pub(crate) struct Names {
    pub(crate) client: Client,
    pub(crate) zones: Arc<Zones>,
    pub(crate) health: Health,
    /// The cluster's zone.
    pub(crate) cluster: Name,
    pub(crate) instance_ttl: u32,
    /// The users' zones that are served: which resource's, and its default TTL.
    pub(crate) served: Mutex<HashMap<Name, (ResourceName, u32)>>,
}

impl Names {
    /// What a zone of ours says of itself. The serial is the time, so that it does not go back when we start anew.
    pub(crate) fn zone(&self, origin: Name, ttl: u32) -> ZoneConfig {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_secs());
        let under = |label: &str| Name::from_ascii(label).and_then(|name| name.append_domain(&self.cluster));
        ZoneConfig {
            origin,
            nameservers: under("ns").into_iter().collect(),
            contact: under("hostmaster").unwrap_or_else(|_| self.cluster.clone()),
            serial: u32::try_from(now % (1 << 32)).unwrap_or(1),
            ttl,
            negative_ttl: NEGATIVE_TTL.min(ttl),
        }
    }

    fn served(&self) -> std::sync::MutexGuard<'_, HashMap<Name, (ResourceName, u32)>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of instances.
pub(crate) struct Instances(pub(crate) Arc<Names>);

impl Controller for Instances {
    type Kind = kinds::Instance;
    type Error = crate::ZoneError;

    async fn reconcile(
        &self,
        name: &ResourceName,
        wanted: Option<Object<kinds::Instance>>,
    ) -> Result<Action, crate::ZoneError> {
        let records = wanted.map(|instance| self.records(&instance)).unwrap_or_default();
        self.0.zones.upsert(&format!("Instance/{name}"), records)?;
        Ok(Action::Wait)
    }

    async fn listed(&self, all: &[Object<kinds::Instance>]) {
        // Before the first answer: a name that exists must not be denied because it has not been looked at yet.
        for instance in all {
            if let Err(error) =
                self.0.zones.upsert(&format!("Instance/{}", ResourceName::of(instance)), self.records(instance))
            {
                tracing::warn!(%error, "an instance has no name");
            }
        }
        self.0.health.done("instances");
    }
}

impl Instances {
    fn records(&self, instance: &Object<kinds::Instance>) -> Vec<Record> {
        let ttl = self.0.instance_ttl;
        let runs = instance.status.phase() == Phase::Running && !instance.is_being_deleted();
        let host = |name: &str| {
            Name::from_ascii(format!("{name}.{}", instance.meta.project))
                .and_then(|name| name.append_domain(&self.0.cluster))
        };
        let (true, Ok(own)) = (runs && serves(&instance.status), host(&instance.meta.name)) else { return Vec::new() };
        let mut records = named(instance, &own, ttl);
        for address in addresses(instance) {
            records.push(Record::from_rdata(reverse_name(address), ttl, RData::PTR(PTR(own.clone()))));
        }
        records
    }
}

/// Whether it is well, as far as anybody asks: a package without a health check is well where it runs.
fn serves(status: &InstanceStatus) -> bool {
    status.health.as_ref().is_none_or(|health| health.state() == HealthState::Healthy)
}

fn addresses(instance: &Object<kinds::Instance>) -> impl Iterator<Item = IpAddr> {
    instance.status.addresses.iter().filter_map(|address| address.parse().ok())
}

/// What is answered under `host` for the instance: its addresses and its ports.
fn named(instance: &Object<kinds::Instance>, host: &Name, ttl: u32) -> Vec<Record> {
    let mut records = Vec::new();
    for address in addresses(instance) {
        let data = match address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        records.push(Record::from_rdata(host.clone(), ttl, data));
    }
    for port in &instance.status.ports {
        let protocol = if port.protocol() == Protocol::Udp { "_udp" } else { "_tcp" };
        let service = Name::from_ascii(format!("_{}.{protocol}", port.port)).and_then(|name| name.append_domain(host));
        if let (Ok(service), Ok(number)) = (service, u16::try_from(port.port)) {
            let data = RData::SRV(SRV::new(0, 0, number, host.clone()));
            records.push(Record::from_rdata(service, ttl, data));
        }
    }
    records
}

/// The reverse zones of nodes.
pub(crate) struct Nodes(pub(crate) Arc<Names>);

impl Controller for Nodes {
    type Kind = kinds::Node;
    type Error = crate::ZoneError;

    async fn reconcile(
        &self,
        _: &ResourceName,
        wanted: Option<Object<kinds::Node>>,
    ) -> Result<Action, crate::ZoneError> {
        // The zones of a node that left stay: they are the cluster's own ranges, and hold nothing any more.
        let Some(node) = wanted else { return Ok(Action::Wait) };
        let prefixes = [&node.spec.ipv4_prefix, &node.spec.ipv6_prefix].into_iter();
        for origin in prefixes.filter_map(|prefix| prefix.parse::<IpNet>().ok()).flat_map(reverse_zones) {
            if self.0.zones.serial(&origin).is_none() {
                self.0.zones.add_zone(self.0.zone(origin, DEFAULT_TTL))?;
            }
        }
        Ok(Action::Wait)
    }
}

/// The zones of users.
pub(crate) struct UserZones {
    pub(crate) names: Arc<Names>,
    pub(crate) records: Nudge,
}

impl Controller for UserZones {
    type Kind = kinds::Zone;
    type Error = form_client::Error;

    async fn reconcile(
        &self,
        name: &ResourceName,
        wanted: Option<Object<kinds::Zone>>,
    ) -> Result<Action, form_client::Error> {
        let origin = wanted.as_ref().and_then(|zone| Name::from_ascii(format!("{}.", zone.spec.domain)).ok());
        self.drop_all_but(name, origin.as_ref());
        if let Some(mut zone) = wanted {
            let message = match origin {
                Some(origin) => self.serve(name, origin, zone.spec.ttl.unwrap_or(DEFAULT_TTL)),
                None => Err(format!("{:?} is no domain name", zone.spec.domain)),
            };
            zone.status = ZoneStatus { ready: message.is_ok(), message: message.err().unwrap_or_default() };
            settle(self.names.client.update_status(zone).await)?;
        }
        for record in self.names.client.list::<kinds::Record>(&name.project).await?.items {
            if record.spec.zone == name.name {
                self.records.nudge(ResourceName::of(&record)).await;
            }
        }
        Ok(Action::Wait)
    }

    async fn listed(&self, _: &[Object<kinds::Zone>]) {
        self.names.health.done("zones");
    }
}

impl UserZones {
    /// Takes away what this resource had served under other domains.
    fn drop_all_but(&self, name: &ResourceName, keep: Option<&Name>) {
        let mut served = self.names.served();
        served.retain(|origin, (owner, _)| {
            let keep = owner != name || Some(origin) == keep;
            if !keep {
                self.names.zones.remove_zone(origin);
            }
            keep
        });
    }

    fn serve(&self, name: &ResourceName, origin: Name, ttl: u32) -> Result<(), String> {
        if self.names.cluster.zone_of(&origin) || origin.zone_of(&self.names.cluster) {
            return Err(format!("{origin} overlaps the cluster's own zone, {}", self.names.cluster));
        }
        let mut served = self.names.served();
        let others = served.iter().find(|(other, (owner, _))| {
            owner.project != name.project && (other.zone_of(&origin) || origin.zone_of(other))
        });
        if let Some((other, (owner, _))) = others {
            return Err(format!("{origin} overlaps {other}, which project {} has", owner.project));
        }
        let known = served.insert(origin.clone(), (name.clone(), ttl));
        if known.is_none_or(|(_, known)| known != ttl) {
            self.names.zones.add_zone(self.names.zone(origin, ttl)).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// The records of users.
pub(crate) struct Records(pub(crate) Arc<Names>);

impl Controller for Records {
    type Kind = kinds::Record;
    type Error = form_client::Error;

    async fn reconcile(
        &self,
        name: &ResourceName,
        wanted: Option<Object<kinds::Record>>,
    ) -> Result<Action, form_client::Error> {
        let owner = format!("Record/{name}");
        let Some(mut record) = wanted else {
            self.0.zones.remove(&owner);
            return Ok(Action::Wait);
        };
        let (made, action) = match self.place(&record) {
            Some((origin, ttl)) => (rrset(&record, &origin, ttl), Action::Wait),
            None => {
                let text =
                    format!("there is no zone {:?} in project {} that is served", record.spec.zone, name.project);
                (Err(text), Action::After(ZONE_PATIENCE))
            }
        };
        // What was served before is taken away where it can no longer be: an answer must not outlive what it came from.
        let (records, mut problem) = match made {
            Ok(records) => (records, None),
            Err(problem) => (Vec::new(), Some(problem)),
        };
        if let Err(error) = self.0.zones.upsert(&owner, records) {
            problem = Some(error.to_string());
        }
        record.status = RecordStatus { ready: problem.is_none(), message: problem.unwrap_or_default() };
        settle(self.0.client.update_status(record).await)?;
        Ok(action)
    }

    async fn listed(&self, _: &[Object<kinds::Record>]) {
        self.0.health.done("records");
    }
}

impl Records {
    /// The zone that the record belongs to, and the TTL that it has where it says nothing.
    fn place(&self, record: &Object<kinds::Record>) -> Option<(Name, u32)> {
        let project = &record.meta.project;
        if record.spec.zone.is_empty() {
            let origin = Name::from_ascii(project).and_then(|name| name.append_domain(&self.0.cluster));
            return Some((origin.ok()?, DEFAULT_TTL));
        }
        let owner = ResourceName { project: project.clone(), name: record.spec.zone.clone() };
        let served = self.0.served();
        served.iter().find(|(_, (zone, _))| *zone == owner).map(|(origin, (_, ttl))| (origin.clone(), *ttl))
    }
}

/// The record's RRset, or what is wrong with it.
fn rrset(record: &Object<kinds::Record>, origin: &Name, ttl: u32) -> Result<Vec<Record>, String> {
    let spec = &record.spec;
    let name = match spec.name.as_str() {
        "@" => origin.clone(),
        name => Name::from_ascii(name)
            .and_then(|name| name.append_domain(origin))
            .map_err(|error| format!("spec.name: {:?}: {error}", spec.name))?,
    };
    let rtype = match spec.r#type() {
        record_spec::Type::Unset => return Err("spec.type: missing".to_owned()),
        record_spec::Type::A => RecordType::A,
        record_spec::Type::Aaaa => RecordType::AAAA,
        record_spec::Type::Cname => RecordType::CNAME,
        record_spec::Type::Mx => RecordType::MX,
        record_spec::Type::Ns => RecordType::NS,
        record_spec::Type::Ptr => RecordType::PTR,
        record_spec::Type::Srv => RecordType::SRV,
        record_spec::Type::Txt => RecordType::TXT,
        record_spec::Type::Caa => RecordType::CAA,
    };
    let ttl = spec.ttl.unwrap_or(ttl);
    let parse = |(index, text): (usize, &String)| {
        let wrong = |error: &dyn std::fmt::Display| {
            format!("spec.data[{index}]: {text:?} is no data of a {rtype} record: {error}")
        };
        let mut data = RData::try_from_str(rtype, text).map_err(|error| wrong(&error))?;
        // A name without a dot at its end is the zone's (RFC 1035, section 5.1).
        if let Some(target) = target(&mut data).filter(|target| !target.is_fqdn()) {
            *target = target.clone().append_domain(origin).map_err(|error| wrong(&error))?;
        }
        Ok(Record::from_rdata(name.clone(), ttl, data))
    };
    spec.data.iter().enumerate().map(parse).collect()
}

/// The name that the data points to, where it does.
fn target(data: &mut RData) -> Option<&mut Name> {
    match data {
        RData::CNAME(data) => Some(&mut data.0),
        RData::NS(data) => Some(&mut data.0),
        RData::PTR(data) => Some(&mut data.0),
        RData::MX(data) => Some(&mut data.exchange),
        RData::SRV(data) => Some(&mut data.target),
        _ => None,
    }
}

/// A status that is out of date by the time it is written is written again when the change comes.
fn settle<T>(written: Result<T, form_client::Error>) -> Result<(), form_client::Error> {
    match written {
        Ok(_) | Err(form_client::Error::Conflict(_) | form_client::Error::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use form_types::v1::RecordSpec;

    use super::*;

    fn data(rtype: record_spec::Type, text: &str) -> Result<String, String> {
        let spec =
            RecordSpec { name: "www".into(), r#type: rtype.into(), data: vec![text.to_owned()], ..Default::default() };
        let record = Object::<kinds::Record>::new("p", "r", spec);
        let origin = Name::from_ascii("example.org.").unwrap();
        Ok(rrset(&record, &origin, 60)?[0].data.to_string())
    }

    #[test]
    fn rfc1035_5_1_a_name_without_a_dot_at_its_end_is_the_zones() {
        use record_spec::Type;
        let told = [(Type::Cname, "web"), (Type::Mx, "10 web"), (Type::Srv, "0 0 80 web"), (Type::Ns, "web")];
        for (rtype, text) in told {
            assert!(data(rtype, text).unwrap().ends_with("web.example.org."), "{text}");
            assert!(data(rtype, &format!("{text}.")).unwrap().ends_with("web."), "{text}.");
        }
        assert!(data(Type::A, "web").unwrap_err().starts_with("spec.data[0]: \"web\" is no data of a A record"));
    }
}
