//! Instances: an address for those that are placed here, and the network's rules for all.
//!
//! Every step finds its place again after a crash: addresses are claimed in the store before anything has them; rules,
//! bridge and tap are there before vmm-service hears of the tap; all of it goes only after the instance is gone.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use form_client::{Action, Client, Controller, Name};
use form_guest::MacAddr;
use form_service::Health;
use form_types::v1::{InstanceInterface, InstanceStatus};
use form_types::{Kind as _, Object, kinds};
use ipnet::IpNet;

use super::ControlError;
use crate::address::{Addresses, mac};
use crate::known::Known;
use crate::links::{bridge_name, tap_name};
use crate::plane::{Bridge, Owner, Plane, Share};
use crate::rules::{Element, Protocol};

type Instance = Object<kinds::Instance>;

pub(super) struct Instances {
    pub(super) client: Client,
    pub(super) plane: Plane,
    pub(super) known: Known,
    pub(super) health: Health,
    pub(super) here: Here,
    /// Where the search for a free address goes on, so that one that was given back rests for a while.
    pub(super) next: AtomicU32,
}

/// What makes an instance this node's.
#[derive(Clone, Debug)]
pub(super) struct Here {
    pub(super) node: Arc<str>,
    pub(super) addresses: Addresses,
}

impl Controller for Instances {
    type Kind = kinds::Instance;
    type Error = ControlError;

    async fn reconcile(&self, name: &Name, wanted: Option<Instance>) -> Result<Action, ControlError> {
        let Some(instance) = wanted else {
            self.known.gone::<kinds::Instance>(&name.project, &name.name).await;
            self.plane.set(owner(&name.project, &name.name), None).await?;
            return Ok(Action::Wait);
        };
        // Changed or gone meanwhile: that news is on its way, and brings us back.
        let Some(instance) = self.with_addresses(instance).await? else { return Ok(Action::Wait) };
        let share = self.here.share(&instance);
        self.known.put(instance.clone()).await;
        self.plane.set(owner(&name.project, &name.name), Some(share)).await?;
        self.tell(instance).await?;
        Ok(Action::Wait)
    }

    async fn listed(&self, all: &[Instance]) {
        self.known.only(all).await;
        let owners: HashSet<Owner> = all.iter().map(|it| owner(&it.meta.project, &it.meta.name)).collect();
        super::sweep(&self.plane, kinds::Instance::INFO.name, owners).await;
        self.health.done("instances");
    }
}

impl Instances {
    /// The instance with addresses of this node, if it is placed here: they are claimed in the store before anything has
    /// them. `None`: it is not as it was.
    async fn with_addresses(&self, mut instance: Instance) -> Result<Option<Instance>, ControlError> {
        if !self.here.has(&instance) || instance.is_being_deleted() || self.here.addressed(&instance.status) {
            return Ok(Some(instance));
        }
        let numbers = self.here.addresses.numbers();
        for _ in numbers.clone() {
            let number = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |number| {
                Some(if number >= *numbers.end() { *numbers.start() } else { number + 1 })
            });
            let (v4, v6) = self.here.addresses.host(number.unwrap_or_else(|number| number));
            instance.status.addresses = vec![v4.to_string(), v6.to_string()];
            // Of another node, if there is one.
            instance.status.interface = None;
            match self.client.update_status(instance.clone()).await {
                Err(form_client::Error::AlreadyExists(_)) => {}
                Err(form_client::Error::Conflict(_) | form_client::Error::NotFound(_)) => return Ok(None),
                result => return Ok(Some(result?)),
            }
        }
        Err(ControlError::NoAddress)
    }

    /// Says that the tap is there.
    async fn tell(&self, mut instance: Instance) -> Result<(), ControlError> {
        let mtu = self.plane.view(|view| view.mtu);
        let Some(interface) = self.here.interface(&instance, mtu) else { return Ok(()) };
        if instance.status.interface.as_ref() == Some(&interface) {
            return Ok(());
        }
        instance.status.interface = Some(interface);
        match self.client.update_status(instance).await {
            // Changed or gone meanwhile: that news is on its way, and brings us back.
            Ok(_) | Err(form_client::Error::Conflict(_) | form_client::Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Here {
    fn has(&self, instance: &Instance) -> bool {
        *instance.status.node == *self.node
    }

    /// Whether its addresses are all of this node's prefixes; those that it had on another node are no good here.
    fn addressed(&self, status: &InstanceStatus) -> bool {
        !status.addresses.is_empty() && addresses(status).all(|address| self.addresses.contains(address))
    }

    /// The rules of an instance anywhere; and of one that is here its tap, its bridge and its published ports.
    pub(super) fn share(&self, instance: &Instance) -> Share {
        let (meta, status) = (&instance.meta, &instance.status);
        let network = if instance.spec.network.is_empty() { "default" } else { &instance.spec.network };
        let bridge = bridge_name(&meta.project, network);
        let mut share = Share::default();
        for address in addresses(status) {
            share.elements.insert(Element::Member { address, bridge: bridge.clone() });
        }
        if !self.has(instance) || !self.addressed(status) {
            return share;
        }
        let mac = self.mac(status);
        for address in addresses(status) {
            let tap = tap_name(&meta.uid);
            share.elements.extend(mac.map(|mac| Element::Owner { tap: tap.clone(), mac: mac.0, address }));
            share.routes.push(IpNet::from(address));
            for published in &instance.spec.publish {
                let port = |number: u32| u16::try_from(number).ok();
                let (Some(host_port), Some(port)) = (port(published.host_port), port(published.port)) else { continue };
                let protocol = match published.protocol() {
                    form_types::v1::port::Protocol::Tcp => Protocol::Tcp,
                    form_types::v1::port::Protocol::Udp => Protocol::Udp,
                };
                share.elements.insert(Element::Publish { protocol, host_port, to: SocketAddr::new(address, port) });
            }
        }
        share.bridge = Some(Bridge { name: bridge, owner: format!("network:{}/{network}", meta.project) });
        share.tap = Some(meta.uid.clone());
        share
    }

    /// What vmm-service and the guest are told; `None`: it is not here, or not addressed yet.
    fn interface(&self, instance: &Instance, mtu: u32) -> Option<InstanceInterface> {
        let status = &instance.status;
        if !self.has(instance) || !self.addressed(status) {
            return None;
        }
        let (v4, v6) = self.addresses.host(1);
        Some(InstanceInterface {
            tap: tap_name(&instance.meta.uid),
            mac: self.mac(status)?.to_string(),
            addresses: addresses(status).map(|address| self.addresses.with_length(address).to_string()).collect(),
            gateways: vec![v4.to_string(), v6.to_string()],
            mtu,
        })
    }

    fn mac(&self, status: &InstanceStatus) -> Option<MacAddr> {
        addresses(status).find_map(|address| match address {
            IpAddr::V4(address) => Some(mac(address)),
            IpAddr::V6(_) => None,
        })
    }
}

pub(super) fn owner(project: &str, name: &str) -> Owner {
    Owner { kind: kinds::Instance::INFO.name, project: project.to_owned(), name: name.to_owned() }
}

fn addresses(status: &InstanceStatus) -> impl Iterator<Item = IpAddr> {
    status.addresses.iter().filter_map(|address| address.parse().ok())
}

#[cfg(test)]
mod tests {
    use form_types::v1::{InstanceSpec, NodeSpec, PublishedPort};

    use super::*;

    fn here() -> Here {
        let spec = NodeSpec {
            ipv4_prefix: "100.64.3.0/24".into(),
            ipv6_prefix: "fd00:1:2:3::/64".into(),
            ..Default::default()
        };
        Here { node: "one".into(), addresses: Addresses::of(&spec).unwrap() }
    }

    fn instance(node: &str, addresses: &[&str]) -> Instance {
        let publish = vec![PublishedPort { host_port: 8080, port: 80, protocol: 0 }];
        let mut instance = Instance::new("p", "web", InstanceSpec { publish, ..Default::default() });
        instance.meta.uid = "0198-a".into();
        instance.status.node = node.into();
        instance.status.addresses = addresses.iter().map(|&address| address.to_owned()).collect();
        instance
    }

    #[test]
    fn an_instance_elsewhere_is_a_member_of_its_network_and_nothing_more() {
        let share = here().share(&instance("two", &["100.64.4.2", "fd00:1:2:4::2"]));
        assert_eq!(share.elements.len(), 2);
        assert!(share.elements.iter().all(|element| matches!(element, Element::Member { .. })));
        assert_eq!((share.bridge, share.tap, share.routes), (None, None, vec![]));
    }

    #[test]
    fn an_instance_here_has_a_tap_that_may_send_from_its_addresses_alone() {
        let (here, instance) = (here(), instance("one", &["100.64.3.2", "fd00:1:2:3::2"]));
        let share = here.share(&instance);
        let owners = share.elements.iter().filter(|element| matches!(element, Element::Owner { .. }));
        assert_eq!(owners.count(), 2);
        let published = share.elements.iter().filter(|element| matches!(element, Element::Publish { .. }));
        assert_eq!(published.count(), 2);
        assert_eq!(share.tap.as_deref(), Some("0198-a"));
        assert_eq!(share.routes.len(), 2);
        let interface = here.interface(&instance, 1420).unwrap();
        assert_eq!(interface.addresses, ["100.64.3.2/24", "fd00:1:2:3::2/64"]);
        assert_eq!(interface.gateways, ["100.64.3.1", "fd00:1:2:3::1"]);
        assert_eq!((interface.mac.as_str(), interface.mtu), ("02:f0:64:40:03:02", 1420));
    }

    #[test]
    fn addresses_of_another_node_are_no_good_here() {
        let (here, instance) = (here(), instance("one", &["100.64.4.2", "fd00:1:2:4::2"]));
        assert!(!here.addressed(&instance.status));
        assert!(here.interface(&instance, 1420).is_none());
        assert_eq!(here.share(&instance).tap, None);
    }
}
