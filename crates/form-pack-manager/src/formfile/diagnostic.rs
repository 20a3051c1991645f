use std::fmt;

/// One thing that is wrong in a Formfile, and where. Its `Display` reads like rustc's:
///
/// ```text
/// error: unknown instruction `COPPY`
///  --> Formfile:2:1
///   |
/// 2 | COPPY hello /hello
///   | ^^^^^
///   = help: did you mean `COPY`?
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Name of the file, as given to the parser.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// How many characters are meant; at least 1.
    pub width: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What to print of the offending line: safe for a terminal, and no longer than one.
    excerpt: Excerpt,
}

impl Diagnostic {
    /// What is wrong at `span` of the file `name`, which reads `text`, and is found out only after it was parsed.
    pub fn at(name: &str, text: &[u8], span: Span, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Report::new(name, text).diagnostic(span, message.into(), Some(hint.into()))
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(f, "error: {}", self.message)?;
        writeln!(f, "{margin}--> {}:{}:{}", self.file, self.line, self.column)?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {}", self.excerpt.text)?;
        write!(f, "{margin} | {}{}", " ".repeat(self.excerpt.before), "^".repeat(self.excerpt.marked))?;
        if let Some(hint) = &self.hint {
            write!(f, "\n{margin} = help: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// A place in the file: byte offsets of the whole text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Of its first byte.
    pub start: usize,
    /// After its last byte.
    pub end: usize,
}

/// Collects diagnostics. A hostile file may be wrong a hundred thousand times, so there is an end to it.
pub(super) struct Report<'t> {
    file: &'t str,
    text: &'t [u8],
    /// Byte offset of the start of each line.
    line_starts: Vec<usize>,
    found: Vec<(Span, Diagnostic)>,
}

const MOST: usize = 1000;

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t str, text: &'t [u8]) -> Self {
        let after_newlines = text.iter().enumerate().filter(|&(_, &b)| b == b'\n').map(|(at, _)| at.saturating_add(1));
        let line_starts = std::iter::once(0).chain(after_newlines).collect();
        Self { file, text, line_starts, found: Vec::new() }
    }

    pub(super) fn error(&mut self, span: Span, message: impl Into<String>) {
        self.add(span, message.into(), None);
    }

    pub(super) fn error_with_hint(&mut self, span: Span, message: impl Into<String>, hint: impl Into<String>) {
        self.add(span, message.into(), Some(hint.into()));
    }

    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= offset).max(1)
    }

    /// The value, if nothing was wrong with it.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, Vec<Diagnostic>> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => {
                self.found.sort_by_key(|(span, _)| span.start);
                Err(self.found.into_iter().map(|(_, diagnostic)| diagnostic).collect())
            }
        }
    }

    fn add(&mut self, span: Span, message: String, hint: Option<String>) {
        if self.found.len() < MOST {
            let diagnostic = self.diagnostic(span, message, hint);
            self.found.push((span, diagnostic));
        }
    }

    fn diagnostic(&self, span: Span, message: String, hint: Option<String>) -> Diagnostic {
        let line = self.line_of(span.start);
        let start = self.line_starts.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let rest = self.text.get(start..).unwrap_or_default();
        let source = rest.split(|&b| b == b'\n').next().unwrap_or_default();
        let source = source.strip_suffix(b"\r").unwrap_or(source);

        let chars = |from: usize, to: usize| match source.get(from..to.min(source.len())) {
            Some(bytes) => String::from_utf8_lossy(bytes).chars().count(),
            None => 0,
        };
        let from = span.start.saturating_sub(start).min(source.len());
        let to = span.end.saturating_sub(start);
        let before = chars(0, from);
        let width = chars(from, to).max(1);
        Diagnostic {
            file: self.file.to_owned(),
            line,
            column: before.saturating_add(1),
            width,
            message,
            hint,
            excerpt: Excerpt::new(source, before, width),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    text: String,
    before: usize,
    marked: usize,
}

impl Excerpt {
    /// Characters of a line that are shown at most, and those of them that stand before the mark.
    const SHOWN: usize = 120;
    const LEAD: usize = 60;

    fn new(source: &[u8], before: usize, width: usize) -> Self {
        let source = String::from_utf8_lossy(source);
        let skip = if before > Self::LEAD { before.saturating_sub(Self::LEAD) } else { 0 };
        // A file may carry escape sequences that would repaint the reader's terminal.
        let printable = |c: char| match c {
            '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        let text: String = source.chars().skip(skip).take(Self::SHOWN).map(printable).collect();
        let before = before.saturating_sub(skip);
        Self { text, before, marked: width.min(Self::SHOWN.saturating_sub(before)).max(1) }
    }
}
