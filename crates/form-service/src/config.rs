//! Configuration in layers, the later the stronger: defaults, `/etc/formation/<service>/config.toml`,
//! `FORM_<SERVICE>_<KEY>`, flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use figment::Figment;
use figment::providers::{Env, Format as _, Serialized, Toml};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::logs::LogConfig;

/// A service's configuration. Its serde form must have `default` and `deny_unknown_fields`.
pub trait Config: Serialize + DeserializeOwned + Default + Clone + Send + Sync + 'static {
    /// The service's name: `form-dns`.
    const SERVICE: &'static str;

    fn log(&self) -> &LogConfig;

    /// The directory of the service's certificate, key and CA.
    fn identity_dir(&self) -> &Path;

    /// Where the service answers `/readyz`.
    fn probes(&self) -> SocketAddr;

    /// What the types cannot say: `key: what is wrong`.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// The configuration as it is now; changes when it is reloaded. Keys that are not documented as hot are read once.
pub type Live<C> = watch::Receiver<Arc<C>>;

/// A configuration that does not change.
pub fn fixed<C>(config: C) -> Live<C> {
    watch::channel(Arc::new(config)).1
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The inner text has line, column and a caret.
    #[error("{}: {message}", .path.display())]
    File { path: PathBuf, message: String },
    #[error("{0}")]
    Layer(Box<figment::Error>),
    #[error("{0}")]
    Check(String),
    #[error("--set {0}: not of the form key=value")]
    Flag(String),
}

/// Where the layers come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`; absent: the default path, which need not exist.
    pub file: Option<PathBuf>,
    /// `--set key=value`, with dots for what is nested.
    pub set: Vec<String>,
}

impl Sources {
    pub fn path<C: Config>(&self) -> PathBuf {
        self.file.clone().unwrap_or_else(|| PathBuf::from(format!("/etc/formation/{}/config.toml", C::SERVICE)))
    }

    /// All layers joined and checked.
    pub fn load<C: Config>(&self) -> Result<C, ConfigError> {
        let config: C = self.layers::<C>()?.extract().map_err(|error| ConfigError::Layer(Box::new(error)))?;
        config.log().check().and_then(|()| config.check()).map_err(ConfigError::Check)?;
        Ok(config)
    }

    /// Each key, its value, and the layer that it came from; for `--check-config`.
    pub fn table<C: Config>(&self) -> Result<String, ConfigError> {
        let config: C = self.load()?;
        let layers = self.layers::<C>()?;
        let value = toml::Value::try_from(&config).map_err(|error| ConfigError::Check(error.to_string()))?;
        let mut rows = Vec::new();
        flatten("", &value, &mut rows);
        let width = rows.iter().map(|(key, value)| key.len() + value.len() + 3).max().unwrap_or(0);
        let lines = rows.iter().map(|(key, value)| {
            let setting = format!("{key} = {value}");
            format!("{setting:width$}  # {}\n", origin::<C>(&layers, key))
        });
        Ok(lines.collect())
    }

    fn layers<C: Config>(&self) -> Result<Figment, ConfigError> {
        let mut layers = Figment::from(Serialized::defaults(C::default()));
        let path = self.path::<C>();
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                // figment would tell the file, but not the line.
                toml::from_str::<C>(&text)
                    .map_err(|error| ConfigError::File { path: path.clone(), message: error.to_string() })?;
                layers = layers.merge(Toml::file_exact(&path));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.file.is_none() => {}
            Err(source) => return Err(ConfigError::Read { path, source }),
        }
        layers = layers.merge(Env::prefixed(&env_prefix(C::SERVICE)).split("__"));
        for setting in &self.set {
            let (key, value) = setting.split_once('=').ok_or_else(|| ConfigError::Flag(setting.clone()))?;
            let value: figment::value::Value = value.parse().unwrap_or_else(|never| match never {});
            layers = layers.merge(Serialized::default(key, value));
        }
        Ok(layers)
    }
}

/// `form-dns` → `FORM_DNS_`, `vmm-service` → `FORM_VMM_SERVICE_`. A `__` in a variable stands for the dot of a nested key.
fn env_prefix(service: &str) -> String {
    let name = service.strip_prefix("form-").unwrap_or(service);
    format!("FORM_{}_", name.replace('-', "_").to_uppercase())
}

fn flatten(at: &str, value: &toml::Value, rows: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) if !table.is_empty() => {
            for (key, value) in table {
                let key = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                flatten(&key, value, rows);
            }
        }
        value => rows.push((at.to_owned(), value.to_string())),
    }
}

fn origin<C>(layers: &Figment, key: &str) -> String {
    let Some(metadata) = layers.find_metadata(key) else { return "default".to_owned() };
    match (&metadata.source, metadata.name.as_ref()) {
        (Some(figment::Source::File(path)), _) => path.display().to_string(),
        (_, name) if name.contains("environment") => "environment".to_owned(),
        // figment names a layer of values after the type that they came from.
        (_, name) if name.contains(std::any::type_name::<C>()) => "default".to_owned(),
        _ => "flag".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Example {
        port: u16,
        dirs: Vec<PathBuf>,
        log: LogConfig,
    }

    impl Default for Example {
        fn default() -> Self {
            Self { port: 1, dirs: vec!["/a".into()], log: LogConfig::default() }
        }
    }

    impl Config for Example {
        const SERVICE: &'static str = "form-example";
        fn log(&self) -> &LogConfig {
            &self.log
        }
        fn identity_dir(&self) -> &Path {
            Path::new("/nowhere")
        }
        fn probes(&self) -> SocketAddr {
            ([127, 0, 0, 1], self.port).into()
        }
        fn check(&self) -> Result<(), String> {
            if self.port == 0 { Err("port: 0 is not a port".to_owned()) } else { Ok(()) }
        }
    }

    fn sources(text: &str, set: &[&str]) -> (tempfile::TempDir, Sources) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        (dir, Sources { file: Some(file), set: set.iter().map(|text| (*text).to_owned()).collect() })
    }

    #[test]
    fn a_later_layer_is_stronger_and_the_table_says_which_one_it_was() {
        let (_dir, sources) = sources("port = 2\n[log]\nlevel = 'debug'\n", &["port=3"]);
        let config: Example = sources.load().unwrap();
        assert_eq!((config.port, config.log.level.as_str()), (3, "debug"));
        let table = sources.table::<Example>().unwrap();
        let line = |key: &str| table.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
        assert!(line("port = 3").ends_with("# flag"), "{table}");
        assert!(line("log.level").ends_with("config.toml"), "{table}");
        assert!(line("dirs").ends_with("# default"), "{table}");
    }

    #[test]
    fn a_bad_file_is_refused_with_its_line() {
        for (text, wanted) in [
            ("port = 2\nprot = 3\n", ["line 2", "prot"]),
            ("\nport = 'x'\n", ["line 2", "u16"]),
            ("port = \n", ["line 1", "column 8"]),
        ] {
            let (_dir, sources) = sources(text, &[]);
            let said = sources.load::<Example>().unwrap_err().to_string();
            assert!(wanted.iter().all(|part| said.contains(part)), "{said}");
        }
    }

    #[test]
    fn a_bad_flag_is_refused_with_its_key() {
        for (set, wanted) in [("port=x", "port"), ("nonsense", "nonsense"), ("prot=1", "prot"), ("port=0", "port: 0")] {
            let (_dir, sources) = sources("", &[set]);
            let said = sources.load::<Example>().unwrap_err().to_string();
            assert!(said.contains(wanted), "{set}: {said}");
        }
    }

    #[test]
    fn a_file_that_was_named_has_to_exist() {
        let sources = Sources { file: Some("/nowhere/config.toml".into()), set: Vec::new() };
        assert!(matches!(sources.load::<Example>(), Err(ConfigError::Read { .. })));
        assert!(Sources::default().load::<Example>().is_ok());
    }
}
