//! What a user writes, what comes of it, and what is said when it is wrong.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use form_types::v1::{InstanceSpec, Resource, instance_spec::Power};
use form_types::{Invalid, Object, explain, from_json, kinds, schemas, to_json, validate};
use proptest::prelude::*;
use serde_json::{Value, json};

fn check(json: Value) -> Result<Resource, Invalid> {
    let resource = from_json(json)?;
    validate(&resource)?;
    Ok(resource)
}

fn refusal(json: Value) -> String {
    check(json).unwrap_err().to_string()
}

fn instance(spec: Value) -> Value {
    json!({"kind": "Instance", "project": "default", "name": "web", "spec": spec})
}

#[test]
fn a_resource_goes_through_json_and_types_unchanged() {
    let json = instance(json!({"package": "web", "memory_mib": 128, "env": {"A": "1"}, "power": "Off"}));
    let resource = check(json.clone()).unwrap();
    let object = Object::<kinds::Instance>::try_from(resource.clone()).unwrap();
    assert_eq!(object.spec.memory_mib, Some(128));
    assert_eq!(object.spec.power(), Power::Off);
    assert_eq!(to_json(&resource), json);
    assert_eq!(to_json(&object.into())["spec"], json["spec"]);
}

#[test]
fn a_refusal_names_the_path_the_value_and_the_limit() {
    assert_eq!(
        refusal(instance(json!({"package": "web", "memory_mib": 3}))),
        "spec.memory_mib: 3 is below the least, 64"
    );
    assert_eq!(refusal(instance(json!({"package": "web", "vcpu": 65}))), "spec.vcpu: 65 is above the most, 64");
    assert_eq!(refusal(instance(json!({}))), "spec.package: missing");
    assert_eq!(refusal(json!({"kind": "Instance", "project": "p", "name": "a"})), "spec.package: missing");
}

#[test]
fn all_violations_are_told_at_once() {
    let json = json!({"kind": "Instance", "name": "Web", "spec": {"package": "a b", "vcpu": 0}});
    let said = refusal(json);
    for path in ["name: \"Web\" is not a DNS label", "project: missing", "spec.package: ", "spec.vcpu: 0 is below"] {
        assert!(said.contains(path), "{said}");
    }
}

#[test]
fn a_port_of_the_node_is_published_once() {
    let publish = |second: Value| {
        let first = json!({"host_port": 8080, "port": 80});
        instance(json!({"package": "web", "publish": [first, second]}))
    };
    check(publish(json!({"host_port": 8080, "port": 80, "protocol": "udp"}))).unwrap();
    check(publish(json!({"host_port": 8081, "port": 80}))).unwrap();
    assert_eq!(
        refusal(publish(json!({"host_port": 8080, "port": 81, "protocol": "tcp"}))),
        "spec.publish[1]: the node's port 8080/tcp is published already, by spec.publish[0]"
    );
}

#[test]
fn what_has_no_place_is_refused_with_its_path() {
    let said = refusal(instance(json!({"package": "a", "memory": 3, "cpus": 1})));
    for path in ["spec.memory: there is no such field; there are package, network,", "\nspec.cpus: there is no"] {
        assert!(said.contains(path), "{said}");
    }
    assert!(refusal(json!({"kind": "Instance", "name": "a", "sepc": {}})).starts_with("sepc: there is no such field"));
    let package = json!({"kind": "Package", "project": "p", "name": "a", "spec": {"ports": [{"prot": 1}]}});
    assert!(refusal(package).starts_with("spec.ports[0].prot: there is no such field; there are port, protocol"));
    assert!(refusal(instance(json!({"package": "a", "vcpu": "many"}))).starts_with("spec.vcpu: "));
    assert!(refusal(instance(json!({"package": "a", "power": "Maybe"}))).starts_with("spec.power: "));
    assert!(
        refusal(json!({"kind": "Pod", "name": "a"})).starts_with("kind: \"Pod\" is not a kind; there are Project,")
    );
    assert_eq!(refusal(json!([])), "a resource is a JSON object");
    assert!(refusal(json!({"kind": "Node", "project": "p", "name": "a"})).starts_with("project: a Node belongs to"));
}

#[test]
fn lists_and_maps_are_checked_item_by_item() {
    let record = json!({"kind": "Record", "project": "p", "name": "r",
        "spec": {"name": "www", "type": "A", "data": ["x".repeat(5000)]}});
    assert!(refusal(record).starts_with("spec.data[0]: 5000 bytes are more than the most, 4096"));
    let env = instance(json!({"package": "a", "env": {"1A": "x"}}));
    assert!(refusal(env).starts_with("spec.env.1A: \"1A\" is not an environment name"));
}

#[test]
fn an_enum_that_has_to_be_chosen_is_missed() {
    let record = json!({"kind": "Record", "project": "p", "name": "r", "spec": {"name": "www", "data": ["1.2.3.4"]}});
    assert_eq!(refusal(record), "spec.type: missing");
}

#[test]
fn a_spec_of_another_kind_is_refused() {
    let mut resource = check(instance(json!({"package": "web"}))).unwrap();
    resource.kind = "Record".to_owned();
    assert!(
        validate(&resource).unwrap_err().to_string().contains("is a \"type.googleapis.com/formation.v1.InstanceSpec\"")
    );
}

#[test]
fn explain_tells_what_the_proto_says() {
    let (doc, fields) = explain("instance.spec").unwrap();
    assert_eq!(doc, "A virtual machine that runs a package.");
    let memory = fields.iter().find(|field| field.name == "memory_mib").unwrap();
    assert_eq!((memory.kind.as_str(), memory.rules.as_str()), ("uint32", "at least 64, at most 1048576"));
    let (doc, _) = explain("instances.spec.power").unwrap();
    assert_eq!(doc, "Whether it should run.");
    assert!(explain("instance.spec.nothing").is_none());
    assert!(explain("instance.spec.power.more").is_none());
    assert!(explain("package.spec.sizes.vcpu").is_some());
}

#[test]
fn schemas_carry_the_rules() {
    let schemas = schemas();
    let memory = &schemas["InstanceSpec"]["properties"]["memory_mib"];
    assert_eq!((&memory["minimum"], &memory["maximum"]), (&json!(64), &json!(1048576)));
    assert_eq!(schemas["Instance"]["properties"]["kind"], json!({"const": "Instance"}));
    assert_eq!(schemas["RecordSpec"]["required"], json!(["name", "type", "data"]));
}

#[test]
fn a_time_that_json_cannot_write_is_refused() {
    let token = json!({"kind": "Token", "name": "t", "spec": {"role": "viewer", "expires_at": "2030-01-01T00:00:00Z"}});
    let mut object = Object::<kinds::Token>::try_from(check(token).unwrap()).unwrap();
    object.spec.expires_at = Some(form_types::Timestamp { seconds: i64::MAX, nanos: 0 });
    let said = validate(&object.into()).unwrap_err().to_string();
    assert_eq!(said, "spec.expires_at: is not a time between the years 1 and 9999");
}

#[test]
fn a_label_that_no_selector_could_name_is_refused() {
    let mut json = instance(json!({"package": "a"}));
    json["labels"] = json!({"a=b": "c"});
    assert!(refusal(json.clone()).starts_with("labels.a=b: \"a=b\" is not a label's key"));
    json["labels"] = json!({"example.org/app": "c"});
    assert!(check(json).is_ok());
}

/// Any JSON, with the names of fields in it more often than chance would have them.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "(Instance|Record|Node|Token|2030-01-01T00:00:00Z|A|On|1e3)".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let key = prop_oneof![
            "(kind|name|project|labels|spec|status|env|data|vcpu|ports|type|expires_at|created_at|revision)",
            ".{0,6}"
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((key, inner), 0..8).prop_map(|entries| entries.into_iter().collect::<Value>()),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_judged_without_panic(json in any_json(), kind in 0..form_types::KINDS.len()) {
        let _ = check(json.clone());
        let named = json!({"kind": form_types::KINDS[kind].name, "name": "n", "project": "p", "spec": json, "status": json});
        if let Ok(resource) = from_json(named) {
            let _ = validate(&resource);
            let _ = to_json(&resource);
        }
    }

    #[test]
    fn any_bytes_as_a_spec_are_judged_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let object = Object::<kinds::Instance>::new("p", "n", InstanceSpec::default());
        let mut resource = Resource::from(object);
        resource.spec.as_mut().unwrap().value = bytes;
        let _ = validate(&resource);
        let _ = to_json(&resource);
    }

    #[test]
    fn any_text_as_a_name_is_judged_without_panic(name in ".*") {
        let _ = check(json!({"kind": "Instance", "project": name, "name": name, "spec": {"package": name}}));
    }
}
