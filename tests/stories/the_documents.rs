//! What the README says is what the product does.
#![allow(clippy::unwrap_used, reason = "a story may")]

use formation_tests::{form, repository, story};
use std::process::Command;

/// Lines of code blocks, with a `\` at an end joined and comments left out.
fn code(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut lines = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            lines.push_str(line);
            lines.push('\n');
        }
    }
    let lines = lines.replace("\\\n", " ");
    lines.lines().map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned()).collect()
}

fn readme() -> Option<String> {
    std::fs::read_to_string(repository().join("README.md")).ok()
}

#[test]
fn every_form_command_in_the_readme_can_be_typed() {
    let Some(text) = readme() else { return println!("skipped: there is no README.md yet") };
    let commands: Vec<String> = code(&text)
        .into_iter()
        .filter_map(|line| line.trim_start_matches("$ ").strip_prefix("form ").map(str::to_owned))
        .collect();
    if !form().is_file() {
        return println!("skipped: {} is not built", form().display());
    }
    for command in commands {
        // Up to a pipe or a redirection; words in capitals stand for something.
        let words = command.split(['|', '>', '<', ';', '&']).next().unwrap_or_default();
        let words: Vec<String> =
            words.split_whitespace().map(|word| word.trim_matches(['"', '\'']).to_owned()).collect();
        let said = Command::new(form()).env("FORM_PARSE_ONLY", "1").args(&words).arg("--help").output().unwrap();
        assert!(said.status.success(), "form {command}: {}", String::from_utf8_lossy(&said.stderr));
    }
}

#[test]
fn every_key_of_the_readme_is_a_key_with_that_default() {
    let Some(text) = readme() else { return println!("skipped: there is no README.md yet") };
    story(|cloud| {
        let defaults = cloud.form(&["up", "--check-config"]).done();
        // Rows of a table that begin with a key in backticks: | `state_port` | 3004 | … |
        for line in text.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            let [_, key, default, ..] = cells[..] else { continue };
            if !key.chars().all(|c| c.is_ascii_lowercase() || "_.".contains(c)) {
                continue;
            }
            let row = defaults.lines().find(|row| row.split(" = ").next() == Some(key));
            let row = row.unwrap_or_else(|| panic!("there is no key {key}; there are\n{defaults}"));
            let value = row.split(" = ").nth(1).unwrap().split("  #").next().unwrap().trim().trim_matches('"');
            assert_eq!(value, default.trim_matches('"'), "the default of {key}");
        }
    });
}
