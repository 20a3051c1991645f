//! Resources as JSON: proto's own names, enums by name, timestamps as RFC 3339, spec and status in place.

use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, Kind, MessageDescriptor, SerializeOptions};
use serde_json::{Map, Value};

use crate::v1::Resource;
use crate::{Invalid, KindInfo, Violation, descriptor, validate};

/// The resource as people see it. What is not set is left out.
pub fn to_json(resource: &Resource) -> Value {
    let envelope = Resource { spec: None, status: None, ..resource.clone() };
    let mut json = plain(descriptor::message("Resource"), &envelope.encode_to_vec());
    if let Some(kind) = KindInfo::find(&resource.kind) {
        if let Some(spec) = &resource.spec {
            json.insert("spec".to_owned(), plain(descriptor::spec(kind), &spec.value).into());
        }
        if let Some(status) = &resource.status {
            json.insert("status".to_owned(), plain(descriptor::status(kind), &status.value).into());
        }
    }
    Value::Object(json)
}

/// The other way round. Nothing is ignored: a field that does not exist is a violation, with its path.
///
/// # Errors
/// Says where a value has the wrong type or name. Whether the values make sense is [`crate::validate`]'s to say.
pub fn from_json(json: Value) -> Result<Resource, Invalid> {
    let Value::Object(mut json) = json else { return Err(Invalid::at("", "a resource is a JSON object")) };
    let kind = match json.get("kind") {
        Some(Value::String(name)) => KindInfo::find(name).ok_or_else(|| validate::unknown_kind(name))?,
        Some(_) => return Err(Invalid::at("kind", "is not a string")),
        None => return Err(Invalid::at("kind", "missing")),
    };
    let spec = json.remove("spec").map(|spec| typed(descriptor::spec(kind), "spec", spec)).transpose()?;
    let status = json.remove("status").map(|status| typed(descriptor::status(kind), "status", status)).transpose()?;
    let envelope = parse(descriptor::message("Resource"), "", Value::Object(json))?;
    let resource = envelope.transcode_to::<Resource>().map_err(|error| Invalid::at("", error.to_string()))?;
    Ok(Resource { kind: kind.name.to_owned(), spec, status, ..resource })
}

fn typed(of: MessageDescriptor, at: &str, json: Value) -> Result<prost_types::Any, Invalid> {
    let type_url = format!("type.googleapis.com/{}", of.full_name());
    Ok(prost_types::Any { type_url, value: parse(of, at, json)?.encode_to_vec() })
}

fn parse(of: MessageDescriptor, at: &str, json: Value) -> Result<DynamicMessage, Invalid> {
    let mut unknown = Vec::new();
    find_unknown(&of, at, &json, &mut unknown);
    Invalid::check(unknown)?;
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let mut track = serde_path_to_error::Track::new();
    let reader = serde_path_to_error::Deserializer::new(json, &mut track);
    DynamicMessage::deserialize_with_options(of, reader, &options).map_err(|error| {
        let inner = track.path().to_string();
        let path = match (at, inner.as_str()) {
            (at, ".") => at.to_owned(),
            ("", inner) => inner.to_owned(),
            (at, inner) => format!("{at}.{inner}"),
        };
        Invalid::at(path, error.to_string())
    })
}

/// A hostile resource may be wrong a hundred thousand times.
const MOST_TOLD: usize = 100;

/// All fields that do not exist. The parser would stop at the first, and name the message that it is in.
fn find_unknown(of: &MessageDescriptor, at: &str, json: &Value, found: &mut Vec<Violation>) {
    for (name, value) in json.as_object().into_iter().flatten() {
        if found.len() >= MOST_TOLD {
            return;
        }
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        let Some(field) = of.get_field_by_name(name).or_else(|| of.get_field_by_json_name(name)) else {
            let known: Vec<String> = of.fields().map(|field| field.name().to_owned()).collect();
            let what = format!("there is no such field; there are {}", known.join(", "));
            found.push(Violation { path, what });
            continue;
        };
        // What is Google's (a timestamp) has a form of its own in JSON, and a map has any keys.
        match field.kind() {
            Kind::Message(inner) if !field.is_map() && inner.package_name() == of.package_name() => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    find_unknown(&inner, &format!("{path}[{index}]"), item, found);
                }
                find_unknown(&inner, &path, value, found);
            }
            _ => {}
        }
    }
}

fn plain(of: MessageDescriptor, bytes: &[u8]) -> Map<String, Value> {
    // 64-bit numbers stay numbers: revisions and sizes are far below 2^53, and jq users expect them.
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
    let message = match DynamicMessage::decode(of.clone(), bytes) {
        Ok(message) => message,
        Err(_) => DynamicMessage::new(of),
    };
    match message.serialize_with_options(serde_json::value::Serializer, &options) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Whether two specs say the same; their bytes may differ all the same.
pub fn same_spec(kind: &KindInfo, one: &Option<prost_types::Any>, other: &Option<prost_types::Any>) -> bool {
    same(descriptor::spec(kind), one, other)
}

/// Whether two statuses say the same.
pub fn same_status(kind: &KindInfo, one: &Option<prost_types::Any>, other: &Option<prost_types::Any>) -> bool {
    same(descriptor::status(kind), one, other)
}

fn same(of: MessageDescriptor, one: &Option<prost_types::Any>, other: &Option<prost_types::Any>) -> bool {
    let bytes = |any: &Option<prost_types::Any>| any.as_ref().map(|any| any.value.clone()).unwrap_or_default();
    let (one, other) = (bytes(one), bytes(other));
    one == other || {
        // Maps have no order on the wire.
        let decode = |bytes: &[u8]| DynamicMessage::decode(of.clone(), bytes).ok();
        decode(&one).is_some_and(|one| Some(one) == decode(&other))
    }
}
