//! `cargo xtask`: everything a developer runs.

fn main() -> anyhow::Result<()> {
    Ok(())
}
