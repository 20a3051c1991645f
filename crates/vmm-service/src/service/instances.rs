//! Makes the machines of this node what the instances that are placed here say.
//!
//! Every step finds its place again after a crash: a machine waits for the network card that formnet makes for it; its
//! spec is on disk before it starts; an instance goes only after all of its machine is gone.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use form_client::reconcile::Nudge;
use form_client::{Action, Client, Controller, Name};
use form_guest::{Gateways, GuestConfig, HealthCheck, Interface};
use form_service::Health;
use form_types::v1::instance_health::State as HealthState;
use form_types::v1::instance_spec::Power;
use form_types::v1::instance_status::Phase as InstancePhase;
use form_types::v1::package_spec::Restart;
use form_types::v1::{InstanceHealth, InstanceInterface, InstanceStatus, event_spec};
use form_types::{Object, kinds, timestamp};

use super::RunError;
use super::images::{ImageError, Images};
use crate::config::Config;
use crate::{Accelerator, Exit, Host, Nic, Phase, Port, RestartPolicy, Vm, VmSpec, VmStatus, open_all};

type Instance = Object<kinds::Instance>;

/// How long until what an instance waits for is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const DEFAULT_GRACE: u32 = 10;
const SIGTERM: i32 = 15;
/// Of health checks, as package.proto says.
const DEFAULT_INTERVAL: u32 = 30;
const DEFAULT_RETRIES: u32 = 3;

#[derive(Debug, thiserror::Error)]
pub(super) enum InstanceError {
    #[error(transparent)]
    Client(#[from] form_client::Error),
    #[error(transparent)]
    Machine(#[from] crate::Error),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("formnet told of a network card that cannot be used: {field} is {text:?}")]
    Interface { field: &'static str, text: String },
}

pub(super) struct Instances {
    client: Client,
    host: Arc<Host>,
    images: Images,
    config: Arc<Config>,
    nudge: Nudge,
    health: Health,
    machines: Mutex<Machines>,
}

#[derive(Default)]
struct Machines {
    by_uid: HashMap<String, Vm>,
    uid_of: HashMap<Name, String>,
}

impl Controller for Instances {
    type Kind = kinds::Instance;
    type Error = InstanceError;

    async fn reconcile(&self, name: &Name, wanted: Option<Instance>) -> Result<Action, InstanceError> {
        let here = wanted.filter(|instance| instance.status.node == self.config.node);
        let known = self.machines().uid_of.get(name).cloned();
        // Gone without us, or made anew under its old name: what is left of the machine has nobody who wants it.
        if let Some(uid) = known.filter(|uid| here.as_ref().is_none_or(|instance| instance.meta.uid != *uid)) {
            if !self.remove(&uid).await? {
                return Ok(Action::After(LOOK_AGAIN));
            }
            self.machines().uid_of.remove(name);
        }
        match here {
            None => Ok(Action::Wait),
            Some(instance) if instance.is_being_deleted() => self.delete(name, instance).await,
            Some(instance) => self.run(name, instance).await,
        }
    }

    async fn listed(&self, all: &[Instance]) {
        // Machines that were left behind by instances that are no more.
        let wanted: HashSet<&str> = all.iter().map(|instance| instance.meta.uid.as_str()).collect();
        let left: Vec<String> =
            self.machines().by_uid.keys().filter(|uid| !wanted.contains(uid.as_str())).cloned().collect();
        for uid in left {
            tracing::warn!(uid, "a machine whose instance is gone is removed");
            if let Err(error) = self.remove(&uid).await {
                tracing::warn!(error = form_service::run::chain(&error), "it cannot be removed");
            }
        }
        self.sweep().await;
        self.health.done("machines");
    }
}

impl Instances {
    /// Takes up every machine that is on this node already, running or not.
    pub(super) fn adopt(
        client: Client,
        host: Arc<Host>,
        images: Images,
        config: Arc<Config>,
        nudge: Nudge,
        health: Health,
    ) -> Result<Self, RunError> {
        let mut machines = Machines::default();
        for (uid, machine) in open_all(&host, Vm::open)? {
            match machine {
                Ok(machine) => drop(machines.by_uid.insert(uid, machine)),
                Err(error) => {
                    tracing::warn!(uid, error = form_service::run::chain(&error), "a machine cannot be taken up")
                }
            }
        }
        Ok(Self { client, host, images, config, nudge, health, machines: Mutex::new(machines) })
    }

    pub(super) fn accelerator(&self) -> Accelerator {
        self.host.accelerator
    }

    /// The machine of an instance on this node.
    pub(super) fn machine(&self, name: &Name) -> Option<Vm> {
        let machines = self.machines();
        machines.by_uid.get(machines.uid_of.get(name)?).cloned()
    }

    fn machines(&self) -> MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, name: &Name, instance: Instance) -> Result<Action, InstanceError> {
        let Some(card) = &instance.status.interface else {
            let text = "formnet has not given it an address and a tap yet".to_owned();
            self.tell(&instance, InstancePhase::Pending, "NoNetwork", text).await?;
            return Ok(Action::Wait);
        };
        let uid = &instance.meta.uid;
        let known = self.machines().by_uid.get(uid).cloned();
        let on = instance.spec.power() == Power::On;
        let machine = match known {
            // What it runs was decided when its spec was last changed; a new package waits for the next change.
            Some(machine) if machine.status().spec.generation == instance.meta.generation => {
                machine.set_power(on).await?;
                machine
            }
            known => {
                let guard = self.images.lock().await;
                let Some(spec) = self.spec(&instance, card).await? else {
                    let text = format!("there is no package {:?} in project {}", instance.spec.package, name.project);
                    self.tell(&instance, InstancePhase::Pending, "NoPackage", text).await?;
                    return Ok(Action::After(LOOK_AGAIN));
                };
                let machine = match known {
                    Some(machine) => {
                        machine.update(spec, on).await?;
                        machine
                    }
                    None => Vm::ensure(&self.host, spec, on)?,
                };
                drop(guard);
                machine
            }
        };
        self.follow(name, uid, &machine);
        self.publish(&instance, &machine.status()).await?;
        Ok(Action::Wait)
    }

    /// What the machine is to be, with its root disk here; `None`: there is no such package.
    async fn spec(&self, instance: &Instance, card: &InstanceInterface) -> Result<Option<VmSpec>, InstanceError> {
        let (meta, spec) = (&instance.meta, &instance.spec);
        let package = match self.client.get::<kinds::Package>(&meta.project, &spec.package).await {
            Ok(package) if package.status.ready => package,
            Ok(_) | Err(form_client::Error::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let base = self.images.ensure(&package.spec, &package.status).await?;
        let sizes = package.spec.sizes.unwrap_or_default();
        let interface = interface(card)?;
        let (mac, gateway) = (interface.mac, interface.gateway);
        let dns = gateway.v4.map(IpAddr::V4).into_iter().chain(gateway.v6.map(IpAddr::V6)).collect();
        let restart = if spec.restart.is_some() { spec.restart() } else { package.spec.restart() };
        let mut env = package.spec.env.clone();
        if !package.spec.model.is_empty() {
            env.entry("FORM_MODEL".to_owned()).or_insert_with(|| package.spec.model.clone());
        }
        env.extend(spec.env.clone());
        let guest = GuestConfig {
            version: form_guest::VERSION,
            hostname: meta.name.clone(),
            interfaces: vec![interface],
            dns,
            search: vec![format!("{}.{}", meta.project, self.config.zone), self.config.zone.clone()],
            hosts: Vec::new(),
            env,
            user: package.spec.user.clone(),
            workdir: package.spec.workdir.clone(),
            entrypoint: package.spec.entrypoint.clone(),
            grace_seconds: spec.grace_seconds.unwrap_or(DEFAULT_GRACE),
            stop_signal: package.spec.stop_signal.and_then(|signal| i32::try_from(signal).ok()).unwrap_or(SIGTERM),
            volumes: package.spec.volumes.clone(),
            health: package.spec.health_check.clone().map(|check| HealthCheck {
                command: check.command,
                interval_seconds: check.interval_seconds.unwrap_or(DEFAULT_INTERVAL),
                timeout_seconds: check.timeout_seconds.unwrap_or(DEFAULT_INTERVAL),
                start_period_seconds: check.start_period_seconds,
                retries: check.retries.unwrap_or(DEFAULT_RETRIES),
            }),
        };
        Ok(Some(VmSpec {
            uid: meta.uid.clone(),
            generation: meta.generation,
            package_digest: package.spec.digest,
            ports: package.spec.ports.iter().map(|port| Port { number: port.port, protocol: port.protocol }).collect(),
            vcpus: instance.status.vcpu,
            memory_mib: instance.status.memory_mib.into(),
            disk_mib: sizes.disk_mib.into(),
            base,
            nics: vec![Nic { mac, tap: card.tap.clone() }],
            guest,
            restart: match restart {
                Restart::Always => RestartPolicy::Always,
                Restart::OnFailure => RestartPolicy::OnFailure,
                Restart::Never => RestartPolicy::Never,
            },
        }))
    }

    /// Has the instance looked at whenever its machine changes.
    fn follow(&self, name: &Name, uid: &str, machine: &Vm) {
        let mut machines = self.machines();
        let new = machines.uid_of.insert(name.clone(), uid.to_owned()).as_deref() != Some(uid);
        machines.by_uid.insert(uid.to_owned(), machine.clone());
        if !new {
            return;
        }
        let (name, nudge, mut changes) = (name.clone(), self.nudge.clone(), machine.watch());
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                nudge.nudge(name.clone()).await;
            }
            // The machine is gone.
            nudge.nudge(name).await;
        });
    }

    async fn delete(&self, name: &Name, instance: Instance) -> Result<Action, InstanceError> {
        let uid = &instance.meta.uid;
        let machine = self.machines().by_uid.get(uid).cloned();
        if let Some(machine) = machine {
            self.follow(name, uid, &machine);
            if !self.remove(uid).await? {
                self.tell(&instance, InstancePhase::Stopping, "Deleting", String::new()).await?;
                // The machine's end nudges; the time is for where it cannot end.
                return Ok(Action::After(LOOK_AGAIN));
            }
        }
        self.client.finalize::<kinds::Instance>(&instance.meta).await?;
        self.machines().uid_of.remove(name);
        self.sweep().await;
        Ok(Action::Wait)
    }

    /// Whether nothing of the machine is left.
    async fn remove(&self, uid: &str) -> Result<bool, InstanceError> {
        let Some(machine) = self.machines().by_uid.get(uid).cloned() else { return Ok(true) };
        if machine.status().phase != Phase::Deleted {
            match machine.delete().await {
                // It went in this moment.
                Ok(()) | Err(crate::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let gone = machine.status().phase == Phase::Deleted;
        if gone {
            self.machines().by_uid.remove(uid);
        }
        Ok(gone)
    }

    /// Drops root disks that no machine is made from.
    async fn sweep(&self) {
        let _guard = self.images.lock().await;
        let machines: Vec<Vm> = self.machines().by_uid.values().cloned().collect();
        let used: HashSet<PathBuf> = machines.iter().map(|machine| machine.status().spec.base.clone()).collect();
        self.images.sweep(&used);
    }

    async fn publish(&self, instance: &Instance, machine: &VmStatus) -> Result<(), InstanceError> {
        let exit = machine.last_exit.as_ref();
        let (phase, reason, message) = told(machine);
        let status = InstanceStatus {
            reason: reason.to_owned(),
            message,
            exit_code: exit.and_then(exit_code),
            restarts: machine.restarts,
            started_at: machine.started_at.map(|seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds))),
            observed_generation: machine.generation,
            package_digest: machine.spec.package_digest.clone(),
            ports: ports(machine),
            health: health(machine),
            phase: phase.into(),
            ..instance.status.clone()
        };
        let before = instance.status.phase();
        let (was, is) = (judged(&instance.status), judged(&status));
        self.write(instance, status.clone()).await?;
        if was != is && matches!(is, HealthState::Healthy | HealthState::Unhealthy) {
            let kind = if is == HealthState::Healthy { event_spec::Type::Normal } else { event_spec::Type::Warning };
            let output = status.health.as_ref().map_or_else(String::new, |health| health.output.clone());
            self.client.event::<kinds::Instance>(&instance.meta, kind, is.as_str_name(), output).await;
        }
        if before != phase {
            let kind = match phase {
                InstancePhase::Failed | InstancePhase::BackOff => event_spec::Type::Warning,
                _ => event_spec::Type::Normal,
            };
            self.client.event::<kinds::Instance>(&instance.meta, kind, phase.as_str_name(), status.message).await;
        }
        Ok(())
    }

    async fn tell(
        &self,
        instance: &Instance,
        phase: InstancePhase,
        reason: &str,
        message: String,
    ) -> Result<(), InstanceError> {
        let status =
            InstanceStatus { reason: reason.to_owned(), message, phase: phase.into(), ..instance.status.clone() };
        self.write(instance, status).await
    }

    async fn write(&self, instance: &Instance, status: InstanceStatus) -> Result<(), InstanceError> {
        if status == instance.status {
            return Ok(());
        }
        let written = Instance { status, ..instance.clone() };
        match self.client.update_status(written).await {
            // Changed or gone meanwhile: that news is on its way, and brings us back.
            Ok(_) | Err(form_client::Error::Conflict(_) | form_client::Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The card as the guest is told of it.
fn interface(card: &InstanceInterface) -> Result<Interface, InstanceError> {
    let wrong = |field: &'static str, text: &String| InstanceError::Interface { field, text: text.clone() };
    let mut gateway = Gateways::default();
    for text in &card.gateways {
        match text.parse().map_err(|_| wrong("a gateway", text))? {
            IpAddr::V4(address) => gateway.v4 = Some(address),
            IpAddr::V6(address) => gateway.v6 = Some(address),
        }
    }
    let address = |text: &String| text.parse().map_err(|_| wrong("an address", text));
    Ok(Interface {
        mac: card.mac.parse().map_err(|_| wrong("mac", &card.mac))?,
        addresses: card.addresses.iter().map(address).collect::<Result<_, _>>()?,
        gateway,
        mtu: Some(card.mtu).filter(|mtu| *mtu > 0),
    })
}

/// A machine's state as an instance's: its phase, a word on why, a sentence for people.
fn told(machine: &VmStatus) -> (InstancePhase, &'static str, String) {
    let problem = machine.problem.clone();
    let end = || machine.last_exit.as_ref().map(describe).unwrap_or_default();
    let (phase, reason) = match machine.phase {
        Phase::Pending => (InstancePhase::Pending, "Preparing"),
        Phase::Starting => (InstancePhase::Starting, "Booting"),
        Phase::Running => (InstancePhase::Running, "Started"),
        Phase::Stopping | Phase::Deleted => (InstancePhase::Stopping, "Ending"),
        Phase::Stopped => (InstancePhase::Stopped, "Ended"),
        Phase::Failed => (InstancePhase::Failed, "Ended"),
        Phase::BackOff => (InstancePhase::BackOff, "Ended"),
    };
    let message = match machine.phase {
        Phase::Failed | Phase::BackOff | Phase::Stopped => problem.clone().unwrap_or_else(end),
        _ => problem.clone().unwrap_or_default(),
    };
    (phase, if problem.is_some() { "Trouble" } else { reason }, message)
}

fn describe(exit: &Exit) -> String {
    match exit {
        Exit { reason: Some(reason), .. } => reason.clone(),
        Exit { code: Some(code), .. } => format!("the workload exited with {code}"),
        Exit { signal: Some(signal), .. } => format!("the workload was ended by signal {signal}"),
        _ => String::new(),
    }
}

/// As a shell has it: 128 and the signal's number.
fn exit_code(exit: &Exit) -> Option<i32> {
    exit.code.or_else(|| exit.signal.map(|signal| 128_i32.saturating_add(signal)))
}

/// What the health check says; `None`: there is none.
fn health(machine: &VmStatus) -> Option<InstanceHealth> {
    machine.spec.guest.health.as_ref()?;
    let (state, output) = match (machine.phase, &machine.health) {
        (Phase::Running, Some(health)) if health.healthy => (HealthState::Healthy, health.output.clone()),
        (Phase::Running, Some(health)) => (HealthState::Unhealthy, health.output.clone()),
        (Phase::Running | Phase::Starting, _) => (HealthState::Starting, String::new()),
        _ => (HealthState::Unknown, String::new()),
    };
    Some(InstanceHealth { state: state.into(), output })
}

fn judged(status: &InstanceStatus) -> HealthState {
    status.health.as_ref().map_or(HealthState::Unknown, InstanceHealth::state)
}

fn ports(machine: &VmStatus) -> Vec<form_types::v1::Port> {
    let ports = machine.spec.ports.iter();
    ports.map(|port| form_types::v1::Port { port: port.number, protocol: port.protocol }).collect()
}
