//! A cloud to measure.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use form_service::{Authority, Identity};
use form_types::v1::state_client::StateClient;
use tokio::process::{Child, Command};

use crate::connection::Connection;

const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Cloud {
    form: PathBuf,
    pub(crate) data: PathBuf,
    process: Child,
    /// From the start of the process to a cloud that is ready.
    pub(crate) took: Duration,
}

impl Cloud {
    pub(crate) async fn up(form: &Path, guest: &Path, data: &Path) -> Result<Self> {
        std::fs::create_dir_all(data)?;
        let context = data.join("context.toml");
        let _ = std::fs::remove_file(&context);
        let log = std::fs::File::create(data.join("form.log"))?;
        let start = Instant::now();
        let mut process = Command::new(form)
            .args(["up".as_ref(), "--data-dir".as_ref(), data.as_os_str(), "--guest-dir".as_ref(), guest.as_os_str()])
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("form up")?;
        until("the cloud is ready", || Ok(context.exists().then_some(()))).await?;
        if let Some(status) = process.try_wait()? {
            bail!("form up ended: {status}");
        }
        Ok(Self { form: form.to_owned(), data: data.to_owned(), process, took: start.elapsed() })
    }

    pub(crate) async fn down(&mut self) -> Result<()> {
        self.form(&["down", "--data-dir", &self.data.display().to_string()]).await?;
        self.process.wait().await?;
        Ok(())
    }

    pub(crate) async fn form(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.form);
        let done = command.args(arguments).env("FORM_CONTEXT", self.data.join("context.toml")).output().await?;
        if !done.status.success() {
            bail!("form {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr));
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    pub(crate) fn resident_mib(&self) -> Result<f64> {
        let pid = self.process.id().ok_or_else(|| anyhow!("the cloud has ended"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// An identity that may write events and packages.
    pub(crate) fn identity(&self) -> Result<Identity> {
        let authority = Authority::open_or_create(&self.data.join("pki"))?;
        Ok(authority.issue("form-pack-manager", "bench", &["localhost".to_owned()], &[])?)
    }

    pub(crate) async fn client(&self) -> Result<StateClient<Connection>> {
        Ok(StateClient::new(Connection::open("127.0.0.1:3004", "form-state", &self.identity()?).await?))
    }
}

/// Looks until there is something, often enough to measure milliseconds.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > PATIENCE {
            bail!("waited {} s until {what}", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
