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

static RULES: LazyLock<HashMap<String, Rules>> = LazyLock::new(|| {
    let Some(extension) = POOL.get_extension_by_name("formation.v1.rules") else {
        unreachable!("rules.proto declares formation.v1.rules")
    };
    let fields = POOL.all_messages().flat_map(|message| message.fields().collect::<Vec<_>>());
    fields
        .filter_map(|field| {
            let options = field.options();
            if !options.has_extension(&extension) {
                return None;
            }
            let rules = options.get_extension(&extension).as_message()?.transcode_to().ok()?;
            Some((field.full_name().to_owned(), rules))
        })
        .collect()
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

pub(crate) fn rules(field: &FieldDescriptor) -> Option<&'static Rules> {
    RULES.get(field.full_name())
}

/// The comment that stands before the element at `path` of `file`, as one paragraph a line.
pub(crate) fn comment(file: &prost_reflect::FileDescriptor, path: &[i32]) -> String {
    let locations = file.file_descriptor_proto().source_code_info.as_ref().map(|info| info.location.as_slice());
    let location = locations.unwrap_or_default().iter().find(|location| location.path == path);
    let text = location.and_then(|location| location.leading_comments.as_deref()).unwrap_or_default();
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
}
