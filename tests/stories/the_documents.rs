//! What the README says of the configuration is what `form up` has.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a story may")]

use formation_tests::{repository, story};

#[test]
fn every_key_of_the_readme_is_a_key_with_that_default() {
    let Ok(text) = std::fs::read_to_string(repository().join("README.md")) else {
        return println!("skipped: there is no README.md");
    };
    story(|cloud| {
        let defaults = cloud.form(&["up", "--check-config"]).done();
        let mut seen = 0;
        // Rows of the table: | `state_port` | `3004` | … |
        for line in text.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let (Some(key), default) = (in_backticks(cells[1]), in_backticks(cells[2])) else { continue };
            let row = defaults.lines().find(|row| row.split(" = ").next() == Some(key));
            let row = row.unwrap_or_else(|| panic!("there is no key {key}; there are\n{defaults}"));
            let value = row.split(" = ").nth(1).unwrap().split("  #").next().unwrap().trim().trim_matches('"');
            // In words: something that depends on the machine.
            assert_eq!(value, default.unwrap_or(value), "the default of {key}");
            seen += 1;
        }
        // And none is left out, but for those of the log, which are every service's.
        let keys = defaults.lines().filter(|row| !row.starts_with("log.")).count();
        assert_eq!(seen, keys, "the README's table has not all of\n{defaults}");
    });
}

fn in_backticks(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}
