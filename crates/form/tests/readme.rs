//! Every `form …` line of the documents can be typed.
//!
//! Because this package has a test, `cargo test --workspace` builds `form` itself, which the stories in `tests/` need.

use std::path::Path;
use std::process::Command;

/// The lines of the shell blocks, with those joined that end with a backslash, and without comments and prompts.
fn shell_lines(text: &str) -> Vec<String> {
    let mut block = None;
    let mut lines = String::new();
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), block) {
            (Some(language), None) => block = Some(["sh", "bash", "shell", "console"].contains(&language)),
            (Some(_), Some(_)) => block = None,
            (None, Some(true)) => lines.extend([line, "\n"]),
            (None, _) => {}
        }
    }
    let lines = lines.replace("\\\n", " ");
    let commands = lines.lines().filter_map(|line| line.split(" #").next()).flat_map(|line| line.split("&&"));
    commands.map(|line| line.trim().trim_start_matches("$ ").trim_start_matches("sudo ").to_owned()).collect()
}

#[test]
fn every_form_command_in_the_documents_can_be_typed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut seen = 0;
    for file in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        for line in shell_lines(&text).iter().filter_map(|line| line.strip_prefix("form ")) {
            let command = line.split(['|', '>', '<', ';', '&']).next().unwrap_or_default();
            // With --help, it is only parsed.
            let mut form = Command::new(env!("CARGO_BIN_EXE_form"));
            let said = form.args(command.split_whitespace()).arg("--help").output().unwrap();
            assert!(said.status.success(), "{file}: form {line}\n{}", String::from_utf8_lossy(&said.stderr));
            seen += 1;
        }
    }
    assert!(seen > 5, "only {seen} commands were found");
}
