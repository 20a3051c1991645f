//! `docs/openapi.yaml`: the copy for people of what form-state serves at /openapi.yaml.

use anyhow::Context as _;

const COPY: &str = "docs/openapi.yaml";

/// Writes the copy anew.
pub(crate) fn write() -> anyhow::Result<()> {
    std::fs::create_dir_all("docs").context("cannot make docs")?;
    std::fs::write(COPY, form_state::openapi_yaml()).with_context(|| format!("cannot write {COPY}"))
}
