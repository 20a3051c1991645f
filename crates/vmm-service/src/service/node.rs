//! The node itself: registered once, and ready for as long as a lease is kept.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use form_client::{Client, Error};
use form_service::Health;
use form_types::v1::{NodeSpec, NodeStatus};
use form_types::{Object, kinds, timestamp};

use crate::Accelerator;
use crate::config::Config;

type Node = Object<kinds::Node>;

/// How long the cluster waits for a sign of life.
const LEASE: Duration = Duration::from_secs(10);
/// What health waits for: a service that is ready before its node is would get no machine.
pub(super) const NODE: &str = "node";
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// Makes the Node, or brings its addresses up to date; waits for form-state for as long as that takes.
pub(super) async fn register(client: &Client, config: &Config) -> Result<Node, Error> {
    loop {
        let found = match client.get::<kinds::Node>("", &config.node).await {
            Ok(node) => Ok(node),
            Err(Error::NotFound(_)) => Ok(Node::new("", &config.node, NodeSpec::default())),
            Err(error) => Err(error),
        };
        let applied = match found {
            Ok(mut node) => {
                node.spec.vmm_url.clone_from(&config.public_url);
                node.spec.pack_url.clone_from(&config.pack_url);
                client.apply(node).await
            }
            Err(error) => Err(error),
        };
        match applied {
            Err(error) if error.is_temporary() => {
                tracing::debug!(%error, "form-state is waited for");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            // Somebody changed it in between, an operator who cordons it.
            Err(Error::Conflict(_)) => {}
            result => return result,
        }
    }
}

/// Keeps the node ready until it is dropped; `health` waits for the first time.
pub(super) async fn keep_ready(client: Client, config: Arc<Config>, accelerator: Accelerator, health: Health) {
    loop {
        if let Err(error) = ready(&client, &config, accelerator, &health).await {
            tracing::warn!(error = form_service::run::chain(&error), "the node's sign of life did not arrive");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Ends when the lease has.
async fn ready(client: &Client, config: &Config, accelerator: Accelerator, health: &Health) -> Result<(), Error> {
    let lease = client.grant_lease(LEASE).await?;
    let mut node = client.get::<kinds::Node>("", &config.node).await?;
    node.status = NodeStatus {
        ready: true,
        reason: String::new(),
        message: String::new(),
        vcpu: if config.vcpu > 0 { config.vcpu } else { processors() },
        memory_mib: if config.memory_mib > 0 { config.memory_mib } else { memory_mib() },
        accelerator: match accelerator {
            Accelerator::Kvm => "kvm".to_owned(),
            Accelerator::Tcg => "tcg".to_owned(),
        },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready_since: Some(timestamp(SystemTime::now())),
        gpus: gpus(Path::new("/sys")),
        // What formnet says stays as it is: form-state sees to that.
        mesh: node.status.mesh.take(),
    };
    client.node_ready(node, &lease).await?;
    health.done(NODE);
    let mut tick = tokio::time::interval(SIGN_OF_LIFE);
    loop {
        tick.tick().await;
        match client.keep_alive(&lease).await {
            Err(error) if error.is_temporary() => tracing::debug!(%error, "a sign of life did not arrive"),
            Err(error) => return Err(error),
            Ok(()) => {}
        }
    }
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// The memory that the machine has, MiB; 0 where it does not say.
fn memory_mib() -> u32 {
    let total = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
    u32::try_from(total >> 20).unwrap_or(u32::MAX)
}

/// The graphics processors on the PCI bus: 3D controllers, and display controllers of those who make such processors.
/// A server's and a virtual machine's own screen are none.
fn gpus(sys: &Path) -> u32 {
    let Ok(devices) = std::fs::read_dir(sys.join("bus/pci/devices")) else { return 0 };
    let is_gpu = |device: &std::fs::DirEntry| {
        let read = |file| std::fs::read_to_string(device.path().join(file)).unwrap_or_default();
        let (class, vendor) = (read("class"), read("vendor"));
        class.starts_with("0x0302")
            || (class.starts_with("0x03") && ["0x10de", "0x1002", "0x8086"].contains(&vendor.trim()))
    };
    u32::try_from(devices.flatten().filter(is_gpu).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_for_graphics_is_told_from_a_screen() {
        let sys = tempfile::tempdir().unwrap();
        assert_eq!(gpus(sys.path()), 0);
        let devices = [("0x030200", "0x10de"), ("0x030000", "0x1002"), ("0x030000", "0x1234"), ("0x020000", "0x10de")];
        for (index, (class, vendor)) in devices.iter().enumerate() {
            let device = sys.path().join(format!("bus/pci/devices/{index}"));
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("class"), format!("{class}\n")).unwrap();
            std::fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
        }
        assert_eq!(gpus(sys.path()), 2);
    }
}
