//! `nix/services.nix`, read without Nix: the table has literals only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use rnix::ast::{self, AstToken as _, HasEntry as _, InterpolPart, LiteralKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) const TABLE: &str = "nix/services.nix";

/// A row: what a service is, and what it needs of the machine that runs it. See `nix/table.nix`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    #[serde(rename = "crate")]
    pub(crate) krate: String,
    pub(crate) description: String,
    pub(crate) script: String,
    pub(crate) runs: Runs,
    pub(crate) network: Network,
    pub(crate) ports: Vec<Port>,
    pub(crate) probe: String,
    pub(crate) user: User,
    pub(crate) capabilities: Vec<String>,
    pub(crate) devices: Vec<String>,
    pub(crate) volumes: Vec<String>,
    /// Directories of what outlives the process and is spoken to by files there, until the machine is off.
    pub(crate) runtime: Vec<String>,
    pub(crate) configuration: Map<String, Value>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) needs: Vec<String>,
    pub(crate) packages: Vec<String>,
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) guest: bool,
    pub(crate) memory_mib: u32,
    pub(crate) unique_mib: u32,
    pub(crate) slim_mib: u32,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// The key of the configuration that it is set with.
    pub(crate) key: String,
    pub(crate) open: Open,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Runs {
    Once,
    Each,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Network {
    Own,
    Host,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum User {
    Formation,
    Root,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Open {
    Everyone,
    Cluster,
}

pub(crate) type Services = BTreeMap<String, Service>;

/// All rows.
///
/// # Errors
/// If the table cannot be read, is no Nix, or a row has a field too few or too many: with both names.
pub(crate) fn read() -> Result<Services> {
    read_from(TABLE)
}

pub(crate) fn read_from(path: &str) -> Result<Services> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    rows(&text).with_context(|| path.to_owned())
}

fn rows(text: &str) -> Result<Services> {
    let Value::Object(rows) = literal(&parse(text)?)? else { bail!("not a set of services") };
    let services = rows.into_iter().map(|(name, row)| {
        let service: Service = serde_json::from_value(row).with_context(|| name.clone())?;
        if !service.ports.iter().any(|port| port.name == service.probe) {
            bail!("{name}: field `probe` names no port");
        }
        Ok((name, service))
    });
    services.collect()
}

/// Every `.nix` file of the flake, parsed.
///
/// # Errors
/// If one of them is no Nix, with what is wrong and where.
pub(crate) fn parse_all() -> Result<Vec<PathBuf>> {
    let mut files = vec![Path::new("flake.nix").to_owned()];
    for entry in std::fs::read_dir("nix").context("cannot read nix/")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "nix") {
            files.push(path);
        }
    }
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        parse(&text).with_context(|| file.display().to_string())?;
    }
    Ok(files)
}

fn parse(text: &str) -> Result<ast::Expr> {
    let root = rnix::Root::parse(text).ok().map_err(|error| anyhow!("{error}"))?;
    root.expr().ok_or_else(|| anyhow!("there is nothing in it"))
}

/// The value of an expression of literals.
fn literal(expression: &ast::Expr) -> Result<Value> {
    let other = || anyhow!("`{expression}` is no literal, and the table has only those");
    Ok(match expression {
        ast::Expr::AttrSet(set) if set.rec_token().is_none() && set.inherits().next().is_none() => {
            let mut map = Map::new();
            for entry in set.attrpath_values() {
                let (Some(path), Some(value)) = (entry.attrpath(), entry.value()) else { return Err(other()) };
                let mut names = path.attrs();
                let name = match (names.next(), names.next()) {
                    (Some(ast::Attr::Ident(name)), None) => name.to_string(),
                    (Some(ast::Attr::Str(name)), None) => string(&name).ok_or_else(other)?,
                    _ => return Err(other()),
                };
                if map.insert(name.clone(), literal(&value)?).is_some() {
                    bail!("{name} is there twice");
                }
            }
            Value::Object(map)
        }
        ast::Expr::List(list) => Value::Array(list.items().map(|item| literal(&item)).collect::<Result<_>>()?),
        ast::Expr::Str(text) => Value::String(string(text).ok_or_else(other)?),
        ast::Expr::Ident(name) if name.to_string() == "true" => Value::Bool(true),
        ast::Expr::Ident(name) if name.to_string() == "false" => Value::Bool(false),
        ast::Expr::Literal(number) => match number.kind() {
            LiteralKind::Integer(number) => number.syntax().text().parse::<i64>().map_err(|_| other())?.into(),
            _ => return Err(other()),
        },
        _ => return Err(other()),
    })
}

fn string(text: &ast::Str) -> Option<String> {
    let parts = text.normalized_parts().into_iter().map(|part| match part {
        InterpolPart::Literal(text) => Some(text),
        InterpolPart::Interpolation(_) => None,
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_literals_is_read() {
        let text = "{ # why\n a = { n = 5; \"b/c\" = [ true \"x\" ]; e = { }; };\n}";
        let value = literal(&parse(text).unwrap()).unwrap();
        assert_eq!(value, serde_json::json!({"a": {"n": 5, "b/c": [true, "x"], "e": {}}}));
    }

    #[test]
    fn what_has_to_be_evaluated_is_refused() {
        for text in ["{ a = 1 + 1; }", "{ a = \"${b}\"; }", "rec { a = 1; }", "{ inherit a; }", "{ a.b = 1; }", "x: x"]
        {
            assert!(literal(&parse(text).unwrap()).is_err(), "{text}");
        }
        assert!(parse("{ a = ; }").is_err());
        assert!(literal(&parse("{ a = 1; a = 2; }").unwrap()).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn a_bad_row_is_told_with_its_name_and_field() {
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../nix/services.nix")).unwrap();
        assert!(rows(&text).unwrap().len() >= 4);
        for (from, to, wanted) in [
            ("    guest = false;\n", "", ["form-state", "guest"]),
            ("    guest = false;\n", "    guest = false;\n    gest = 1;\n", ["form-state", "gest"]),
            ("probe = \"api\"", "probe = \"apt\"", ["form-state", "probe"]),
            ("runs = \"once\"", "runs = \"twice\"", ["form-state", "twice"]),
        ] {
            assert!(text.contains(from), "{from}");
            let said = format!("{:#}", rows(&text.replacen(from, to, 1)).unwrap_err());
            assert!(wanted.iter().all(|word| said.contains(word)), "{said}");
        }
    }
}
