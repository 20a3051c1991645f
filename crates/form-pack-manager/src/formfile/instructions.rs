use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use super::arguments::{Instruction, Word, dollar};
use super::diagnostic::{Report, Span};
use super::lines::Line;
use super::{Formfile, Machine, Place, Port, Protocol, Step};

/// What the instructions say together. `None`, or a value that nobody may use, if something was reported.
pub(super) fn interpret(lines: &[Line<'_>], report: &mut Report<'_>) -> Option<Formfile> {
    let mut draft = Draft::default();
    for line in lines {
        draft.take(&Instruction::new(line), report);
    }
    draft.finish(report)
}

const KEYWORDS: &[&str] = &["FROM", "COPY", "ENV", "WORKDIR", "USER", "EXPOSE", "ENTRYPOINT", "VCPU", "MEMORY", "DISK"];

/// What people bring along from Dockerfiles, and what to write instead.
const FOREIGN: &[(&str, &str)] = &[
    ("RUN", "building inside a VM comes later; COPY what you have built"),
    ("CMD", "write the program and its arguments into ENTRYPOINT"),
    ("ADD", "use COPY; it neither downloads nor unpacks"),
    ("ARG", "build arguments come later; write the value out"),
    ("LABEL", "labels belong to the Build, not into the Formfile"),
    ("VOLUME", "volumes belong to the Instance, not into the Formfile"),
    ("HEALTHCHECK", "health checks belong to the Instance for now"),
    ("SHELL", "there is no shell form"),
    ("STOPSIGNAL", "the entrypoint gets SIGTERM; other signals come later"),
    ("ONBUILD", "triggers are not planned"),
    ("MAINTAINER", "labels belong to the Build, not into the Formfile"),
];

/// What a Package can hold (`package.proto`).
const MOST_ENV: usize = 512;
const MOST_ENV_BYTES: usize = 32_768;
const MOST_PORTS: usize = 64;
const MOST_ARGUMENTS: usize = 256;
const MOST_ARGUMENT_BYTES: usize = 4096;

#[derive(Default)]
struct Draft {
    from: Once<()>,
    late_from_reported: bool,
    steps: Vec<Step>,
    env: Vec<(String, String)>,
    /// Where in `env` a name stands.
    env_index: HashMap<String, usize>,
    workdir: Option<String>,
    user: Once<String>,
    ports: Vec<Port>,
    ports_seen: HashSet<Port>,
    entrypoint: Once<Vec<String>>,
    vcpu: Once<u64>,
    memory: Once<u64>,
    disk: Once<u64>,
}

/// A value that may be given once, and the line that gave it, even if the value was wrong.
struct Once<T> {
    line: Option<usize>,
    value: Option<T>,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self { line: None, value: None }
    }
}

impl<T> Once<T> {
    fn set(&mut self, keyword: &Word, value: Option<T>, report: &mut Report<'_>) {
        match self.line {
            None => {
                self.line = Some(report.line_of(keyword.span.start));
                self.value = value;
            }
            Some(line) => {
                let keyword_upper = keyword.text.to_ascii_uppercase();
                let message = format!("{keyword_upper} is given twice; it stands in line {line} already");
                report.error_with_hint(keyword.span, message, "keep one of them");
            }
        }
    }
}

impl Draft {
    fn take(&mut self, instruction: &Instruction, report: &mut Report<'_>) {
        let keyword = instruction.keyword.text.to_ascii_uppercase();
        let known = KEYWORDS.contains(&keyword.as_str());
        if known && keyword != "FROM" && self.from.line.is_none() && !self.late_from_reported {
            self.late_from_reported = true;
            let hint = "start the Formfile with `FROM scratch`";
            report.error_with_hint(instruction.keyword.span, format!("{keyword} stands before FROM"), hint);
        }
        if known && instruction.raw().text.is_empty() {
            report.error_with_hint(instruction.keyword.span, format!("{keyword} has no argument"), example(&keyword));
            // It was meant; saying that it is missing would send the reader to look elsewhere.
            match keyword.as_str() {
                "FROM" => self.from.set(&instruction.keyword, None, report),
                "ENTRYPOINT" => self.entrypoint.set(&instruction.keyword, None, report),
                _ => {}
            }
            return;
        }
        let word = &instruction.keyword;
        match keyword.as_str() {
            "FROM" => {
                let base = from(instruction, report);
                self.from.set(word, base, report);
            }
            "COPY" => self.copy(instruction, report),
            "ENV" => self.env(instruction, report),
            "WORKDIR" => self.workdir(instruction, report),
            "USER" => {
                let user = user(instruction, report);
                self.user.set(word, user, report);
            }
            "EXPOSE" => self.expose(instruction, report),
            "ENTRYPOINT" => {
                let entrypoint = entrypoint(instruction, report);
                self.entrypoint.set(word, entrypoint, report);
            }
            "VCPU" => {
                let count = number(instruction, 1..=64, "", report);
                self.vcpu.set(word, count, report);
            }
            "MEMORY" => {
                let mib = number(instruction, 64..=1_048_576, " MiB", report);
                self.memory.set(word, mib, report);
            }
            "DISK" => {
                let mib = number(instruction, 16..=1_048_576, " MiB", report);
                self.disk.set(word, mib, report);
            }
            _ => unknown(word, &keyword, report),
        }
    }

    fn copy(&mut self, instruction: &Instruction, report: &mut Report<'_>) {
        let words = instruction.words();
        if let Some(flag) = words.first().filter(|word| word.text.starts_with("--")) {
            return report.error_with_hint(flag.span, "COPY takes no flags yet", "owners are root; x bits are kept");
        }
        if words.first().is_some_and(|word| word.text.starts_with('[')) {
            let span = instruction.raw().span;
            return report.error_with_hint(span, "COPY has no JSON form yet", "write `COPY src... dst`");
        }
        let Some((destination, sources)) = words.split_last().filter(|(_, sources)| !sources.is_empty()) else {
            return report.error_with_hint(instruction.raw().span, "COPY needs a destination", example("COPY"));
        };

        let into_directory =
            destination.text.ends_with('/') || destination.text.ends_with("/.") || destination.text == ".";
        if sources.len() > 1 && !into_directory {
            let hint = format!("write `{}/`", destination.text);
            report.error_with_hint(destination.span, "several sources need a directory to go into", hint);
        }
        let place = |word: &Word, path| Place { path, span: word.span };
        let sources: Vec<_> = sources.iter().map(|source| Some(place(source, context_path(source, report)?))).collect();
        let path = self.package_path(destination, report);
        if let (Some(sources), Some(path)) = (sources.into_iter().collect(), path) {
            self.steps.push(Step::Copy { sources, destination: place(destination, path), into_directory });
        }
    }

    fn env(&mut self, instruction: &Instruction, report: &mut Report<'_>) {
        let (first, rest) = instruction.first_and_rest();
        let pairs: Vec<(String, String, Span)> = match rest {
            Some(value) if !first.text.contains('=') => {
                if let Some(offset) = value.text.find('$') {
                    let start = value.span.start.saturating_add(offset);
                    return dollar(Span { start, end: start.saturating_add(1) }, report);
                }
                vec![(first.text, value.text, first.span)]
            }
            _ => {
                let Some(words) = instruction.quoted_words(report) else { return };
                let pair = |word: Word| match word.text.split_once('=') {
                    Some((name, value)) => Some((name.to_owned(), value.to_owned(), word.span)),
                    None => {
                        report.error_with_hint(word.span, "ENV needs `name=value` here", example("ENV"));
                        None
                    }
                };
                words.into_iter().filter_map(pair).collect()
            }
        };
        for (name, value, span) in pairs {
            let head = |c: char| c.is_ascii_alphabetic() || c == '_';
            let tail = |c: char| head(c) || c.is_ascii_digit();
            if !(name.starts_with(head) && name.chars().all(tail)) {
                let hint = "a name has letters, digits and `_`, and starts with no digit";
                report.error_with_hint(span, format!("`{name}` cannot name an environment variable"), hint);
                continue;
            }
            if value.len() > MOST_ENV_BYTES {
                report
                    .error(span, format!("the value has {} bytes; at most {MOST_ENV_BYTES} are allowed", value.len()));
                continue;
            }
            let full = self.env.len() >= MOST_ENV;
            match self.env_index.get(&name).and_then(|&at| self.env.get_mut(at)) {
                Some((_, old)) => *old = value,
                None if full => {
                    return report.error(span, format!("there are more than {MOST_ENV} environment variables"));
                }
                None => {
                    self.env_index.insert(name.clone(), self.env.len());
                    self.env.push((name, value));
                }
            }
        }
    }

    fn workdir(&mut self, instruction: &Instruction, report: &mut Report<'_>) {
        let word = instruction.raw();
        if let Some(path) = self.package_path(&word, report) {
            self.steps.push(Step::Workdir(Place { path: path.clone(), span: word.span }));
            self.workdir = Some(path);
        } else {
            // One mistake is one report: what follows may be relative to what this line meant.
            self.workdir.get_or_insert_with(|| "/".to_owned());
        }
    }

    fn expose(&mut self, instruction: &Instruction, report: &mut Report<'_>) {
        for word in instruction.words() {
            let Some(port) = port(&word, report).filter(|&port| self.ports_seen.insert(port)) else { continue };
            if self.ports.len() >= MOST_PORTS {
                return report.error(word.span, format!("there are more than {MOST_PORTS} ports"));
            }
            self.ports.push(port);
        }
    }

    /// An absolute path in the package, out of `word` and the working directory.
    fn package_path(&self, word: &Word, report: &mut Report<'_>) -> Option<String> {
        if !plain_path(word, report) {
            return None;
        }
        let base = match (&self.workdir, word.text.starts_with('/')) {
            (_, true) => "",
            (Some(workdir), false) => workdir,
            (None, false) => {
                let hint = format!("write `/{}`, or put a WORKDIR before it", word.text);
                report.error_with_hint(word.span, "the path is relative, and no WORKDIR says to what", hint);
                return None;
            }
        };
        let joined = format!("{base}/{}", word.text);
        let path = joined
            .split('/')
            .filter(|part| !matches!(*part, "" | "."))
            .fold(String::new(), |path, part| path + "/" + part);
        Some(if path.is_empty() { "/".to_owned() } else { path })
    }

    fn finish(self, report: &mut Report<'_>) -> Option<Formfile> {
        // What is missing stands nowhere; the first line is where people look.
        let top = Span { start: 0, end: 0 };
        if self.from.line.is_none() && !self.late_from_reported {
            report.error_with_hint(top, "FROM is missing", "start the Formfile with `FROM scratch`");
        }
        if self.entrypoint.line.is_none() {
            report.error_with_hint(top, "ENTRYPOINT is missing", example("ENTRYPOINT"));
        }
        let default = Machine::default();
        let vcpu = match self.vcpu.value {
            Some(count) => u32::try_from(count).ok()?,
            None => default.vcpu,
        };
        Some(Formfile {
            steps: self.steps,
            env: self.env,
            workdir: self.workdir.unwrap_or_else(|| "/".to_owned()),
            user: self.user.value,
            ports: self.ports,
            entrypoint: self.entrypoint.value?,
            machine: Machine {
                vcpu,
                memory_mib: self.memory.value.unwrap_or(default.memory_mib),
                disk_mib: self.disk.value.unwrap_or(default.disk_mib),
            },
        })
    }
}

fn from(instruction: &Instruction, report: &mut Report<'_>) -> Option<()> {
    let base = instruction.raw();
    if base.text == "scratch" {
        return Some(());
    }
    let hint = "write `FROM scratch`; base images and named stages come later";
    report.error_with_hint(base.span, format!("FROM knows no `{}`", base.text), hint);
    None
}

fn user(instruction: &Instruction, report: &mut Report<'_>) -> Option<String> {
    let word = instruction.raw();
    let part = |text: &str| {
        let head = |c: char| c.is_ascii_lowercase() || c == '_';
        let tail = |c: char| head(c) || c.is_ascii_digit() || c == '-';
        let name = text.len() <= 32 && text.starts_with(head) && text.chars().all(tail);
        // 2^32 - 1 is what the kernel takes for "no change".
        name || (text.bytes().all(|b| b.is_ascii_digit()) && text.parse().is_ok_and(|id: u32| id != u32::MAX))
    };
    let (user, group) =
        word.text.split_once(':').map_or((word.text.as_str(), None), |(user, group)| (user, Some(group)));
    if part(user) && group.is_none_or(part) {
        return Some(word.text);
    }
    let hint = "write `user` or `user:group`: lower-case names as useradd takes them, or numbers";
    report.error_with_hint(word.span, format!("`{}` names no user", word.text), hint);
    None
}

fn port(word: &Word, report: &mut Report<'_>) -> Option<Port> {
    let (number, protocol) = word.text.split_once('/').unwrap_or((&word.text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => {
            let hint = format!("write `{number}/tcp` or `{number}/udp`");
            report.error_with_hint(word.span, format!("`{protocol}` is no protocol that EXPOSE knows"), hint);
            return None;
        }
    };
    match digits(number) {
        Some(number @ 1..=65535) => Some(Port { number: u16::try_from(number).ok()?, protocol }),
        _ => {
            let hint = "a port is a number from 1 to 65535; name several one by one";
            report.error_with_hint(word.span, format!("`{number}` is no port"), hint);
            None
        }
    }
}

fn entrypoint(instruction: &Instruction, report: &mut Report<'_>) -> Option<Vec<String>> {
    let raw = instruction.raw();
    if !raw.text.starts_with('[') {
        let words: Vec<_> = instruction.words().into_iter().map(|word| word.text).collect();
        let json = serde_json::to_string(&words).unwrap_or_default();
        let hint = format!("there is no shell to run it; write `ENTRYPOINT {json}`");
        report.error_with_hint(raw.span, "ENTRYPOINT is not a JSON array", hint);
        return None;
    }
    let words: Vec<String> = match serde_json::from_str(&raw.text) {
        Ok(words) => words,
        Err(e) => {
            // The text has no line breaks, so the column is the byte that the parser stopped at, from 1.
            let span = instruction.span_at(e.column().saturating_sub(1));
            report.error_with_hint(span, "this is not a JSON array of strings", example("ENTRYPOINT"));
            return None;
        }
    };
    if words.first().is_none_or(String::is_empty) {
        report.error_with_hint(raw.span, "ENTRYPOINT names no program", example("ENTRYPOINT"));
        return None;
    }
    if words.len() > MOST_ARGUMENTS || words.iter().any(|word| word.len() > MOST_ARGUMENT_BYTES) {
        let message = format!("at most {MOST_ARGUMENTS} arguments of {MOST_ARGUMENT_BYTES} bytes each are allowed");
        report.error(raw.span, message);
        return None;
    }
    if words.iter().any(|word| word.contains('\0')) {
        report.error_with_hint(
            raw.span,
            "an argument holds a NUL",
            "no program can be given one; remove the `\\u0000`",
        );
        return None;
    }
    Some(words)
}

fn number(instruction: &Instruction, range: RangeInclusive<u64>, unit: &str, report: &mut Report<'_>) -> Option<u64> {
    let word = instruction.raw();
    match digits(&word.text) {
        Some(number) if range.contains(&number) => Some(number),
        Some(_) => {
            let message = format!("{} is out of range: from {} to {}{unit}", word.text, range.start(), range.end());
            report.error(word.span, message);
            None
        }
        None => {
            let message = format!("`{}` is no whole number", word.text);
            let hint = format!(
                "write a number from {} to {}{}",
                range.start(),
                range.end(),
                if unit.is_empty() { "" } else { "; the unit is MiB and is not written" }
            );
            report.error_with_hint(word.span, message, hint);
            None
        }
    }
}

/// A decimal number without sign; one that is too large for any of our ranges counts as the largest.
fn digits(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// A path of the build context: relative, without `.` and empty parts.
fn context_path(word: &Word, report: &mut Report<'_>) -> Option<String> {
    if word.text.starts_with('/') {
        let hint = format!("sources are relative to the build context; write `{}`", word.text.trim_start_matches('/'));
        report.error_with_hint(word.span, "the source is an absolute path", hint);
        return None;
    }
    if word.text.contains(['*', '?', '[']) {
        let hint = "name the files one by one, or copy their directory; wildcards come later";
        report.error_with_hint(word.span, "COPY takes no wildcards yet", hint);
        return None;
    }
    plain_path(word, report).then(|| {
        let parts: Vec<_> = word.text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        parts.join("/")
    })
}

/// Whether nothing about the path needs explaining.
fn plain_path(word: &Word, report: &mut Report<'_>) -> bool {
    if word.text.split('/').any(|part| part == "..") {
        report.error_with_hint(word.span, "the path contains `..`", "write it without");
        return false;
    }
    if word.text.contains('$') {
        dollar(word.span, report);
        return false;
    }
    // What Linux allows, so that nothing fails that late.
    if word.text.len() > 4095 || word.text.split('/').any(|part| part.len() > 255) {
        report.error(word.span, "the path is too long: at most 255 bytes for a name and 4095 in all");
        return false;
    }
    true
}

fn unknown(word: &Word, keyword: &str, report: &mut Report<'_>) {
    if let Some((_, hint)) = FOREIGN.iter().find(|(name, _)| *name == keyword) {
        return report.error_with_hint(word.span, format!("{keyword} is not supported"), *hint);
    }
    let message = format!("unknown instruction `{}`", shortened(&word.text));
    // A keyword is short; measuring a long word against each would cost its length squared.
    let near = KEYWORDS
        .iter()
        .map(|known| (strsim::osa_distance(known, shortened(keyword)), known))
        .min()
        .filter(|&(distance, known)| distance <= 2 && distance < known.len());
    match near {
        Some((_, known)) => report.error_with_hint(word.span, message, format!("did you mean `{known}`?")),
        None => report.error_with_hint(word.span, message, format!("the instructions are {}", KEYWORDS.join(", "))),
    }
}

fn shortened(text: &str) -> &str {
    text.char_indices().nth(32).and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}

fn example(keyword: &str) -> &'static str {
    match keyword {
        "FROM" => "write `FROM scratch`",
        "COPY" => "for example `COPY hello /hello`",
        "ENV" => "for example `ENV LOG=info`",
        "WORKDIR" => "for example `WORKDIR /app`",
        "USER" => "for example `USER 1000:1000`",
        "EXPOSE" => "for example `EXPOSE 8080`",
        "ENTRYPOINT" => "for example `ENTRYPOINT [\"/hello\", \"--port\", \"8080\"]`",
        "VCPU" => "for example `VCPU 1`",
        "MEMORY" => "for example `MEMORY 256`, in MiB",
        _ => "for example `DISK 256`, in MiB",
    }
}
