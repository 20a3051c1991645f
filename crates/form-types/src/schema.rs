//! The kinds as JSON schemas for OpenAPI 3.1, and as texts for `form explain`; both out of the descriptors.

use std::collections::BTreeMap;

use prost_reflect::{FieldDescriptor, Kind as FieldKind, MessageDescriptor};
use serde_json::{Map, Value, json};

use crate::v1::Rules;
use crate::v1::rules::Format;
use crate::{KINDS, KindInfo, descriptor};

/// One field, as `form explain` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldDoc {
    pub name: String,
    /// `string`, `uint32`, `[]Port`, `map[string]string`.
    pub kind: String,
    pub doc: String,
    /// `required, at least 64`; empty where there is no rule.
    pub rules: String,
    /// The names that an enum takes.
    pub values: Vec<String>,
    /// The field has fields of its own.
    pub nested: bool,
}

/// The text on what `path` leads to (`instance.spec.memory_mib`), and the fields in it. `None`: there is no such path.
pub fn explain(path: &str) -> Option<(String, Vec<FieldDoc>)> {
    let mut parts = path.split('.');
    let kind = KindInfo::find(parts.next()?)?;
    let spec = descriptor::spec(kind);
    let Some(part) = parts.next() else {
        let resource = descriptor::message("Resource");
        let mut fields: Vec<FieldDoc> = resource.fields().map(|field| field_doc(&field)).collect();
        for field in fields.iter_mut().filter(|field| field.name == "spec" || field.name == "status") {
            field.kind = format!("{}{}", kind.name, if field.name == "spec" { "Spec" } else { "Status" });
            field.doc = if field.name == "spec" { "What is wanted." } else { "What is." }.to_owned();
            field.nested = true;
        }
        return Some((message_doc(&spec), fields));
    };
    let (mut message, mut doc) = match part {
        "spec" => (spec.clone(), message_doc(&spec)),
        "status" => (descriptor::status(kind), message_doc(&descriptor::status(kind))),
        other => {
            let field = descriptor::message("Resource").get_field_by_name(other)?;
            let nothing_follows = parts.next().is_none();
            return nothing_follows.then(|| (field_doc(&field).doc, vec![field_doc(&field)]));
        }
    };
    while let Some(part) = parts.next() {
        let field = message.get_field_by_name(part)?;
        doc = field_doc(&field).doc;
        match field.kind() {
            FieldKind::Message(inner) if !field.is_map() && inner.package_name() == "formation.v1" => message = inner,
            _ => return parts.next().is_none().then(|| (doc, vec![field_doc(&field)])),
        }
    }
    Some((doc, message.fields().map(|field| field_doc(&field)).collect()))
}

fn message_doc(message: &MessageDescriptor) -> String {
    descriptor::comment(&message.parent_file(), message.path())
}

fn field_doc(field: &FieldDescriptor) -> FieldDoc {
    let (name, nested) = type_name(&field.kind());
    let kind = match field.kind() {
        FieldKind::Message(entry) if field.is_map() => {
            let value = type_name(&entry.map_entry_value_field().kind()).0;
            format!("map[{}]{value}", type_name(&entry.map_entry_key_field().kind()).0)
        }
        _ if field.is_list() => format!("[]{name}"),
        _ => name,
    };
    let values = match field.kind() {
        FieldKind::Enum(of) => {
            of.values().map(|value| value.name().to_owned()).filter(|name| is_choice(name)).collect()
        }
        _ => Vec::new(),
    };
    FieldDoc {
        name: field.name().to_owned(),
        kind,
        doc: descriptor::comment(&field.parent_message().parent_file(), field.path()),
        rules: descriptor::rules(field).map(describe).unwrap_or_default(),
        values,
        nested: nested && !field.is_map(),
    }
}

/// The zero of an enum that has to be chosen is not one of its choices.
fn is_choice(name: &str) -> bool {
    name != "Unset"
}

fn type_name(kind: &FieldKind) -> (String, bool) {
    match kind {
        FieldKind::Message(of) if of.full_name() == "google.protobuf.Timestamp" => ("timestamp".to_owned(), false),
        FieldKind::Message(of) => (of.name().to_owned(), of.package_name() == "formation.v1"),
        FieldKind::Enum(of) => (of.name().to_owned(), false),
        other => (format!("{other:?}").to_lowercase(), false),
    }
}

fn describe(rules: &Rules) -> String {
    let mut parts = Vec::new();
    if rules.required {
        parts.push("required".to_owned());
    }
    if let Some(least) = rules.least {
        parts.push(format!("at least {least}"));
    }
    if let Some(most) = rules.most {
        parts.push(format!("at most {most}"));
    }
    if rules.max_items > 0 {
        parts.push(format!("at most {} items", rules.max_items));
    }
    if rules.max_len > 0 {
        parts.push(format!("at most {} bytes", rules.max_len));
    }
    if rules.format() != Format::Any {
        parts.push(rules.format().as_str_name().to_owned());
    }
    parts.join(", ")
}

/// The JSON schemas of all kinds and of what they hold, by name: `Instance`, `InstanceSpec`, `Port`, ...
pub fn schemas() -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    for kind in KINDS {
        collect(&descriptor::spec(kind), &mut out);
        collect(&descriptor::status(kind), &mut out);
        out.insert(kind.name.to_owned(), envelope(kind));
    }
    out
}

fn envelope(kind: &KindInfo) -> Value {
    let mut schema = object(&descriptor::message("Resource"));
    let spec = descriptor::spec(kind);
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("kind".to_owned(), json!({"const": kind.name}));
        properties.insert("spec".to_owned(), reference(&spec));
        properties.insert("status".to_owned(), reference(&descriptor::status(kind)));
        if kind.is_cluster_scoped() {
            properties.remove("project");
        }
    }
    let mut required = vec!["kind", "name"];
    if spec.fields().any(|field| descriptor::rules(&field).is_some_and(|rules| rules.required)) {
        required.push("spec");
    }
    schema.insert("required".to_owned(), json!(required));
    schema.insert("description".to_owned(), message_doc(&spec).into());
    Value::Object(schema)
}

fn collect(message: &MessageDescriptor, out: &mut BTreeMap<String, Value>) {
    if out.insert(message.name().to_owned(), Value::Object(object(message))).is_some() {
        return;
    }
    for field in message.fields().filter(|field| !field.is_map()) {
        if let FieldKind::Message(inner) = field.kind()
            && inner.package_name() == "formation.v1"
        {
            collect(&inner, out);
        }
    }
}

fn object(message: &MessageDescriptor) -> Map<String, Value> {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in message.fields() {
        let rules = descriptor::rules(&field);
        let mut schema = shape(&field, rules);
        let doc = descriptor::comment(&message.parent_file(), field.path());
        if let Some(schema) = schema.as_object_mut().filter(|schema| !schema.contains_key("$ref") && !doc.is_empty()) {
            schema.insert("description".to_owned(), doc.into());
        }
        if rules.is_some_and(|rules| rules.required) {
            required.push(field.name().to_owned());
        }
        properties.insert(field.name().to_owned(), schema);
    }
    let mut schema = Map::new();
    schema.insert("type".to_owned(), "object".into());
    schema.insert("description".to_owned(), message_doc(message).into());
    schema.insert("properties".to_owned(), properties.into());
    if !required.is_empty() {
        schema.insert("required".to_owned(), required.into());
    }
    schema.insert("additionalProperties".to_owned(), false.into());
    schema
}

fn reference(message: &MessageDescriptor) -> Value {
    json!({"$ref": format!("#/components/schemas/{}", message.name())})
}

fn shape(field: &FieldDescriptor, rules: Option<&Rules>) -> Value {
    let max_items = rules.map(|rules| rules.max_items).filter(|most| *most > 0);
    let mut schema = match field.kind() {
        FieldKind::Message(entry) if field.is_map() => {
            let value = entry.map_entry_value_field();
            let keys = rules.map(|rules| Rules { format: rules.format, ..Rules::default() });
            let values = rules.map(|rules| Rules { format: Format::Any.into(), ..*rules });
            let mut map = json!({"type": "object", "additionalProperties": scalar(&value.kind(), values.as_ref())});
            if rules.is_some_and(|rules| rules.format() != Format::Any) {
                insert(&mut map, "propertyNames", scalar(&FieldKind::String, keys.as_ref()));
            }
            return with(map, "maxProperties", max_items);
        }
        kind if field.is_list() => {
            let list = json!({"type": "array", "items": scalar(&kind, rules)});
            return with(list, "maxItems", max_items);
        }
        kind => scalar(&kind, rules),
    };
    if rules.is_some_and(|rules| rules.required) && schema.get("type") == Some(&json!("string")) {
        insert(&mut schema, "minLength", 1.into());
    }
    schema
}

fn scalar(kind: &FieldKind, rules: Option<&Rules>) -> Value {
    match kind {
        FieldKind::Message(of) if of.full_name() == "google.protobuf.Timestamp" => {
            json!({"type": "string", "format": "date-time"})
        }
        FieldKind::Message(of) if of.full_name() == "google.protobuf.Any" => json!({"type": "object"}),
        FieldKind::Message(of) => reference(of),
        FieldKind::Enum(of) => {
            let names: Vec<String> = of.values().map(|value| value.name().to_owned()).collect();
            json!({"type": "string", "enum": names})
        }
        FieldKind::Bool => json!({"type": "boolean"}),
        FieldKind::String => {
            let schema = json!({"type": "string"});
            let schema = with(schema, "maxLength", rules.map(|rules| rules.max_len).filter(|most| *most > 0));
            with(schema, "pattern", rules.and_then(|rules| pattern(rules.format())))
        }
        FieldKind::Uint32 | FieldKind::Uint64 => {
            let least = rules.and_then(|rules| rules.least).unwrap_or(0);
            let schema = json!({"type": "integer", "minimum": least});
            let most = rules.and_then(|rules| rules.most);
            with(schema, "maximum", most.or(matches!(kind, FieldKind::Uint32).then_some(u32::MAX.into())))
        }
        FieldKind::Int32 => json!({"type": "integer", "format": "int32"}),
        _ => json!({"type": "integer", "format": "int64"}),
    }
}

/// The formats as regular expressions (ECMA 262), where one can tell them.
fn pattern(format: Format) -> Option<&'static str> {
    match format {
        Format::DnsLabel => Some("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
        Format::DnsName => Some(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$"),
        Format::Digest => Some("^sha256:[0-9a-f]{64}$"),
        Format::EnvName => Some("^[A-Za-z_][A-Za-z0-9_]*$"),
        Format::AbsolutePath => Some("^/"),
        Format::RelativePath => Some("^[^/]"),
        Format::LabelKey => Some("^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"),
        Format::HttpsUrl => Some("^https://[^/?#@]"),
        Format::WireGuardKey => Some("^[A-Za-z0-9+/]{41}[A-HQ-Xg-nw-z0-3][AEIMQUYcgkosw048]=$"),
        Format::Any | Format::RecordName | Format::IpAddress | Format::IpPrefix | Format::SocketAddress => None,
    }
}

fn with(mut schema: Value, name: &str, value: Option<impl Into<Value>>) -> Value {
    if let Some(value) = value {
        insert(&mut schema, name, value.into());
    }
    schema
}

fn insert(schema: &mut Value, name: &str, value: Value) {
    if let Some(schema) = schema.as_object_mut() {
        schema.insert(name.to_owned(), value);
    }
}
