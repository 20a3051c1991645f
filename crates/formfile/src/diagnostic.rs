use std::fmt;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, SourceSpan};

/// One thing that is wrong in a Formfile, or could be better, and where. Its `Display` is the message alone;
/// [`Diagnostic::plain`] is what goes into a status, [`Diagnostic::fancy`] what goes to a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Name of the file, as given to the parser.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The place in the text.
    pub span: Span,
    /// Whether it keeps the file from being built.
    pub severity: Severity,
    /// The stable name of the lint that found it; errors have none.
    pub lint: Option<&'static str>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What to print of the offending line: safe for a terminal, and no longer than one.
    excerpt: Excerpt,
}

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It is built as it stands.
    Warning,
    /// It is refused.
    Error,
}

/// A place in the file: byte offsets of the whole text, on boundaries of characters where it is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Of its first byte.
    pub start: usize,
    /// After its last byte.
    pub end: usize,
}

/// What is wrong with a value, found out by who only knows where it stood. [`Diagnostic::new`] makes it printable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where the value stands.
    pub span: Span,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Fault {
    /// What is wrong at `span`, and what to do about it.
    pub fn new(span: Span, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { span, message: message.into(), hint: Some(hint.into()) }
    }

    /// What is wrong at `span`, where the message says already what to do.
    pub fn bare(span: Span, message: impl Into<String>) -> Self {
        Self { span, message: message.into(), hint: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl Diagnostic {
    /// The error `fault` of the file `name`, which reads `text`.
    pub fn new(name: &str, text: &[u8], fault: Fault) -> Self {
        Report::new(name, text).diagnostic(fault, Severity::Error, None)
    }

    /// Message, place, text, caret and hint, in ASCII and without colours.
    pub fn plain(&self) -> String {
        self.render(GraphicalTheme::none(), 110)
    }

    /// The same in colours and lines, for a terminal that is `width` characters wide.
    pub fn fancy(&self, width: usize) -> String {
        self.render(GraphicalTheme::unicode(), width)
    }

    fn render(&self, theme: GraphicalTheme, width: usize) -> String {
        let mut out = String::new();
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_links(false);
        // Writing to a string does not fail, and the excerpt holds its own span.
        let _ = handler.render_report(&mut out, self);
        let lines: Vec<_> = out.lines().map(str::trim_end).collect();
        lines.join("\n").trim_matches('\n').to_owned()
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Diagnostic {}

impl miette::Diagnostic for Diagnostic {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.lint.map(|lint| Box::new(lint) as Box<dyn fmt::Display>)
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.hint.as_ref().map(|hint| Box::new(hint) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(self)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (offset, len) = self.excerpt.mark;
        Some(Box::new(std::iter::once(LabeledSpan::new(None, offset, len))))
    }
}

/// Of the file, a diagnostic keeps one line; miette asks for no other.
impl miette::SourceCode for Diagnostic {
    fn read_span<'a>(
        &'a self,
        _span: &SourceSpan,
        _before: usize,
        _after: usize,
    ) -> Result<Box<dyn miette::SpanContents<'a> + 'a>, MietteError> {
        let text = self.excerpt.text.as_bytes();
        let whole = SourceSpan::new(0.into(), text.len());
        let line = self.line.saturating_sub(1);
        let column = self.column.saturating_sub(1);
        Ok(Box::new(MietteSpanContents::new_named(self.file.clone(), text, whole, line, column, 1)))
    }
}

/// Collects diagnostics. A hostile file may be wrong a hundred thousand times, so there is an end to it.
pub(crate) struct Report<'t> {
    file: &'t str,
    text: &'t [u8],
    /// Byte offset of the start of each line.
    line_starts: Vec<usize>,
    is_text: bool,
    found: Vec<Diagnostic>,
}

const MOST: usize = 1000;

impl<'t> Report<'t> {
    pub(crate) fn new(file: &'t str, text: &'t [u8]) -> Self {
        let after_newlines = text.iter().enumerate().filter(|&(_, &b)| b == b'\n').map(|(at, _)| at.saturating_add(1));
        let line_starts = std::iter::once(0).chain(after_newlines).collect();
        Self { file, text, line_starts, is_text: str::from_utf8(text).is_ok(), found: Vec::new() }
    }

    pub(crate) fn error(&mut self, span: Span, message: impl Into<String>) {
        self.fault(Fault::bare(span, message));
    }

    pub(crate) fn error_with_hint(&mut self, span: Span, message: impl Into<String>, hint: impl Into<String>) {
        self.fault(Fault::new(span, message, hint));
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        if self.found.len() < MOST {
            self.found.push(self.diagnostic(fault, Severity::Error, None));
        }
    }

    pub(crate) fn warning(&mut self, lint: &'static str, fault: Fault) {
        if self.found.len() < MOST {
            self.found.push(self.diagnostic(fault, Severity::Warning, Some(lint)));
        }
    }

    /// The value, or what was wrong with it, which is reported.
    pub(crate) fn take<T>(&mut self, value: Result<T, Fault>) -> Option<T> {
        value.map_err(|fault| self.fault(fault)).ok()
    }

    pub(crate) fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= offset).max(1)
    }

    /// All that was found, in the order of the file.
    pub(crate) fn found(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|diagnostic| diagnostic.span.start);
        self.found
    }

    /// The span, kept inside of the text and widened to whole characters.
    fn within(&self, span: Span) -> Span {
        let inside = |at: usize| self.text.get(at).is_some_and(|&b| b & 0xc0 == 0x80);
        let len = self.text.len();
        let (mut start, mut end) = (span.start.min(len), span.end.min(len));
        // In what is not UTF-8, nothing is whole.
        if self.is_text {
            while inside(start) {
                start = start.saturating_sub(1);
            }
            while inside(end) {
                end = end.saturating_add(1);
            }
        }
        Span { start, end: end.max(start) }
    }

    fn diagnostic(&self, fault: Fault, severity: Severity, lint: Option<&'static str>) -> Diagnostic {
        let span = self.within(fault.span);
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
            span,
            severity,
            lint,
            message: printable(&fault.message),
            hint: fault.hint.as_deref().map(printable),
            excerpt: Excerpt::new(source, before, width),
        }
    }
}

/// Messages quote the file, and what is quoted may be long, or hold escape sequences out of a JSON string.
fn printable(text: &str) -> String {
    const MOST: usize = 400;
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut out: String = text.chars().take(MOST).map(clean).collect();
    if text.chars().nth(MOST).is_some() {
        out.push_str("...");
    }
    out
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    text: String,
    /// Byte offset and length of what is meant.
    mark: (usize, usize),
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
        let mut shown: Vec<char> = source.chars().skip(skip).take(Self::SHOWN).map(printable).collect();
        let before = before.saturating_sub(skip);
        // At the end of a line, what is meant is what is not there; the caret wants a place to point at.
        while shown.len() <= before {
            shown.push(' ');
        }
        let bytes = |chars: &mut dyn Iterator<Item = &char>| chars.map(|c| c.len_utf8()).sum::<usize>();
        let start = bytes(&mut shown.iter().take(before));
        let len = bytes(&mut shown.iter().skip(before).take(width));
        Self { text: shown.into_iter().collect(), mark: (start, len) }
    }
}
