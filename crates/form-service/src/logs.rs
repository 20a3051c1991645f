//! Logs: JSON for machines, lines for people; the filter can change while the service runs.

use std::io::IsTerminal as _;

use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt, reload};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A filter as of tracing: `info`, `warn,form_dns=debug`. Hot.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `human` on a terminal, `json` elsewhere.
    Auto,
    Human,
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

impl LogConfig {
    /// What is wrong with the filter, if something is.
    pub fn check(&self) -> Result<(), String> {
        self.filter().map(|_| ()).map_err(|error| format!("log.level: {error}"))
    }
}

impl LogConfig {
    fn filter(&self) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
        // qapi tells of each connection that it closes. A level for it in `level` comes later and is stronger.
        EnvFilter::try_new(format!("qapi=warn,{}", self.level))
    }
}

/// Changes the filter of the logs that [`init`] started.
#[derive(Clone, Debug)]
pub struct LogHandle(reload::Handle<EnvFilter, tracing_subscriber::Registry>);

impl LogHandle {
    pub fn apply(&self, config: &LogConfig) {
        if let Ok(filter) = config.filter()
            && let Err(error) = self.0.reload(filter)
        {
            tracing::warn!(%error, "the log filter stays as it was");
        }
    }
}

/// Starts logging to standard error. Once in a process; a second call changes nothing.
pub fn init(config: &LogConfig) -> LogHandle {
    let filter = config.filter().unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let human = match config.format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let lines = if human {
        fmt::layer().with_writer(std::io::stderr).with_target(false).compact().boxed()
    } else {
        fmt::layer().with_writer(std::io::stderr).json().flatten_event(true).boxed()
    };
    // Fails where a test has set a subscriber of its own; that one stays.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    LogHandle(handle)
}
