use super::diagnostic::{Report, Span};

/// The instructions of `text`, one logical line each: comments and blank lines gone, continuations joined.
///
/// Lines that break a rule of their own are reported and left out.
pub(super) fn logical_lines<'t>(text: &'t [u8], report: &mut Report<'_>) -> Vec<Line<'t>> {
    if text.len() > MAX_FILE {
        let message = format!("the file has {} bytes; a Formfile has at most {MAX_FILE}", text.len());
        report.error_with_hint(
            Span { start: 0, end: 0 },
            message,
            "files for the package belong into the build context",
        );
        return Vec::new();
    }

    let mut lines = Vec::new();
    let mut open: Option<Line<'t>> = None;
    let mut broken = false;
    for (at, raw) in physical_lines(text) {
        let piece = match checked(at, raw, report) {
            Some(piece) => piece,
            // What it would have continued, or been continued by, makes no sense without it.
            None => {
                broken = ends_in_backslash(raw);
                open = None;
                continue;
            }
        };
        let trimmed = piece.trim_matches(is_space);
        if trimmed.starts_with('#') {
            continue;
        }
        if trimmed.is_empty() {
            if let Some(line) = open.take() {
                report.error_with_hint(
                    line.last(),
                    "the instruction is continued with `\\`, but a blank line follows",
                    "remove the `\\`, or the blank line",
                );
            }
            broken = false;
            continue;
        }
        let (body, continued) = match piece.trim_end_matches(is_space).strip_suffix('\\') {
            Some(body) => (body, true),
            None => (piece, false),
        };
        if !broken {
            open.get_or_insert_default().push(at, body);
        }
        if !continued {
            lines.extend(open.take());
            broken = false;
        }
    }
    if let Some(line) = open {
        report.error_with_hint(
            line.last(),
            "the instruction is continued with `\\`, but the file ends",
            "remove the `\\`",
        );
    }
    lines
}

/// One instruction, put together from one physical line or several.
#[derive(Debug, Default)]
pub(super) struct Line<'t> {
    /// Offset in the file and text of each physical line.
    pieces: Vec<(usize, &'t str)>,
}

impl<'t> Line<'t> {
    /// The characters of the line, each with its offset in the file.
    pub(super) fn chars(&self) -> impl Iterator<Item = (usize, char)> + Clone {
        self.pieces
            .iter()
            .flat_map(|&(at, piece)| piece.char_indices().map(move |(offset, c)| (at.saturating_add(offset), c)))
    }

    fn push(&mut self, at: usize, piece: &'t str) {
        self.pieces.push((at, piece));
    }

    /// Where its last character stands.
    fn last(&self) -> Span {
        let end = self.pieces.last().map_or(0, |(at, piece)| at.saturating_add(piece.len()));
        Span { start: end, end: end.saturating_add(1) }
    }
}

/// What separates words.
pub(super) fn is_space(c: char) -> bool {
    c == ' ' || c == '\t'
}

const MAX_FILE: usize = 1 << 20;
const MAX_LINE: usize = 64 << 10;
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

fn ends_in_backslash(raw: &[u8]) -> bool {
    raw.trim_ascii_end().ends_with(b"\\")
}

/// The line as text, if it is text.
fn checked<'t>(at: usize, raw: &'t [u8], report: &mut Report<'_>) -> Option<&'t str> {
    let span = |offset: usize, len: usize| {
        let start = at.saturating_add(offset);
        Span { start, end: start.saturating_add(len) }
    };
    if raw.len() > MAX_LINE {
        report.error(span(0, 1), format!("the line has {} bytes; at most {MAX_LINE} are allowed", raw.len()));
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
