use globset::GlobMatcher;

use crate::diagnostic::{Diagnostic, Report, Span};
use crate::value::glob;

/// `.formignore`: what of a directory is left out of the build context.
///
/// A glob a line, from the directory's root: `*`, `?` and `[...]` within a name, `**` over any number of names. What is
/// below a name that is left out is left out as well. `!` in front takes in again; of several, the last that fits holds.
/// `#` begins a comment.
#[derive(Debug, Default)]
pub struct Ignore {
    rules: Vec<(bool, GlobMatcher)>,
}

const MOST_BYTES: usize = 1 << 20;
const MOST_RULES: usize = 1000;

impl Ignore {
    /// Parses `text`. `name` is what diagnostics call it.
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, Vec<Diagnostic>> {
        let mut report = Report::new(name, text);
        let mut rules = Vec::new();
        let top = Span { start: 0, end: 0 };
        match str::from_utf8(text) {
            _ if text.len() > MOST_BYTES => report.error(top, format!("the file has more than {MOST_BYTES} bytes")),
            Err(_) => report.error_with_hint(top, "the file is not UTF-8", "save it as UTF-8"),
            Ok(text) => {
                let mut at = 0_usize;
                for line in text.split_inclusive('\n') {
                    let rule = line.trim();
                    let start = at.saturating_add(line.len().saturating_sub(line.trim_start().len()));
                    let span = Span { start, end: start.saturating_add(rule.len()) };
                    at = at.saturating_add(line.len());
                    if rule.is_empty() || rule.starts_with('#') {
                        continue;
                    }
                    if rules.len() >= MOST_RULES {
                        report.error(span, format!("there are more than {MOST_RULES} lines"));
                        break;
                    }
                    let (takes_in, path) = rule.strip_prefix('!').map_or((false, rule), |path| (true, path.trim()));
                    let path = path.trim_matches('/');
                    if path.is_empty() || path.split('/').any(|part| part == "..") {
                        report.error_with_hint(span, "this fits nothing in the directory", "name a path in it");
                        continue;
                    }
                    let path = path.strip_prefix("./").unwrap_or(path);
                    if let Some(glob) = report.take(glob(path, span)) {
                        rules.push((takes_in, glob));
                    }
                }
            }
        }
        let found = report.found();
        if found.is_empty() { Ok(Self { rules }) } else { Err(found) }
    }

    /// Whether `path`, relative to the directory and with `/` between its names, is left out.
    pub fn excludes(&self, path: &str) -> bool {
        let parents = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
        let all: Vec<&str> = parents.chain([path]).collect();
        let fits = |glob: &GlobMatcher| all.iter().any(|path| glob.is_match(path));
        self.rules.iter().rev().find(|(_, glob)| fits(glob)).is_some_and(|(takes_in, _)| !takes_in)
    }

    /// Whether something below what is left out may be taken in again.
    pub fn takes_in_again(&self) -> bool {
        self.rules.iter().any(|(takes_in, _)| *takes_in)
    }
}
