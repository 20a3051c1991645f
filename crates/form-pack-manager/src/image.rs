//! What is said of an image beside its layers: configuration and manifest, the same bytes for the same content.

use std::collections::{BTreeMap, BTreeSet};

use form_rootfs::Digest;
use formfile::Settings;
use formfile::value::{DEFAULT_DISK_MIB, DEFAULT_MEMORY_MIB, DEFAULT_VCPU};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::store::BlobInfo;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// What the settings of a Formfile are kept under, as annotations of the manifest and as labels: other tools drop the
/// ones or the others.
const PREFIX: &str = "formation.";

/// How a container, or a machine, of the image starts (image-spec: config.md, and Docker's Healthcheck).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Config {
    #[serde(with = "variables", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// As Docker has it: times in nanoseconds, 0 for the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", ...]` or `["CMD-SHELL", text]`.
    #[serde(deserialize_with = "or_default")]
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Go writes an absent list as `null`.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

mod variables {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(env: &[(String, String)], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(env.iter().map(|(name, value)| format!("{name}={value}")))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, String)>, D::Error> {
        let env = Option::<Vec<String>>::deserialize(from)?.unwrap_or_default();
        let split = |text: String| {
            let (name, value) = text.split_once('=').unwrap_or((&text, ""));
            (name.to_owned(), value.to_owned())
        };
        Ok(env.into_iter().map(split).collect())
    }
}

mod set {
    use std::collections::{BTreeMap, BTreeSet};

    use serde::de::IgnoredAny;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(names: &BTreeSet<String>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(names.iter().map(|name| (name, BTreeMap::<(), ()>::new())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<String>, D::Error> {
        let names: Option<BTreeMap<String, IgnoredAny>> = Option::deserialize(from)?;
        Ok(names.unwrap_or_default().into_keys().collect())
    }
}

impl Config {
    /// Sets a variable; it keeps its place.
    pub fn set_env(&mut self, name: &str, value: String) {
        match self.env.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.env.push((name.to_owned(), value)),
        }
    }

    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Size and ways of a machine, as the Formfile or the image it is made of says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    pub vcpu: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
    /// The other settings, by their names: description, model, gpu, replicas, restart.
    pub others: BTreeMap<String, String>,
}

impl Machine {
    /// What `settings` say, over what the labels of the base say, over the defaults.
    pub fn of(settings: &Settings, labels: &BTreeMap<String, String>) -> Self {
        let label = |name: &str| labels.get(&format!("{PREFIX}{name}")).cloned();
        let number = |given: &Option<formfile::Spanned<u32>>, name: &str, least: u32, most: u32, default| {
            let label = label(name).and_then(|text| text.parse().ok()).filter(|number| (least..=most).contains(number));
            given.as_ref().map(|given| given.value).or(label).unwrap_or(default)
        };
        let mut others = BTreeMap::new();
        let restart = settings.restart.as_ref().map(|restart| match restart.value {
            formfile::Restart::Always => "always".to_owned(),
            formfile::Restart::OnFailure => "on-failure".to_owned(),
            formfile::Restart::Never => "never".to_owned(),
        });
        for (name, given) in [
            ("description", settings.description.as_ref().map(|text| text.value.clone())),
            ("model", settings.model.as_ref().map(|text| text.value.clone())),
            ("gpu", settings.gpu.as_ref().map(|gpu| gpu.value.to_string())),
            ("replicas", settings.replicas.as_ref().map(|replicas| replicas.value.to_string())),
            ("restart", restart),
        ] {
            if let Some(value) = given.or_else(|| label(name)) {
                others.insert(name.to_owned(), value);
            }
        }
        Self {
            vcpu: number(&settings.vcpu, "machine.vcpu", 1, 64, DEFAULT_VCPU),
            memory_mib: number(&settings.memory_mib, "machine.memory-mib", 64, 1 << 20, DEFAULT_MEMORY_MIB),
            disk_mib: number(&settings.disk_mib, "machine.disk-mib", 16, 1 << 20, DEFAULT_DISK_MIB),
            others,
        }
    }

    /// As annotations and labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let sizes = [
            ("machine.vcpu", self.vcpu.to_string()),
            ("machine.memory-mib", self.memory_mib.to_string()),
            ("machine.disk-mib", self.disk_mib.to_string()),
        ];
        let others = self.others.iter().map(|(name, value)| (name.as_str(), value.clone()));
        sizes.into_iter().chain(others).map(|(name, value)| (format!("{PREFIX}{name}"), value)).collect()
    }
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Of the tar before it is compressed.
    pub diff_id: Digest,
    pub blob: BlobInfo,
    pub media_type: String,
}

/// One step, as `docker history` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub created_by: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// The OCI configuration of an image.
pub fn config_json(config: &Config, layers: &[Layer], history: &[History]) -> serde_json::Result<Vec<u8>> {
    const EPOCH: &str = "1970-01-01T00:00:00Z";
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let history: Vec<Value> = history
        .iter()
        .map(|step| {
            let mut entry = json!({"created": EPOCH, "created_by": step.created_by});
            if step.empty_layer
                && let Some(entry) = entry.as_object_mut()
            {
                entry.insert("empty_layer".to_owned(), true.into());
            }
            entry
        })
        .collect();
    canonical(json!({
        "created": EPOCH, "architecture": arch, "os": "linux", "config": config, "history": history,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>()},
    }))
}

/// The OCI manifest that binds them together.
pub fn manifest_json(machine: &Machine, config: &BlobInfo, layers: &[Layer]) -> serde_json::Result<Vec<u8>> {
    let descriptor = |media_type: &str, blob: &BlobInfo| json!({"mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.size});
    canonical(json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, config),
        "layers": layers.iter().map(|layer| descriptor(&layer.media_type, &layer.blob)).collect::<Vec<_>>(),
        "annotations": machine.labels(),
    }))
}

/// JSON with the keys of every object in order.
fn canonical(value: Value) -> serde_json::Result<Vec<u8>> {
    fn sort(value: Value) -> Value {
        match value {
            Value::Object(object) => {
                let mut members: Vec<_> = object.into_iter().collect();
                members.sort_by(|(a, _), (b, _)| a.cmp(b));
                members.into_iter().map(|(key, value)| (key, sort(value))).collect()
            }
            Value::Array(items) => items.into_iter().map(sort).collect(),
            scalar => scalar,
        }
    }
    serde_json::to_vec(&sort(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_wrote_is_read_and_what_is_written_is_the_same_bytes_each_time() {
        let text = r#"{"Env":["A=1","B=x=y"],"Cmd":null,"Entrypoint":["/a"],"ExposedPorts":{"8/udp":{},"1/tcp":{}},
            "Labels":null,"Volumes":null,"User":"","OnBuild":null,"Healthcheck":{"Test":["CMD","x"],"Interval":5}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!(config.env, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x=y".to_owned())]);
        assert_eq!(config.healthcheck.as_ref().unwrap().interval, 5);
        let json = config_json(&config, &[], &[History { created_by: "x".to_owned(), empty_layer: true }]).unwrap();
        let value: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["config"]["ExposedPorts"], json!({"1/tcp": {}, "8/udp": {}}));
        assert_eq!(value["history"][0]["empty_layer"], true);
        assert_eq!(serde_json::from_value::<Config>(value["config"].clone()).unwrap(), config);
    }

    #[test]
    fn the_sizes_of_a_machine_survive_as_labels_and_nonsense_does_not() {
        let mut machine = Machine::of(&Settings::default(), &BTreeMap::new());
        machine.vcpu = 7;
        machine.others.insert("model".to_owned(), "small".to_owned());
        let mut labels = machine.labels();
        assert_eq!(Machine::of(&Settings::default(), &labels), machine);
        labels.insert("formation.machine.vcpu".to_owned(), "9999".to_owned());
        assert_eq!(Machine::of(&Settings::default(), &labels).vcpu, DEFAULT_VCPU);
    }
}
