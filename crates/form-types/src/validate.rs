//! Whether a resource is one that the cloud can hold: the rules of `proto/`, walked over its fields.

use std::collections::HashMap;
use std::fmt;

use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind as FieldKind, MapKey, ReflectMessage as _, Value};

use crate::v1::rules::Format;
use crate::v1::{InstanceSpec, Resource, Rules};
use crate::{Invalid, Kind as _, KindInfo, Violation, descriptor, format, kinds};

/// Seconds of the years 1 to 9999.
const TIMES: std::ops::RangeInclusive<i128> = -62_135_596_800..=253_402_300_799;

/// Checks the whole of `resource`: its kind, its envelope, its spec and its status. Returns its kind.
///
/// # Errors
/// All violations, each with the path of its field.
pub fn validate(resource: &Resource) -> Result<&'static KindInfo, Invalid> {
    let Some(kind) = KindInfo::find(&resource.kind).filter(|kind| kind.name == resource.kind) else {
        return Err(unknown_kind(&resource.kind));
    };
    let mut found = Vec::new();

    let envelope = Resource { spec: None, status: None, ..resource.clone() };
    if let Ok(envelope) = DynamicMessage::decode(descriptor::message("Resource"), envelope.encode_to_vec().as_slice()) {
        walk(&envelope, Path::Root, &mut found);
    }
    match (kind.is_cluster_scoped(), resource.project.is_empty()) {
        (true, false) => report(
            &mut found,
            Path::Field(&Path::Root, "project"),
            format!("a {} belongs to the cluster, not to a project", kind.name),
        ),
        (false, true) => report(
            &mut found,
            Path::Field(&Path::Root, "project"),
            format!("missing; a {} lives in a project", kind.name),
        ),
        _ => {}
    }

    for (name, any, descriptor) in
        [("spec", &resource.spec, descriptor::spec(kind)), ("status", &resource.status, descriptor::status(kind))]
    {
        let part = Path::Field(&Path::Root, name);
        let Some(any) = any else {
            // A spec with required fields is as wrong absent as it is empty; a status is not written yet.
            if name == "spec" {
                walk(&DynamicMessage::new(descriptor), part, &mut found);
            }
            continue;
        };
        if any.type_url.rsplit('/').next() != Some(descriptor.full_name()) {
            report(&mut found, part, format!("is a {:?}, not a {:?}", any.type_url, descriptor.full_name()));
            continue;
        }
        match DynamicMessage::decode(descriptor, any.value.as_slice()) {
            Ok(message) => walk(&message, part, &mut found),
            Err(error) => report(&mut found, part, format!("cannot be decoded: {error}")),
        }
    }
    if kind.name == kinds::Instance::INFO.name {
        ports(resource, &mut found);
    }
    Invalid::check(found).map(|()| kind)
}

/// A port of the node leads to one port of the instance.
fn ports(resource: &Resource, found: &mut Vec<Violation>) {
    let spec = resource.spec.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
    // What cannot be decoded was found already.
    let Ok(spec) = InstanceSpec::decode(spec) else { return };
    let mut seen = HashMap::new();
    for (index, port) in spec.publish.iter().enumerate() {
        let Some(first) = seen.insert((port.protocol, port.host_port), index) else { continue };
        let text = format!(
            "the node's port {}/{} is published already, by spec.publish[{first}]",
            port.host_port,
            port.protocol().as_str_name()
        );
        found.push(Violation { path: format!("spec.publish[{index}]"), what: text });
    }
}

pub(crate) fn unknown_kind(name: &str) -> Invalid {
    let known = crate::KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
    Invalid::at("kind", format!("{name:?} is not a kind; there are {known}"))
}

/// Where a value stands. Written out only where something is wrong with it: most have nothing.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(of, name) => write!(f, "{of}.{name}"),
            Path::Item(of, index) => write!(f, "{of}[{index}]"),
        }
    }
}

fn report(found: &mut Vec<Violation>, path: Path<'_>, what: impl Into<String>) {
    found.push(Violation { path: path.to_string(), what: what.into() });
}

fn walk(message: &DynamicMessage, at: Path<'_>, found: &mut Vec<Violation>) {
    if message.unknown_fields().next().is_some() {
        report(found, at, "has fields that this version does not know");
    }
    for (field, rules) in descriptor::fields(&message.descriptor()) {
        let path = Path::Field(&at, field.name());
        if !message.has_field(field) {
            if rules.is_some_and(|rules| rules.required) {
                report(found, path, "missing");
            }
            continue;
        }
        check(field, rules.as_ref(), &message.get_field(field), path, found);
    }
}

fn check(field: &FieldDescriptor, rules: Option<&Rules>, value: &Value, path: Path<'_>, found: &mut Vec<Violation>) {
    match value {
        Value::List(items) => {
            too_many(rules, items.len(), path, found);
            for (index, item) in items.iter().enumerate() {
                single(field, rules, item, Path::Item(&path, index), found);
            }
        }
        Value::Map(entries) => {
            too_many(rules, entries.len(), path, found);
            for (key, item) in entries {
                let name = match key {
                    MapKey::String(name) => name.clone(),
                    other => format!("{other:?}"),
                };
                let path = Path::Field(&path, &name);
                if let Some(rules) = rules {
                    text(rules, &name, path, found);
                }
                // A map's format is about its keys.
                let rest = rules.map(|rules| Rules { format: Format::Any.into(), ..*rules });
                single(field, rest.as_ref(), item, path, found);
            }
        }
        value => single(field, rules, value, path, found),
    }
}

fn too_many(rules: Option<&Rules>, len: usize, path: Path<'_>, found: &mut Vec<Violation>) {
    if let Some(most) = rules.map(|rules| rules.max_items as usize).filter(|most| (1..len).contains(most)) {
        report(found, path, format!("{len} items are more than the most, {most}"));
    }
}

fn single(field: &FieldDescriptor, rules: Option<&Rules>, value: &Value, path: Path<'_>, found: &mut Vec<Violation>) {
    match value {
        Value::Message(message) if message.descriptor().full_name() == "google.protobuf.Timestamp" => {
            let part = |name| message.get_field_by_name(name).and_then(|value| integer(&value)).unwrap_or_default();
            // What RFC 3339 can write; JSON has no other.
            if !TIMES.contains(&part("seconds")) || !(0..1_000_000_000).contains(&part("nanos")) {
                report(found, path, "is not a time between the years 1 and 9999");
            }
        }
        Value::Message(message) => walk(message, path, found),
        Value::EnumNumber(number) => {
            let FieldKind::Enum(of) = field.kind() else { return };
            if of.get_value(*number).is_none() {
                report(found, path, format!("{number} is not a value of {}", of.name()));
            }
        }
        Value::String(string) => text(rules.unwrap_or(&Rules::default()), string, path, found),
        value => {
            let (Some(rules), Some(number)) = (rules, integer(value)) else { return };
            if let Some(least) = rules.least.filter(|least| number < i128::from(*least)) {
                report(found, path, format!("{number} is below the least, {least}"));
            }
            if let Some(most) = rules.most.filter(|most| number > i128::from(*most)) {
                report(found, path, format!("{number} is above the most, {most}"));
            }
        }
    }
}

fn text(rules: &Rules, text: &str, path: Path<'_>, found: &mut Vec<Violation>) {
    if rules.max_len > 0 && text.len() > rules.max_len as usize {
        report(found, path, format!("{} bytes are more than the most, {}", text.len(), rules.max_len));
    } else if let Some(wanted) = format::mismatch(rules.format(), text) {
        report(found, path, format!("{text:?} is not {wanted}"));
    } else if text.contains('\0') {
        report(found, path, "holds a NUL character");
    }
}

fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::I32(n) => Some((*n).into()),
        Value::I64(n) => Some((*n).into()),
        Value::U32(n) => Some((*n).into()),
        Value::U64(n) => Some((*n).into()),
        _ => None,
    }
}
