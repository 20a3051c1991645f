//! The language and the page that describes it are one.

use std::collections::BTreeSet;

use formfile::{Formfile, KEYWORDS, LINTS};

const PAGE: &str = include_str!("../../../docs/formfile.md");

/// The first cell of each row of the table under `heading`, without its backquotes.
fn rows(heading: &str) -> BTreeSet<&'static str> {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).expect(heading);
    let section = section.split("\n## ").next().unwrap_or(section);
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.collect()
}

#[test]
fn every_keyword_has_its_row_and_every_row_its_keyword() {
    let known: BTreeSet<_> = KEYWORDS.iter().map(|keyword| keyword.name).collect();
    assert_eq!(rows("Keywords"), known);
}

#[test]
fn every_lint_has_its_row_and_every_row_its_lint() {
    let known: BTreeSet<_> = LINTS.iter().map(|(name, _)| *name).collect();
    assert_eq!(rows("Lints"), known);
}

#[test]
fn every_example_is_a_formfile() {
    let examples: Vec<&str> = PAGE.split("```formfile\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 2, "{}", examples.len());
    for example in examples {
        let parsed = Formfile::parse("docs/formfile.md", example.as_bytes());
        let told = parsed.err().unwrap_or_default();
        assert!(told.is_empty(), "{example}\n{}", told.iter().map(|error| error.plain()).collect::<String>());
    }
}
