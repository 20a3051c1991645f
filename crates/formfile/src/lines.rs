use crate::diagnostic::{Report, Span};

/// What a Formfile consists of, in its order.
#[derive(Debug)]
pub(crate) enum Item<'t> {
    Blank,
    /// From its `#` to the end of the line.
    Comment(&'t str),
    Instruction(Line<'t>),
}

/// Takes `text` apart. Lines that break a rule of their own are reported and left out.
pub(crate) fn items<'t>(text: &'t [u8], report: &mut Report<'_>) -> Vec<Item<'t>> {
    if text.len() > MAX_FILE {
        let message = format!("the file has {} bytes; a Formfile has at most {MAX_FILE}", text.len());
        let hint = "files for the package belong into the build context";
        report.error_with_hint(Span { start: 0, end: 0 }, message, hint);
        return Vec::new();
    }

    let mut items = Vec::new();
    let mut open: Option<Line<'t>> = None;
    let mut broken = false;
    let mut physical = physical_lines(text);
    while let Some((at, raw)) = physical.next() {
        let piece = match checked(at, raw, report) {
            Some(piece) => piece,
            // What it would have continued, or been continued by, makes no sense without it.
            None => {
                broken = raw.trim_ascii_end().ends_with(b"\\");
                open = None;
                continue;
            }
        };
        let trimmed = piece.trim_matches(is_space);
        if trimmed.starts_with('#') {
            match &mut open {
                Some(line) => line.comments.push((line.pieces.len(), trimmed)),
                None => items.push(Item::Comment(trimmed)),
            }
            continue;
        }
        if trimmed.is_empty() {
            match open.take() {
                Some(line) => report.error_with_hint(
                    line.last(),
                    "the instruction is continued with `\\`, but a blank line follows",
                    "remove the `\\`, or the blank line",
                ),
                None => items.push(Item::Blank),
            }
            broken = false;
            continue;
        }
        let (body, continued) = match piece.trim_end_matches(is_space).strip_suffix('\\') {
            Some(body) => (body, true),
            None => (piece, false),
        };
        if continued && body.trim_matches(is_space).is_empty() {
            let start = at.saturating_add(body.len());
            let span = Span { start, end: start.saturating_add(1) };
            report.error_with_hint(span, "the line holds nothing but its `\\`", "remove the line");
            continue;
        }
        if !broken {
            open.get_or_insert_default().pieces.push((at, body));
        }
        if !continued {
            if let Some(mut line) = open.take() {
                read_heredocs(&mut line, &mut physical, report);
                items.push(Item::Instruction(line));
            }
            broken = false;
        }
    }
    if let Some(line) = open {
        let message = "the instruction is continued with `\\`, but the file ends";
        report.error_with_hint(line.last(), message, "remove the `\\`");
    }
    items
}

/// One instruction, put together from one physical line or several.
#[derive(Debug, Default)]
pub(crate) struct Line<'t> {
    /// Offset in the file and text of each physical line, without the `\` that continues it. None of them is blank.
    pub(crate) pieces: Vec<(usize, &'t str)>,
    /// Comments between them, with the index of the piece that follows.
    pub(crate) comments: Vec<(usize, &'t str)>,
    /// In the order in which they begin.
    pub(crate) heredocs: Vec<Heredoc<'t>>,
}

/// Text that stands in the Formfile, after the instruction that it is for.
#[derive(Debug)]
pub(crate) struct Heredoc<'t> {
    /// The word that ends it.
    pub(crate) name: String,
    /// The word as it stands, from its `<<`.
    pub(crate) marker: Span,
    /// `<<-`: tabs at the start of its lines do not count.
    pub(crate) strip: bool,
    /// Whether its word is in quotes, so that no variables stand in it.
    pub(crate) quoted: bool,
    /// Its lines as they stand.
    pub(crate) body: Vec<(usize, &'t str)>,
    /// The line that ends it.
    pub(crate) end: &'t str,
}

impl<'t> Heredoc<'t> {
    /// The characters of its lines, each of which ends in a newline.
    pub(crate) fn chars(&self) -> impl Iterator<Item = (usize, char)> {
        self.body.iter().flat_map(|&(at, line)| {
            let kept = if self.strip { line.trim_start_matches('\t') } else { line };
            let at = at.saturating_add(line.len()).saturating_sub(kept.len());
            let end = at.saturating_add(kept.len());
            kept.char_indices()
                .map(move |(offset, c)| (at.saturating_add(offset), c))
                .chain(std::iter::once((end, '\n')))
        })
    }
}

impl<'t> Line<'t> {
    /// The characters of the line, each with its offset in the file.
    pub(crate) fn chars(&self) -> impl Iterator<Item = (usize, char)> + Clone {
        self.pieces
            .iter()
            .flat_map(|&(at, piece)| piece.char_indices().map(move |(offset, c)| (at.saturating_add(offset), c)))
    }

    /// Of each joint of two pieces, whether the space around it is one that only separates: then it is as good as any
    /// other space. In quotes, and in what only a shell can tell from quotes, it stands for itself.
    pub(crate) fn free_joints(&self, style: Style) -> Vec<bool> {
        let opaque = match style {
            Style::Raw => true,
            Style::Shell => self.pieces.iter().any(|(_, text)| text.contains('`') || text.contains("$(")),
            Style::Words | Style::Json => false,
        };
        let mut quotes = Quotes::new(style);
        let mut free = Vec::new();
        for pair in self.pieces.windows(2) {
            let [(_, before), (_, after)] = pair else { continue };
            for c in before.chars() {
                quotes.step(c);
            }
            // An escaped space is none that separates.
            let escaped = before.trim_end_matches(is_space).ends_with('\\');
            free.push(
                !opaque && !escaped && quotes.outside() && (before.ends_with(is_space) || after.starts_with(is_space)),
            );
        }
        free
    }

    /// Where its last character stands.
    fn last(&self) -> Span {
        let end = self.pieces.last().map_or(0, |(at, piece)| at.saturating_add(piece.len()));
        Span { start: end, end: end.saturating_add(1) }
    }
}

/// What the arguments of an instruction are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Words between spaces.
    Words,
    /// An array of strings.
    Json,
    /// A shell's affair.
    Shell,
    /// Text as it stands.
    Raw,
}

/// Follows quotes and backslashes from character to character.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quotes {
    style: Style,
    open: Option<char>,
    escaped: bool,
}

impl Quotes {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, open: None, escaped: false }
    }

    pub(crate) fn step(&mut self, c: char) {
        if self.escaped {
            self.escaped = false;
            return;
        }
        match (self.open, c) {
            (None | Some('"'), '\\') if self.style != Style::Json || self.open.is_some() => self.escaped = true,
            (None, '"') => self.open = Some(c),
            (None, '\'') if self.style != Style::Json => self.open = Some(c),
            (Some(open), c) if open == c => self.open = None,
            _ => {}
        }
    }

    pub(crate) fn outside(&self) -> bool {
        self.open.is_none() && !self.escaped
    }
}

/// What separates words.
pub(crate) fn is_space(c: char) -> bool {
    c == ' ' || c == '\t'
}

/// Whether the arguments are an array of strings: a `[` alone may also begin a shell's test, or a glob.
pub(crate) fn is_json(arguments: &str) -> bool {
    arguments
        .strip_prefix('[')
        .is_some_and(|rest| rest.trim_start_matches(is_space).starts_with(['"', ']']) || rest.is_empty())
}

const MAX_FILE: usize = 1 << 20;
const MAX_LINE: usize = 64 << 10;
const MAX_HEREDOCS: usize = 16;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Each line without its end, with its offset.
fn physical_lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0_usize;
    text.split(|&b| b == b'\n').map(move |line| {
        let start = at;
        at = at.saturating_add(line.len()).saturating_add(1);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // Editors on Windows put it there; it means nothing in UTF-8.
        match line.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) if start == 0 => (BYTE_ORDER_MARK.len(), rest),
            _ => (start, line),
        }
    })
}

/// The line as text, if it is text.
fn checked<'t>(at: usize, raw: &'t [u8], report: &mut Report<'_>) -> Option<&'t str> {
    let span = |offset: usize, len: usize| {
        let start = at.saturating_add(offset);
        Span { start, end: start.saturating_add(len) }
    };
    if raw.len() > MAX_LINE {
        report.error(span(0, 0), format!("the line has {} bytes; at most {MAX_LINE} are allowed", raw.len()));
        return None;
    }
    let text = match str::from_utf8(raw) {
        Ok(text) => text,
        Err(e) => {
            let span = span(e.valid_up_to(), e.error_len().unwrap_or(1));
            report.error_with_hint(span, "the line is not UTF-8", "save the file as UTF-8");
            return None;
        }
    };
    if let Some((offset, c)) = text.char_indices().find(|&(_, c)| c.is_control() && c != '\t') {
        let message = format!("the control character U+{:04X} is not allowed here", u32::from(c));
        report.error_with_hint(span(offset, c.len_utf8()), message, "remove it");
        return None;
    }
    Some(text)
}

fn read_heredocs<'t>(
    line: &mut Line<'t>,
    physical: &mut impl Iterator<Item = (usize, &'t [u8])>,
    report: &mut Report<'_>,
) {
    let markers = markers(line);
    if let Some(marker) = markers.get(MAX_HEREDOCS) {
        report.error(marker.marker, format!("there are more than {MAX_HEREDOCS} heredocs"));
    }
    'markers: for mut heredoc in markers {
        for (at, raw) in physical.by_ref() {
            let Some(text) = checked(at, raw, report) else { continue };
            let ends = if heredoc.strip { text.trim_start_matches('\t') } else { text };
            if ends == heredoc.name {
                heredoc.end = text;
                line.heredocs.push(heredoc);
                continue 'markers;
            }
            heredoc.body.push((at, text));
        }
        let hint = format!("end it with a line that holds only `{}`", heredoc.name);
        report.error_with_hint(heredoc.marker, "this heredoc is never closed", hint);
        line.heredocs.push(heredoc);
    }
}

/// Where heredocs begin: a word `<<NAME`, `<<-NAME`, or one of them with NAME in quotes, outside of other quotes; a
/// number may stand before it, as in a shell.
fn markers<'t>(line: &Line<'t>) -> Vec<Heredoc<'t>> {
    let chars: Vec<(usize, char)> = line.chars().skip_while(|&(_, c)| is_space(c)).collect();
    let keyword: String = chars.iter().map(|&(_, c)| c).take_while(|&c| !is_space(c)).take(8).collect();
    let takes = ["RUN", "COPY", "ADD"].iter().any(|takes| keyword.eq_ignore_ascii_case(takes));
    let rest: String = chars.iter().map(|&(_, c)| c).skip(keyword.len()).skip_while(|&c| is_space(c)).take(2).collect();
    if !takes || is_json(&rest) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut quotes = Quotes::new(Style::Shell);
    // Whether all since the last space are digits.
    let mut fresh = false;
    let mut at = 0_usize;
    while let Some(&(_, c)) = chars.get(at) {
        if fresh && quotes.outside() && c == '<' {
            if let Some((heredoc, end)) = marker(&chars, at) {
                found.push(heredoc);
                at = end;
                fresh = false;
                continue;
            }
        }
        fresh = quotes.outside() && (is_space(c) || (fresh && c.is_ascii_digit()));
        quotes.step(c);
        at = at.saturating_add(1);
    }
    found
}

/// The heredoc that begins at `start`, and where its word ends.
fn marker<'t>(chars: &[(usize, char)], start: usize) -> Option<(Heredoc<'t>, usize)> {
    let c = |at: usize| chars.get(at).map(|&(_, c)| c);
    let mut at = start.checked_add(2)?;
    if c(start.checked_add(1)?) != Some('<') {
        return None;
    }
    let strip = c(at) == Some('-');
    at = at.checked_add(usize::from(strip))?;
    let quote = c(at).filter(|&c| c == '"' || c == '\'');
    at = at.checked_add(usize::from(quote.is_some()))?;
    let tail = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let name: String = chars.get(at..)?.iter().map(|&(_, c)| c).take_while(tail).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return None;
    }
    at = at.checked_add(name.len())?;
    if quote.is_some() && c(at) != quote {
        return None;
    }
    at = at.checked_add(usize::from(quote.is_some()))?;
    if c(at).is_some_and(|c| !is_space(c) && !matches!(c, '>' | '|' | ';' | '&' | ')')) {
        return None;
    }
    let (from, _) = chars.get(start)?;
    let (last, c) = chars.get(at.checked_sub(1)?)?;
    let marker = Span { start: *from, end: last.saturating_add(c.len_utf8()) };
    Some((Heredoc { name, marker, strip, quoted: quote.is_some(), body: Vec::new(), end: "" }, at))
}
