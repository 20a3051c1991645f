//! The descriptors of `proto/`, decoded once: what JSON, validation, schemas and `form explain` go by.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor};

use crate::KindInfo;
use crate::v1::Rules;

/// The encoded `FileDescriptorSet` of the API, for gRPC server reflection.
pub fn encoded_descriptors() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"))
}

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| match DescriptorPool::decode(encoded_descriptors()) {
    Ok(pool) => pool,
    Err(error) => unreachable!("build.rs wrote descriptors that do not decode: {error}"),
});

type Fields = Vec<(FieldDescriptor, Option<Rules>)>;

/// The fields of each message, with the rules that stand beside them.
static FIELDS: LazyLock<HashMap<String, Fields>> = LazyLock::new(|| {
    let Some(extension) = POOL.get_extension_by_name("formation.v1.rules") else {
        unreachable!("rules.proto declares formation.v1.rules")
    };
    let rules = |field: &FieldDescriptor| {
        let options = field.options();
        options
            .has_extension(&extension)
            .then(|| options.get_extension(&extension).as_message()?.transcode_to().ok())?
    };
    let fields = |message: &MessageDescriptor| message.fields().map(|field| (field.clone(), rules(&field))).collect();
    POOL.all_messages().map(|message| (message.full_name().to_owned(), fields(&message))).collect()
});

pub(crate) fn message(name: &str) -> MessageDescriptor {
    match POOL.get_message_by_name(&format!("formation.v1.{name}")) {
        Some(descriptor) => descriptor,
        None => unreachable!("proto/ has no message formation.v1.{name}"),
    }
}

pub(crate) fn spec(kind: &KindInfo) -> MessageDescriptor {
    message(&format!("{}Spec", kind.name))
}

pub(crate) fn status(kind: &KindInfo) -> MessageDescriptor {
    message(&format!("{}Status", kind.name))
}

pub(crate) fn fields(message: &MessageDescriptor) -> &'static [(FieldDescriptor, Option<Rules>)] {
    FIELDS.get(message.full_name()).map_or(&[], Vec::as_slice)
}

pub(crate) fn rules(field: &FieldDescriptor) -> Option<&'static Rules> {
    let (_, rules) = fields(field.parent_message()).iter().find(|(of, _)| of.number() == field.number())?;
    rules.as_ref()
}

/// The comment that stands before the element at `path` of `file`, as one paragraph a line.
pub(crate) fn comment(file: &prost_reflect::FileDescriptor, path: &[i32]) -> String {
    let locations = file.file_descriptor_proto().source_code_info.as_ref().map(|info| info.location.as_slice());
    let location = locations.unwrap_or_default().iter().find(|location| location.path == path);
    let text = location.and_then(|location| location.leading_comments.as_deref()).unwrap_or_default();
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}
