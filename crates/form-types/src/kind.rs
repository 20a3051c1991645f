//! The table of kinds: the one list that every other part reads.

use prost::{Message, Name};

use crate::v1;

/// Where a kind's names live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One of a name in the cluster.
    Cluster,
    /// One of a name in each project.
    Project,
}

/// What the cluster knows of a kind.
#[derive(Debug)]
pub struct KindInfo {
    /// As in the `kind` of a resource: `Instance`.
    pub name: &'static str,
    /// As in an address: `instances`.
    pub plural: &'static str,
    pub scope: Scope,
    /// The services that may write its status; the first of them also cleans up when it is deleted, if `finalized`.
    pub owners: &'static [&'static str],
    /// Deletion waits until the owner has cleaned up.
    pub finalized: bool,
    /// The services that may write its spec. People with the role of editor may too, unless `internal`.
    pub writers: &'static [&'static str],
    /// Written by services alone.
    pub internal: bool,
}

impl KindInfo {
    /// By its name, or by its plural, in any case: what people type.
    pub fn find(name: &str) -> Option<&'static KindInfo> {
        KINDS
            .iter()
            .copied()
            .find(|kind| kind.name.eq_ignore_ascii_case(name) || kind.plural.eq_ignore_ascii_case(name))
    }

    pub fn is_cluster_scoped(&self) -> bool {
        self.scope == Scope::Cluster
    }
}

/// A kind as a Rust type: `kinds::Instance`.
pub trait Kind: Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static {
    type Spec: Message + Name + Default + Clone + std::fmt::Debug + PartialEq + Send + Sync;
    type Status: Message + Name + Default + Clone + std::fmt::Debug + PartialEq + Send + Sync;
    const INFO: &'static KindInfo;
}

macro_rules! kinds {
    ($($kind:ident $plural:literal $scope:ident {
        spec: $spec:ident, status: $status:ident, owners: $owners:expr, writers: $writers:expr,
        finalized: $finalized:literal, internal: $internal:literal
    })*) => {
        /// The kinds as types, for [`crate::Object`].
        pub mod kinds {
            use super::*;
            $(
                #[derive(Clone, Copy, Debug, PartialEq)]
                pub enum $kind {}

                impl Kind for $kind {
                    type Spec = v1::$spec;
                    type Status = v1::$status;
                    const INFO: &'static KindInfo = &KindInfo {
                        name: stringify!($kind),
                        plural: $plural,
                        scope: Scope::$scope,
                        owners: &$owners,
                        finalized: $finalized,
                        writers: &$writers,
                        internal: $internal,
                    };
                }
            )*
        }

        /// Every kind that there is.
        pub static KINDS: &[&KindInfo] = &[$(<kinds::$kind as Kind>::INFO),*];
    };
}

kinds! {
    Project "projects" Cluster {
        spec: ProjectSpec, status: ProjectStatus,
        owners: ["form-state"], writers: [], finalized: false, internal: false
    }
    Node "nodes" Cluster {
        spec: NodeSpec, status: NodeStatus,
        owners: ["vmm-service", "formnet", "form-state"], writers: ["vmm-service", "formnet"], finalized: false, internal: false
    }
    JoinToken "jointokens" Cluster {
        spec: JoinTokenSpec, status: JoinTokenStatus,
        owners: ["form-state"], writers: [], finalized: false, internal: false
    }
    Token "tokens" Cluster {
        spec: TokenSpec, status: TokenStatus,
        owners: ["form-state"], writers: [], finalized: false, internal: false
    }
    Network "networks" Project {
        spec: NetworkSpec, status: NetworkStatus,
        owners: ["form-state"], writers: [], finalized: false, internal: false
    }
    Peer "peers" Project {
        spec: PeerSpec, status: PeerStatus,
        owners: ["form-state"], writers: [], finalized: false, internal: false
    }
    Build "builds" Project {
        spec: BuildSpec, status: BuildStatus,
        owners: ["form-pack-manager"], writers: ["form-pack-manager"], finalized: false, internal: false
    }
    Package "packages" Project {
        spec: PackageSpec, status: PackageStatus,
        owners: ["form-pack-manager"], writers: ["form-pack-manager"], finalized: false, internal: true
    }
    Instance "instances" Project {
        spec: InstanceSpec, status: InstanceStatus,
        owners: ["vmm-service", "formnet", "form-state"], writers: [], finalized: true, internal: false
    }
    Zone "zones" Project {
        spec: ZoneSpec, status: ZoneStatus,
        owners: ["form-dns"], writers: [], finalized: false, internal: false
    }
    Record "records" Project {
        spec: RecordSpec, status: RecordStatus,
        owners: ["form-dns"], writers: [], finalized: false, internal: false
    }
    Event "events" Project {
        spec: EventSpec, status: EventStatus,
        owners: [], writers: ["form-state", "vmm-service", "form-pack-manager", "form-dns", "formnet"],
        finalized: false, internal: true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_its_name_and_by_its_plural_in_any_case() {
        for name in ["Instance", "instance", "instances", "INSTANCES"] {
            assert_eq!(KindInfo::find(name).unwrap().name, "Instance");
        }
        assert!(KindInfo::find("insta").is_none());
    }

    #[test]
    fn every_kind_has_a_spec_and_a_status_named_after_it() {
        for kind in KINDS {
            assert!(crate::descriptor::spec(kind).name().starts_with(kind.name));
            assert!(crate::descriptor::status(kind).name().starts_with(kind.name));
        }
    }
}
