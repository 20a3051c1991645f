//! `formnet down`: takes away all that formnet made in this network namespace, and nothing else.

use crate::error::Result;
use crate::links::Links;
use crate::rules::Rules;
use crate::tunnel::Tunnel;

/// Removes the mesh with `interface`, and every bridge, tap, route and rule of ours. Says what it was. Rules go last: as
/// long as anything is attached, they watch it.
///
/// # Errors
/// If the kernel refuses; what was removed before stays removed, and a second call goes on.
pub async fn down(interface: &str) -> Result<Vec<String>> {
    let links = Links::connect()?;
    let mut removed = Vec::new();
    for object in links.objects().await?.iter().filter(|object| object.kind != "wireguard") {
        links.delete_object(object).await?;
        removed.push(format!("{} {}", object.kind, object.name));
    }
    Tunnel::down(interface).await?;
    removed.push(format!("wireguard {interface}"));
    Rules::remove().await?;
    removed.extend(crate::rules::TABLES.iter().map(|table| format!("table {table}")));
    Ok(removed)
}
