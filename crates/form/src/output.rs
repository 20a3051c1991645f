//! How resources look.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

use comfy_table::{ContentArrangement, Table, presets};
use form_types::KindInfo;
use serde_json::Value;

use crate::cli::Format;
use crate::error::Error;

/// Writes to standard output. A reader that has gone (`form get … | head`) is no error.
pub(crate) fn say(text: impl std::fmt::Display) -> Result<(), Error> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(Error::file("standard output")),
    }
}

/// Writes to standard error: what is for the person and not for the next program.
pub(crate) fn tell(text: impl std::fmt::Display) {
    // There is nowhere left to complain to.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Shows `items`; `one`: as a single resource rather than as a list.
pub(crate) fn show(kind: &KindInfo, items: &[Value], one: bool, format: Format) -> Result<(), Error> {
    let whole = match items {
        [item] if one => item.clone(),
        items => Value::Array(items.to_vec()),
    };
    match format {
        Format::Json => say(serde_json::to_string_pretty(&whole).unwrap_or_default()),
        Format::Yaml => say(serde_yaml_ng::to_string(&whole).unwrap_or_default().trim_end()),
        Format::Table | Format::Wide => say(table(kind, items, format == Format::Wide)),
    }
}

/// One column: its heading, and the text of it for a resource. Those that come with `wide` only say so.
struct Column {
    title: &'static str,
    wide: bool,
    text: fn(&Value) -> String,
}

fn table(kind: &KindInfo, items: &[Value], wide: bool) -> String {
    let columns: Vec<Column> = columns(kind).into_iter().filter(|column| wide || !column.wide).collect();
    let titles: Vec<&str> = columns.iter().map(|column| column.title).collect();
    let mut table = text_table(&titles);
    for item in items {
        table.add_row(columns.iter().map(|column| (column.text)(item)));
    }
    plain(table)
}

/// A table of text, with these headings.
pub(crate) fn text_table(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(if std::io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table.set_header(titles);
    table
}

/// The table without frames, and without blanks at the ends of lines.
pub(crate) fn plain(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn columns(kind: &KindInfo) -> Vec<Column> {
    let always = |title, text| Column { title, wide: false, text };
    let wide = |title, text| Column { title, wide: true, text };
    let mut columns = Vec::new();
    if !kind.is_cluster_scoped() {
        columns.push(always("PROJECT", |item| at(item, "/project")));
    }
    columns.push(always("NAME", |item| at(item, "/name")));
    columns.extend(match kind.name {
        "Instance" => vec![
            always("PHASE", |item| or(at(item, "/status/phase"), "Pending")),
            always("REASON", |item| at(item, "/status/reason")),
            always("PACKAGE", |item| at(item, "/spec/package")),
            always("NODE", |item| at(item, "/status/node")),
            always("ADDRESSES", |item| at(item, "/status/addresses")),
            always("HEALTH", |item| match item.pointer("/status/health") {
                Some(health) => or(at(health, "/state"), "Unknown"),
                None => String::new(),
            }),
            always("RESTARTS", |item| or(at(item, "/status/restarts"), "0")),
            wide("PUBLISHED", published),
            wide("EXIT", |item| at(item, "/status/exit_code")),
            wide("MESSAGE", |item| at(item, "/status/message")),
        ],
        "Node" => vec![
            always("READY", |item| or(at(item, "/status/ready"), "false")),
            always("VCPU", |item| at(item, "/status/vcpu")),
            always("MEMORY MIB", |item| at(item, "/status/memory_mib")),
            always("ACCELERATOR", |item| at(item, "/status/accelerator")),
            always("IPV4", |item| at(item, "/spec/ipv4_prefix")),
            always("MESH", |item| match (at(item, "/status/mesh/ready"), at(item, "/status/mesh/reason")) {
                (ready, _) if ready == "true" => "ready".to_owned(),
                (_, reason) => reason,
            }),
            always("CORDONED", |item| at(item, "/spec/cordoned")),
            wide("ENDPOINTS", |item| at(item, "/status/mesh/endpoints")),
            wide("IPV6", |item| at(item, "/spec/ipv6_prefix")),
            wide("MESSAGE", |item| at(item, "/status/message")),
        ],
        "Package" => vec![
            always("READY", |item| or(at(item, "/status/ready"), "false")),
            always("DIGEST", |item| at(item, "/spec/digest").chars().take(19).collect()),
            always("VCPU", |item| at(item, "/spec/sizes/vcpu")),
            always("MEMORY MIB", |item| at(item, "/spec/sizes/memory_mib")),
            always("DISK MIB", |item| at(item, "/spec/sizes/disk_mib")),
            wide("ENTRYPOINT", |item| at(item, "/spec/entrypoint")),
        ],
        "Build" => vec![
            always("PHASE", |item| or(at(item, "/status/phase"), "Queued")),
            always("PACKAGE", |item| at(item, "/spec/package")),
            always("MESSAGE", |item| at(item, "/status/message")),
        ],
        "Record" => vec![
            always("RECORD", |item| at(item, "/spec/name")),
            always("TYPE", |item| at(item, "/spec/type")),
            always("DATA", |item| at(item, "/spec/data")),
            always("READY", |item| or(at(item, "/status/ready"), "false")),
            wide("MESSAGE", |item| at(item, "/status/message")),
        ],
        "Zone" => vec![
            always("DOMAIN", |item| at(item, "/spec/domain")),
            always("READY", |item| or(at(item, "/status/ready"), "false")),
            wide("MESSAGE", |item| at(item, "/status/message")),
        ],
        "Token" => vec![
            always("ROLE", |item| at(item, "/spec/role")),
            always("FOR", |item| or(at(item, "/spec/project"), "all projects")),
            always("EXPIRES", |item| or(at(item, "/spec/expires_at"), "never")),
            wide("DESCRIPTION", |item| at(item, "/spec/description")),
        ],
        "JoinToken" => vec![
            always("FOR NODE", |item| or(at(item, "/spec/node"), "any")),
            always("EXPIRES", |item| at(item, "/spec/expires_at")),
            always("USED BY", |item| at(item, "/status/used_by")),
            wide("USED AT", |item| at(item, "/status/used_at")),
            wide("DESCRIPTION", |item| at(item, "/spec/description")),
        ],
        "Peer" => vec![
            always("NETWORK", |item| or(at(item, "/spec/network"), "default")),
            always("ADDRESSES", |item| at(item, "/status/addresses")),
            always("EXPIRES", |item| or(at(item, "/spec/expires_at"), "never")),
            always("DESCRIPTION", |item| at(item, "/spec/description")),
            wide("PUBLIC KEY", |item| at(item, "/spec/public_key")),
        ],
        "Event" => vec![
            always("TYPE", |item| or(at(item, "/spec/type"), "Normal")),
            always("ABOUT", |item| format!("{}/{}", at(item, "/spec/kind"), at(item, "/spec/name"))),
            always("REASON", |item| at(item, "/spec/reason")),
            always("MESSAGE", |item| at(item, "/spec/message")),
        ],
        _ => vec![always("DESCRIPTION", |item| at(item, "/spec/description"))],
    });
    columns.push(always("AGE", age));
    columns.push(wide("REVISION", |item| at(item, "/revision")));
    columns
}

/// `8080:80, 5353:53/udp`
fn published(item: &Value) -> String {
    let ports = item.pointer("/spec/publish").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let shown = ports.iter().map(|port| match at(port, "/protocol").as_str() {
        "udp" => format!("{}:{}/udp", at(port, "/host_port"), at(port, "/port")),
        _ => format!("{}:{}", at(port, "/host_port"), at(port, "/port")),
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn at(item: &Value, pointer: &str) -> String {
    match item.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items.iter().map(|item| at(item, "")).collect::<Vec<_>>().join(", "),
        Some(other) => other.to_string(),
    }
}

fn or(text: String, absent: &str) -> String {
    if text.is_empty() { absent.to_owned() } else { text }
}

fn age(item: &Value) -> String {
    let created = at(item, "/created_at").parse::<form_types::Timestamp>().ok();
    let created = created.and_then(|at| SystemTime::try_from(at).ok());
    created.and_then(|at| SystemTime::now().duration_since(at).ok()).map_or_else(String::new, short)
}

/// `42s`, `7m`, `3h`, `12d`.
fn short(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_has_a_row_for_each_and_says_what_is_unknown_with_nothing() {
        let items = [
            json!({"project": "default", "name": "web", "spec": {"package": "web"},
                "status": {"phase": "Running", "addresses": ["100.64.0.2", "fd00::2"], "node": "one"}}),
            json!({"project": "default", "name": "new", "spec": {"package": "web"}}),
        ];
        let text = table(KindInfo::find("instance").unwrap(), &items, false);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..3], ["PROJECT", "NAME", "PHASE"]);
        assert_eq!(lines[1][..5], ["default", "web", "Running", "web", "one"]);
        assert_eq!(lines[2], ["default", "new", "Pending", "web", "0"]);
    }

    #[test]
    fn an_age_has_one_unit() {
        let of = |seconds| short(Duration::from_secs(seconds));
        assert_eq!([of(5), of(300), of(7200), of(200_000)], ["5s", "5m", "2h", "2d"]);
    }
}
