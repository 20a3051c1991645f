//! `docs/openapi.yaml`: the copy for people of what form-state serves at /openapi.yaml.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::host;

/// Writes the copy anew.
pub(crate) fn write() -> Result<()> {
    // A program of form-state's, so that xtask itself is built in seconds.
    let arguments = ["run", "--quiet", "--package", "form-state", "--example", "openapi"];
    let done = host::cargo().args(arguments).output().context("cannot run cargo")?;
    if !done.status.success() {
        bail!("cargo {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr));
    }
    host::write_if_changed(Path::new("docs/openapi.yaml"), &done.stdout)
}
