//! A resource with its spec and status as Rust types.

use std::collections::BTreeMap;
use std::time::SystemTime;

use prost::{Message as _, Name as _};
use prost_types::{Any, Timestamp};

use crate::v1::{EventSpec, Key, Resource, event_spec};
use crate::{Kind, kinds};

/// A resource of kind `K`.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<K: Kind> {
    pub meta: Meta,
    pub spec: K::Spec,
    pub status: K::Status,
}

/// The envelope without its kind, spec and status; see `proto/formation/v1/resource.proto`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    pub project: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub generation: u64,
    pub revision: u64,
    pub created_at: Option<Timestamp>,
    pub deletion_requested_at: Option<Timestamp>,
}

/// The bytes of a resource are not of the kind that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("a {found:?} came where a {wanted} was expected")]
    Kind { found: String, wanted: &'static str },
    #[error("the {part} of {kind} {project}/{name} cannot be decoded")]
    Decode {
        part: &'static str,
        kind: &'static str,
        project: String,
        name: String,
        #[source]
        source: prost::DecodeError,
    },
}

impl<K: Kind> Object<K> {
    /// A new one, as a user would write it.
    pub fn new(project: &str, name: &str, spec: K::Spec) -> Self {
        let meta = Meta { project: project.to_owned(), name: name.to_owned(), ..Meta::default() };
        Self { meta, spec, status: K::Status::default() }
    }

    pub fn key(&self) -> Key {
        Key { kind: K::INFO.name.to_owned(), project: self.meta.project.clone(), name: self.meta.name.clone() }
    }

    pub fn is_being_deleted(&self) -> bool {
        self.meta.deletion_requested_at.is_some()
    }
}

impl<K: Kind> TryFrom<Resource> for Object<K> {
    type Error = ObjectError;

    fn try_from(resource: Resource) -> Result<Self, ObjectError> {
        let wanted = K::INFO.name;
        if resource.kind != wanted {
            return Err(ObjectError::Kind { found: resource.kind, wanted });
        }
        let fail = |part| {
            let (project, name) = (resource.project.clone(), resource.name.clone());
            move |source| ObjectError::Decode { part, kind: wanted, project, name, source }
        };
        let spec = K::Spec::decode(bytes(&resource.spec)).map_err(fail("spec"))?;
        let status = K::Status::decode(bytes(&resource.status)).map_err(fail("status"))?;
        let meta = Meta {
            project: resource.project,
            name: resource.name,
            uid: resource.uid,
            labels: resource.labels,
            generation: resource.generation,
            revision: resource.revision,
            created_at: resource.created_at,
            deletion_requested_at: resource.deletion_requested_at,
        };
        Ok(Self { meta, spec, status })
    }
}

impl<K: Kind> From<Object<K>> for Resource {
    fn from(object: Object<K>) -> Resource {
        let Meta { project, name, uid, labels, generation, revision, created_at, deletion_requested_at } = object.meta;
        Resource {
            kind: K::INFO.name.to_owned(),
            project,
            name,
            uid,
            labels,
            generation,
            revision,
            created_at,
            deletion_requested_at,
            spec: Some(Any { type_url: K::Spec::type_url(), value: object.spec.encode_to_vec() }),
            status: Some(Any { type_url: K::Status::type_url(), value: object.status.encode_to_vec() }),
        }
    }
}

fn bytes(any: &Option<Any>) -> &[u8] {
    any.as_ref().map(|any| any.value.as_slice()).unwrap_or_default()
}

/// Events live in projects; what happens to what is in none is told in this one, which is always there.
const OF_THE_CLUSTER: &str = "default";

/// What happened to `about`, for the list of events of its project.
pub fn event<K: Kind>(
    about: &Meta,
    of: event_spec::Type,
    reason: &str,
    message: impl Into<String>,
    reporter: &str,
) -> Object<kinds::Event> {
    let spec = EventSpec {
        r#type: of.into(),
        kind: K::INFO.name.to_owned(),
        name: about.name.clone(),
        uid: about.uid.clone(),
        reason: reason.to_owned(),
        message: message.into(),
        reporter: reporter.to_owned(),
        at: Some(SystemTime::now().into()),
    };
    // Names in the order of time, so that a list is a history.
    let name = uuid::Uuid::now_v7().simple().to_string();
    let project = if K::INFO.is_cluster_scoped() { OF_THE_CLUSTER } else { &about.project };
    Object::new(project, &name, spec)
}
