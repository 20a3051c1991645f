//! Who writes which part of a status. A Node and an Instance have two writers, and what one of them says of the other's
//! part does not count: so neither has to know, or to hand back, what the other wrote.
//!
//! ```text
//!              Node                     Instance
//!   formnet    mesh                     addresses, interface
//!   others     all else                 all else; form-state, which places it, all
//! ```

use form_types::v1::{InstanceStatus, NodeSpec, NodeStatus, Resource};
use prost_types::Any;

use super::claims::part;
use super::plan::any;
use crate::Identity;

const FORMNET: &str = "formnet";

/// What the status becomes when `who` writes `new` over `old`.
pub(super) fn status(who: &Identity, old: &Resource, new: Option<Any>) -> Option<Any> {
    let Identity::Service { name, .. } = who else { return new };
    let from_formnet = name == FORMNET;
    match old.kind.as_str() {
        "Node" => {
            let (old, new) = (part::<NodeStatus>(&old.status), part::<NodeStatus>(&new));
            let merged =
                if from_formnet { NodeStatus { mesh: new.mesh, ..old } } else { NodeStatus { mesh: old.mesh, ..new } };
            Some(any(&merged))
        }
        "Instance" if name != "form-state" => {
            let (old, new) = (part::<InstanceStatus>(&old.status), part::<InstanceStatus>(&new));
            let merged = if from_formnet {
                InstanceStatus { addresses: new.addresses, interface: new.interface, ..old }
            } else {
                InstanceStatus { addresses: old.addresses, interface: old.interface, ..new }
            };
            Some(any(&merged))
        }
        _ => new,
    }
}

/// What a Node's spec becomes: formnet makes the node where it comes first, and has nothing to say in it afterwards. Two
/// who register one node do not undo each other.
pub(super) fn node_spec(who: &Identity, old: &NodeSpec, new: NodeSpec) -> NodeSpec {
    match who {
        Identity::Service { name, .. } if name == FORMNET => old.clone(),
        _ => new,
    }
}

/// Whether it is `who` by whose lease a node is known to live.
pub(super) fn speaks_for_the_node(who: &Identity) -> bool {
    !matches!(who, Identity::Service { name, .. } if name == FORMNET)
}
