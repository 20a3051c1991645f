use std::collections::HashMap;

use crate::ast::{Arg, Command, Copy, Formfile, Healthcheck, Op, Run, Settings, Source, Stage, Step};
use crate::diagnostic::{Diagnostic, Fault, Report, Span};
use crate::keywords::{FOREIGN, KEYWORDS, find, near, shortened};
use crate::layout::Spaces;
use crate::lines::{Item, Line, Style, is_json, items};
use crate::template::Template;
use crate::words::{Instruction, Word, is_name, plain_words, split_pair, template, templates, text_template, word};
use crate::{flags, settings, value};

impl Formfile {
    /// Parses the Formfile `text`, which is untrusted. `name` is what diagnostics call it.
    ///
    /// Fails with all that is wrong, in the order of the file; after 1000 findings it stops looking.
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, Vec<Diagnostic>> {
        let mut report = Report::new(name, text);
        let mut draft = Draft::default();
        for item in items(text, &mut report) {
            if let Item::Instruction(line) = item {
                draft.take(&line, &mut report);
            }
        }
        let formfile = draft.finish(&mut report);
        let found = report.found();
        if found.is_empty() { Ok(formfile) } else { Err(found) }
    }
}

#[derive(Default)]
struct Draft {
    args: Vec<Arg>,
    stages: Vec<Stage>,
    settings: Settings,
    /// Lines of what is given once in a file, or once in a stage.
    seen: HashMap<&'static str, usize>,
    names: HashMap<String, usize>,
    early: bool,
}

impl Draft {
    fn take(&mut self, line: &Line<'_>, report: &mut Report<'_>) {
        let mut instruction = Instruction::new(line);
        let Some(keyword) = find(&instruction.keyword.text) else { return unknown(&instruction.keyword, report) };
        let keyword = keyword.canonical;
        let span = instruction.keyword.span;
        let first_end = line.pieces.first().map_or(0, |(at, text)| at.saturating_add(text.len()));
        if span.end > first_end {
            let hint = "write it on one line, with a space after it";
            return report.error_with_hint(span, "the keyword is broken over two lines", hint);
        }
        if !matches!(keyword, "FROM" | "ARG") && self.stages.is_empty() && !self.early {
            self.early = true;
            let hint = "only ARG may; start with `FROM scratch` or another base";
            report.error_with_hint(span, format!("{keyword} stands before FROM"), hint);
        }
        if instruction.rest.is_empty() {
            let shown = instruction.keyword.text.to_ascii_uppercase();
            report.error_with_hint(
                span,
                format!("{shown} has no argument"),
                format!("for example `{}`", example(&shown)),
            );
            // It was meant; saying that it is missing would send the reader to look elsewhere.
            self.seen.insert(keyword, report.line_of(span.start));
            self.early |= keyword == "FROM";
            return;
        }
        if keyword == "FROM" {
            return self.from(&instruction, report);
        }
        if settings::is_setting(keyword) {
            if self.once(keyword, &instruction.keyword, report) {
                settings::set(&mut self.settings, keyword, &instruction, report);
            }
            return;
        }
        if matches!(keyword, "ENTRYPOINT" | "CMD" | "HEALTHCHECK" | "STOPSIGNAL")
            && !self.once(keyword, &instruction.keyword, report)
        {
            return;
        }
        let whole = instruction.span();
        let style = style_of(keyword, &instruction);
        let text = Spaces::new(style).collapse(&instruction.joined(style));
        let text = format!("{keyword} {text}");
        for op in ops(keyword, &mut instruction, report).unwrap_or_default() {
            match (op, self.stages.last_mut()) {
                (op, Some(stage)) => stage.steps.push(Step { span: whole, text: text.clone(), op }),
                (Op::Arg(arg), None) => self.args.push(arg),
                // That it stands before FROM was said.
                (_, None) => {}
            }
        }
    }

    fn once(&mut self, keyword: &'static str, word: &Word, report: &mut Report<'_>) -> bool {
        let Some(line) = self.seen.insert(keyword, report.line_of(word.span.start)) else { return true };
        let shown = word.text.to_ascii_uppercase();
        let message = format!("{shown} is given twice; it stands in line {line} already");
        report.error_with_hint(word.span, message, "keep one of them");
        self.seen.insert(keyword, line);
        false
    }

    fn from(&mut self, instruction: &Instruction<'_, '_>, report: &mut Report<'_>) {
        self.early = true;
        // Each stage starts anew with these.
        for keyword in ["ENTRYPOINT", "CMD", "HEALTHCHECK", "STOPSIGNAL"] {
            self.seen.remove(keyword);
        }
        let stage = from(instruction, report);
        if let Some((name, span)) = stage.as_ref().and_then(|(_, name)| name.as_ref()) {
            let line = report.line_of(span.start);
            if let Some(line) = self.names.insert(name.clone(), line) {
                let message = format!("the stage `{name}` stands in line {line} already");
                report.error_with_hint(*span, message, "give each stage a name of its own");
            }
        }
        let (from, name) = match stage {
            Some((from, name)) => (from, name.map(|(name, _)| name)),
            // So that what follows is judged as a stage.
            None => (Template { pieces: Vec::new(), span: instruction.keyword.span }, None),
        };
        self.stages.push(Stage { from, name, steps: Vec::new() });
    }

    fn finish(self, report: &mut Report<'_>) -> Formfile {
        // What is missing stands nowhere; the first line is where people look.
        let top = Span { start: 0, end: 0 };
        if self.stages.is_empty() && !self.early {
            report.error_with_hint(top, "FROM is missing", "start the Formfile with `FROM scratch` or another base");
        }
        if let Some(last) = self.stages.last().filter(|last| last.from.literal() == Some("scratch")) {
            if !self.seen.contains_key("ENTRYPOINT") && !self.seen.contains_key("CMD") {
                let hint = format!("for example `{}`", example("ENTRYPOINT"));
                report.error_with_hint(last.from.span, "ENTRYPOINT is missing: the package starts nothing", hint);
            }
        }
        Formfile { args: self.args, stages: self.stages, settings: self.settings }
    }
}

/// What the arguments of an instruction are made of.
pub(crate) fn style_of(keyword: &str, instruction: &Instruction<'_, '_>) -> Style {
    // Flags stand before what decides.
    let mut rest = instruction.rest.as_slice();
    while rest.starts_with_dashes() {
        let end = rest.iter().position(|&(_, c)| c == ' ' || c == '\t').unwrap_or(rest.len());
        rest = rest.get(end..).unwrap_or_default();
        let gap = rest.iter().take_while(|&&(_, c)| c == ' ' || c == '\t').count();
        rest = rest.get(gap..).unwrap_or_default();
    }
    let text: String = rest.iter().map(|&(_, c)| c).collect();
    let text = match keyword {
        "HEALTHCHECK" => text.get(3..).unwrap_or_default().trim_start_matches([' ', '\t']),
        _ => &text,
    };
    match keyword {
        "RUN" | "ENTRYPOINT" | "CMD" | "HEALTHCHECK" => {
            if is_json(text) {
                Style::Json
            } else {
                Style::Shell
            }
        }
        "COPY" | "ADD" | "VOLUME" if is_json(text) => Style::Json,
        "DESCRIPTION" => Style::Raw,
        "ENV" | "LABEL" if !plain_words(rest).first().is_some_and(|first| first.text.contains('=')) => Style::Raw,
        _ => Style::Words,
    }
}

trait Dashes {
    fn starts_with_dashes(&self) -> bool;
}

impl Dashes for [(usize, char)] {
    fn starts_with_dashes(&self) -> bool {
        matches!(self, [(_, '-'), (_, '-'), ..])
    }
}

pub(crate) fn example(keyword: &str) -> &'static str {
    find(keyword).map_or("", |keyword| keyword.example)
}

fn from(instruction: &Instruction<'_, '_>, report: &mut Report<'_>) -> Option<(Template, Option<(String, Span)>)> {
    if instruction.rest.starts_with_dashes() {
        let span = plain_words(&instruction.rest).first().map_or(instruction.keyword.span, |word| word.span);
        report.error_with_hint(span, "FROM takes no flags", "a package is for the machines that the cloud has");
        return None;
    }
    let mut words = templates(&instruction.rest, report)?.into_iter();
    let base = words.next()?;
    if base.literal() == Some("") {
        report.error_with_hint(base.span, "FROM names nothing", "write `FROM scratch` or another base");
        return None;
    }
    let Some(as_word) = words.next() else { return Some((base, None)) };
    let name = words.next();
    let (true, Some(name), None) =
        (as_word.literal().is_some_and(|text| text.eq_ignore_ascii_case("as")), name, words.next())
    else {
        report.error_with_hint(
            as_word.span,
            "only `AS name` may follow the base",
            "for example `FROM scratch AS build`",
        );
        return None;
    };
    let span = name.span;
    let name = name.literal().map(str::to_lowercase).filter(|name| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.len() <= 128
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'))
    });
    match name.as_deref() {
        None => {
            let hint = "a name starts with a letter and has letters, digits, `-`, `_` and `.`";
            report.error_with_hint(span, "this cannot name a stage", hint);
            None
        }
        Some("scratch") => {
            report.error_with_hint(span, "`scratch` is the empty base", "give the stage another name");
            None
        }
        Some(name) => Some((base, Some((name.to_owned(), span)))),
    }
}

fn ops(keyword: &str, instruction: &mut Instruction<'_, '_>, report: &mut Report<'_>) -> Option<Vec<Op>> {
    let one = |op: Op| Some(vec![op]);
    match keyword {
        "ARG" => args(instruction, report),
        "ENV" => {
            let pairs = pairs(instruction, "ENV", report)?;
            let named = pairs.into_iter().map(|(name, value)| Some((name_of(&name, report)?, value)));
            let named: Vec<Option<_>> = named.collect();
            one(Op::Env(named.into_iter().collect::<Option<_>>()?))
        }
        "LABEL" => {
            let pairs = pairs(instruction, "LABEL", report)?;
            if let Some((name, _)) = pairs.iter().find(|(name, _)| name.pieces.is_empty()) {
                report.error_with_hint(name.span, "the label has no name", "for example `LABEL team=web`");
                return None;
            }
            one(Op::Label(pairs))
        }
        "WORKDIR" => {
            let path = single(keyword, instruction, report)?;
            check(&path, report, |text, span| value::package_path(text, "/", span))?;
            one(Op::Workdir(path))
        }
        "USER" => {
            let user = single(keyword, instruction, report)?;
            check(&user, report, value::user)?;
            one(Op::User(user))
        }
        "STOPSIGNAL" => {
            let signal = single(keyword, instruction, report)?;
            check(&signal, report, value::signal)?;
            one(Op::Stopsignal(signal))
        }
        "EXPOSE" => {
            let ports = templates(&instruction.rest, report)?;
            check_all(&ports, report, value::port)?;
            one(Op::Expose(ports))
        }
        "INSTALL" => {
            let packages = templates(&instruction.rest, report)?;
            check_all(&packages, report, value::debian_package)?;
            one(Op::Install(packages))
        }
        "VOLUME" => {
            let paths = json_or_words(instruction, report)?;
            check_all(&paths, report, |text, span| {
                if text.starts_with('/') {
                    return value::package_path(text, "/", span);
                }
                Err(Fault::new(span, "the path of a volume is relative", format!("write `/{text}`")))
            })?;
            one(Op::Volume(paths))
        }
        "ENTRYPOINT" => one(Op::Entrypoint(command("ENTRYPOINT", instruction, report)?)),
        "CMD" => one(Op::Cmd(command("CMD", instruction, report)?)),
        "HEALTHCHECK" => one(Op::Healthcheck(healthcheck(instruction, report)?)),
        "RUN" => one(Op::Run(run(instruction, report)?)),
        _ => one(Op::Copy(copy(keyword, instruction, report)?)),
    }
}

fn args(instruction: &Instruction<'_, '_>, report: &mut Report<'_>) -> Option<Vec<Op>> {
    let mut ops = Vec::new();
    for word in templates(&instruction.rest, report)? {
        let span = word.span;
        let (name, default) = match split_pair(word) {
            Ok((name, default)) => (name, Some(default)),
            Err(name) => (name, None),
        };
        ops.push(name_of(&name, report).map(|name| Op::Arg(Arg { name, default, span })));
    }
    ops.into_iter().collect()
}

fn name_of(template: &Template, report: &mut Report<'_>) -> Option<String> {
    if let Some(name) = template.literal().filter(|name| is_name(name)) {
        return Some(name.to_owned());
    }
    let shown = template.literal().map_or_else(|| "this".to_owned(), |name| format!("`{}`", shortened(name)));
    let hint = "a name has letters, digits and `_`, and starts with no digit";
    report.error_with_hint(template.span, format!("{shown} cannot name an environment variable"), hint);
    None
}

/// `name=value...`, or `name value`.
fn pairs(
    instruction: &Instruction<'_, '_>,
    keyword: &str,
    report: &mut Report<'_>,
) -> Option<Vec<(Template, Template)>> {
    let chars = &instruction.rest;
    let end = chars.iter().position(|&(_, c)| c == ' ' || c == '\t').unwrap_or(chars.len());
    let (first, after) = chars.split_at_checked(end)?;
    let gap = after.iter().take_while(|&&(_, c)| c == ' ' || c == '\t').count();
    let after = after.get(gap..).filter(|after| !after.is_empty());
    let pairs: Vec<Option<_>> = match after {
        Some(value) if !first.iter().any(|&(_, c)| c == '=') => {
            vec![Some((template(first, report)?, template(value, report)?))]
        }
        _ => templates(chars, report)?
            .into_iter()
            .map(|word| match split_pair(word) {
                Ok(pair) => Some(pair),
                Err(word) => {
                    let hint = format!("for example `{}`", example(keyword));
                    report.error_with_hint(word.span, format!("{keyword} needs `name=value` here"), hint);
                    None
                }
            })
            .collect(),
    };
    let mut sound = true;
    for (_, value) in pairs.iter().flatten() {
        if value.literal().is_some_and(|text| text.len() > value::MOST_ENV_BYTES) {
            report.error(value.span, format!("the value has more than {} bytes", value::MOST_ENV_BYTES));
            sound = false;
        }
    }
    if !sound {
        return None;
    }
    pairs.into_iter().collect()
}

/// Exactly one word.
fn single(keyword: &str, instruction: &Instruction<'_, '_>, report: &mut Report<'_>) -> Option<Template> {
    let mut words = templates(&instruction.rest, report)?.into_iter();
    let first = words.next()?;
    if let Some(second) = words.next() {
        let hint = format!("for example `{}`", example(keyword));
        report.error_with_hint(second.span, format!("{keyword} takes one argument"), hint);
        return None;
    }
    Some(first)
}

/// Judges now what no variable can change any more.
fn check<T>(
    template: &Template,
    report: &mut Report<'_>,
    judge: impl Fn(&str, Span) -> Result<T, Fault>,
) -> Option<()> {
    match template.literal() {
        Some(text) => report.take(judge(text, template.span)).map(|_| ()),
        None => Some(()),
    }
}

fn check_all<T>(
    templates: &[Template],
    report: &mut Report<'_>,
    judge: impl Fn(&str, Span) -> Result<T, Fault>,
) -> Option<()> {
    let judged: Vec<_> = templates.iter().map(|template| check(template, report, &judge)).collect();
    judged.into_iter().collect()
}

fn json_or_words(instruction: &Instruction<'_, '_>, report: &mut Report<'_>) -> Option<Vec<Template>> {
    let arguments = instruction.arguments();
    if !is_json(&arguments.text) {
        return templates(&instruction.rest, report);
    }
    let words = json(instruction, report)?;
    let template = |text: String| {
        let chars: Vec<_> = text.chars().map(|c| (arguments.span.start, c)).collect();
        let mut template = text_template(&chars, arguments.span, report)?;
        template.respan(arguments.span);
        Some(template)
    };
    words.into_iter().map(template).collect()
}

/// A JSON array of strings, and nothing else.
fn json(instruction: &Instruction<'_, '_>, report: &mut Report<'_>) -> Option<Vec<String>> {
    let text: String = instruction.rest.iter().map(|&(_, c)| c).collect();
    match serde_json::from_str(&text) {
        Ok(words) => Some(words),
        Err(e) => {
            // The text has no line breaks, so the column is the byte that the parser stopped at, from 1.
            let stop = e.column().saturating_sub(1);
            let mut bytes = 0_usize;
            let hit = instruction.rest.iter().find(|(_, c)| {
                bytes = bytes.saturating_add(c.len_utf8());
                bytes > stop
            });
            let end = instruction.arguments().span.end;
            let span = hit
                .map_or(Span { start: end, end }, |&(at, c)| Span { start: at, end: at.saturating_add(c.len_utf8()) });
            let hint = "in JSON: `[\"/hello\", \"--port\", \"8080\"]`";
            report.error_with_hint(span, "this is not a JSON array of strings", hint);
            None
        }
    }
}

fn command(what: &str, instruction: &Instruction<'_, '_>, report: &mut Report<'_>) -> Option<Command> {
    let arguments = instruction.arguments();
    if !is_json(&arguments.text) {
        return Some(Command::Shell(instruction.shell_text()));
    }
    let words = json(instruction, report)?;
    // The arguments of CMD may be for the program of ENTRYPOINT, but even then the first is not nothing.
    if words.first().is_none_or(String::is_empty) {
        report.error_with_hint(
            arguments.span,
            format!("{what} names no program"),
            format!("for example `{}`", example(what)),
        );
        return None;
    }
    let (most, bytes) = (value::MOST_ARGUMENTS, value::MOST_ARGUMENT_BYTES);
    if words.len() > most || words.iter().any(|word| word.len() > bytes) {
        report.error(arguments.span, format!("at most {most} arguments of {bytes} bytes each are allowed"));
        return None;
    }
    if words.iter().any(|word| word.contains('\0')) {
        let hint = "no program can be given one; remove the `\\u0000`";
        report.error_with_hint(arguments.span, "an argument holds a NUL", hint);
        return None;
    }
    Some(Command::Exec(words))
}

fn healthcheck(instruction: &mut Instruction<'_, '_>, report: &mut Report<'_>) -> Option<Option<Healthcheck>> {
    let options = flags::health(instruction.take_flags(), report);
    let end = instruction.rest.iter().position(|&(_, c)| c == ' ' || c == '\t').unwrap_or(instruction.rest.len());
    let first: Vec<_> = instruction.rest.drain(..end).collect();
    let gap = instruction.rest.iter().take_while(|&&(_, c)| c == ' ' || c == '\t').count();
    instruction.rest.drain(..gap);
    let first = word(&first).unwrap_or(Word { text: String::new(), span: instruction.keyword.span });
    match (first.text.to_ascii_uppercase().as_str(), instruction.rest.is_empty()) {
        ("NONE", true) => Some(None),
        ("CMD", false) => {
            let command = command("HEALTHCHECK", instruction, report)?;
            options.map(|options| Some(Healthcheck { command, ..options }))
        }
        _ => {
            let hint = format!("for example `{}`, or `HEALTHCHECK NONE`", example("HEALTHCHECK"));
            report.error_with_hint(first.span, "HEALTHCHECK needs `CMD` and a command, or `NONE`", hint);
            None
        }
    }
}

fn run(instruction: &mut Instruction<'_, '_>, report: &mut Report<'_>) -> Option<Run> {
    let flags = flags::run(instruction.take_flags(), report);
    if instruction.rest.is_empty() {
        report.error_with_hint(
            instruction.keyword.span,
            "RUN has no command",
            format!("for example `{}`", example("RUN")),
        );
        return None;
    }
    let line = instruction.line;
    let command = match line.heredocs.as_slice() {
        [] => command("RUN", instruction, report)?,
        [only] if instruction.arguments().span == only.marker => {
            let body: String = only.chars().map(|(_, c)| c).collect();
            if body.trim().is_empty() {
                report.error_with_hint(only.marker, "the heredoc is empty", "write the commands between its ends");
                return None;
            }
            if body.starts_with("#!") { Command::Script(body) } else { Command::Shell(body) }
        }
        heredocs => {
            let mut text = instruction.shell_text();
            for heredoc in heredocs {
                let lines = heredoc.body.iter().map(|&(_, line)| line).chain(std::iter::once(heredoc.end));
                for line in lines {
                    text.push('\n');
                    text.push_str(line);
                }
            }
            text.push('\n');
            Command::Shell(text)
        }
    };
    let (mounts, network) = flags?;
    Some(Run { command, mounts, network })
}

fn copy(keyword: &str, instruction: &mut Instruction<'_, '_>, report: &mut Report<'_>) -> Option<Copy> {
    let flags = flags::copy(keyword, instruction.take_flags(), report);
    let mut words = json_or_words(instruction, report)?;
    let line = instruction.line;
    let (Some(destination), false) = (words.pop(), words.is_empty()) else {
        let hint = format!("for example `{}`", example(keyword));
        report.error_with_hint(instruction.span(), format!("{keyword} needs a source and a destination"), hint);
        return None;
    };
    let (from, chown, chmod) = flags?;
    let mut sound = true;
    let mut sources = Vec::new();
    for word in words {
        let Some(heredoc) = line.heredocs.iter().find(|heredoc| heredoc.marker == word.span) else {
            let whole_root = from.is_some();
            sound &= check(&word, report, |text, span| value::source_path(text, whole_root, span)).is_some();
            sources.push(Source::Path(word));
            continue;
        };
        let chars: Vec<_> = heredoc.chars().collect();
        let contents = if heredoc.quoted {
            let text = chars.iter().map(|&(_, c)| c).collect::<String>();
            let pieces = if text.is_empty() { Vec::new() } else { vec![crate::Piece::Literal(text)] };
            Some(Template { pieces, span: heredoc.marker })
        } else {
            text_template(&chars, heredoc.marker, report)
        };
        sources.push(Source::Inline { name: heredoc.name.clone(), contents: contents? });
    }
    if let Some(heredoc) = line.heredocs.iter().find(|heredoc| from.is_some() || heredoc.marker == destination.span) {
        report.error_with_hint(
            heredoc.marker,
            "a heredoc is copied out of the Formfile alone",
            "leave `--from` out, and name a destination",
        );
        sound = false;
    }
    check(&destination, report, |text, span| value::package_path(text, "/", span))?;
    if let Some(text) = destination.literal().filter(|text| sources.len() > 1 && !value::is_directory(text)) {
        let message = "several sources need a directory to go into";
        report.error_with_hint(destination.span, message, format!("write `{text}/`"));
        return None;
    }
    sound.then_some(Copy { sources, destination, from, chown, chmod, add: keyword == "ADD" })
}

fn unknown(word: &Word, report: &mut Report<'_>) {
    let upper = shortened(&word.text).to_ascii_uppercase();
    if let Some((_, hint)) = FOREIGN.iter().find(|(name, _)| *name == upper) {
        return report.error_with_hint(word.span, format!("{upper} is not supported"), *hint);
    }
    let message = format!("unknown instruction `{}`", shortened(&word.text));
    match near(&upper, KEYWORDS.iter().map(|keyword| keyword.name)) {
        Some(known) => report.error_with_hint(word.span, message, format!("did you mean `{known}`?")),
        None => {
            let own = KEYWORDS.iter().filter(|keyword| keyword.name == keyword.canonical);
            let names: Vec<_> = own.map(|keyword| keyword.name).collect();
            report.error_with_hint(word.span, message, format!("the instructions are {}", names.join(", ")));
        }
    }
}
