use crate::diagnostic::{Report, Span};
use crate::lines::{Line, Style, is_space};
use crate::template::{Otherwise, Piece, Template};

/// A piece of an instruction, and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    pub(crate) text: String,
    pub(crate) span: Span,
}

/// Characters, each with its offset in the file.
pub(crate) type Chars = [(usize, char)];

/// An instruction: its keyword, and all that follows it.
#[derive(Debug)]
pub(crate) struct Instruction<'l, 't> {
    pub(crate) line: &'l Line<'t>,
    pub(crate) keyword: Word,
    /// The characters of the arguments, without spaces at the ends.
    pub(crate) rest: Vec<(usize, char)>,
}

impl<'l, 't> Instruction<'l, 't> {
    pub(crate) fn new(line: &'l Line<'t>) -> Self {
        let mut chars = line.chars().skip_while(|&(_, c)| is_space(c)).peekable();
        let mut keyword = Vec::new();
        while let Some(next) = chars.next_if(|&(_, c)| !is_space(c)) {
            keyword.push(next);
        }
        let mut rest: Vec<_> = chars.skip_while(|&(_, c)| is_space(c)).collect();
        while rest.last().is_some_and(|&(_, c)| is_space(c)) {
            rest.pop();
        }
        let keyword = word(&keyword).unwrap_or(Word { text: String::new(), span: Span { start: 0, end: 0 } });
        Self { line, keyword, rest }
    }

    /// From the keyword to the last argument.
    pub(crate) fn span(&self) -> Span {
        Span { start: self.keyword.span.start, end: self.arguments().span.end.max(self.keyword.span.end) }
    }

    /// The arguments as they stand.
    pub(crate) fn arguments(&self) -> Word {
        word(&self.rest).unwrap_or(Word { text: String::new(), span: self.keyword.span })
    }

    /// Takes the words that begin with `--` off the arguments: name and value, if there is a `=`.
    pub(crate) fn take_flags(&mut self) -> Vec<Flag> {
        let mut flags = Vec::new();
        while self.rest.first().is_some_and(|&(_, c)| c == '-') && self.rest.get(1).is_some_and(|&(_, c)| c == '-') {
            let end = self.rest.iter().position(|&(_, c)| is_space(c)).unwrap_or(self.rest.len());
            let mut flag: Vec<_> = self.rest.drain(..end).collect();
            let gap = self.rest.iter().take_while(|&&(_, c)| is_space(c)).count();
            self.rest.drain(..gap);
            let span = word(&flag).map_or(self.keyword.span, |word| word.span);
            let equals = flag.iter().position(|&(_, c)| c == '=');
            let value = equals.map(|at| flag.drain(at..).skip(1).collect());
            flags.push(Flag { name: flag.iter().map(|&(_, c)| c).collect(), value, span });
        }
        flags
    }

    /// The arguments as a shell gets them: space around a joint that only separates is one space.
    pub(crate) fn shell_text(&self) -> String {
        self.joined(Style::Shell)
    }

    pub(crate) fn joined(&self, style: Style) -> String {
        let free = self.line.free_joints(style);
        let Some(&(start, _)) = self.rest.first() else { return String::new() };
        let mut out = String::new();
        let mut joint = false;
        for (index, &(at, piece)) in self.line.pieces.iter().enumerate() {
            let from = start.saturating_sub(at);
            let freed = index.checked_sub(1).and_then(|before| free.get(before)).copied().unwrap_or(false);
            // What stands before the arguments.
            if at.saturating_add(piece.len()) <= start {
                continue;
            }
            let piece = if at <= start { piece.get(from..).unwrap_or_default() } else { piece };
            if joint && freed {
                out.truncate(out.trim_end_matches(is_space).len());
                out.push(' ');
                out.push_str(piece.trim_start_matches(is_space));
            } else {
                out.push_str(piece);
            }
            joint = true;
        }
        out.truncate(out.trim_end_matches(is_space).len());
        out
    }
}

/// `--name=value`
pub(crate) struct Flag {
    pub(crate) name: String,
    pub(crate) value: Option<Vec<(usize, char)>>,
    pub(crate) span: Span,
}

impl Flag {
    pub(crate) fn value_text(&self) -> String {
        self.value.iter().flatten().map(|&(_, c)| c).collect()
    }
}

/// The characters as one word; `None` if there are none.
pub(crate) fn word(chars: &Chars) -> Option<Word> {
    let &(start, _) = chars.first()?;
    let &(last, c) = chars.last()?;
    let span = Span { start, end: last.saturating_add(c.len_utf8()) };
    Some(Word { text: chars.iter().map(|&(_, c)| c).collect(), span })
}

/// Words between spaces, as they stand.
pub(crate) fn plain_words(chars: &Chars) -> Vec<Word> {
    chars.split(|&(_, c)| is_space(c)).filter_map(word).collect()
}

/// Words between spaces that no quotes or backslash protect, with these taken off and variables found.
///
/// In `"..."` and outside of quotes, `\` takes the space or sign after it as it is; in `'...'` everything stands for
/// itself.
pub(crate) fn templates(chars: &Chars, report: &mut Report<'_>) -> Option<Vec<Template>> {
    Lexer { chars, at: 0, split: Split::Spaces, sound: true }.words(report)
}

/// All of it as one word: quotes come off, spaces stay.
pub(crate) fn template(chars: &Chars, report: &mut Report<'_>) -> Option<Template> {
    Lexer { chars, at: 0, split: Split::Never, sound: true }.words(report)?.pop()
}

/// The text of a heredoc or of a JSON string: only `$`, and `\` before `$` or `\`, mean something.
pub(crate) fn text_template(chars: &Chars, span: Span, report: &mut Report<'_>) -> Option<Template> {
    let words = Lexer { chars, at: 0, split: Split::Text, sound: true }.words(report)?;
    let pieces = words.into_iter().next().map(|word| word.pieces).unwrap_or_default();
    Some(Template { pieces, span })
}

/// The pairs `name=value` of ENV, ARG and LABEL: the first `=` of each word that no variable hides.
pub(crate) fn split_pair(template: Template) -> Result<(Template, Template), Template> {
    let Some(Piece::Literal(text)) = template.pieces.first() else { return Err(template) };
    let Some((name, value)) = text.split_once('=') else { return Err(template) };
    let literal = |text: &str| (!text.is_empty()).then(|| Piece::Literal(text.to_owned()));
    let span = template.span;
    let name = Template { pieces: literal(name).into_iter().collect(), span };
    let pieces = literal(value).into_iter().chain(template.pieces.iter().skip(1).cloned()).collect();
    Ok((name, Template { pieces, span }))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Split {
    Spaces,
    Never,
    Text,
}

struct Lexer<'c> {
    chars: &'c Chars,
    at: usize,
    split: Split,
    sound: bool,
}

/// How deep variables may stand in the words of others.
const DEEPEST: usize = 8;

impl Lexer<'_> {
    fn words(mut self, report: &mut Report<'_>) -> Option<Vec<Template>> {
        let mut words = Vec::new();
        while let Some((start, c)) = self.peek() {
            if self.split == Split::Spaces && is_space(c) {
                self.at = self.at.saturating_add(1);
                continue;
            }
            let pieces = self.pieces(0, None, report)?;
            words.push(Template { pieces, span: Span { start, end: self.end() } });
        }
        self.sound.then_some(words)
    }

    /// Pieces up to a space, or up to the `}` of the variable that they stand in. `outer` is the quote around that.
    fn pieces(&mut self, depth: usize, outer: Option<(usize, char)>, report: &mut Report<'_>) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut quote: Option<(usize, char)> = outer;
        while let Some((at, c)) = self.peek() {
            let bare = quote.is_none() && self.split != Split::Text;
            if depth == 0 && bare && self.split == Split::Spaces && is_space(c) {
                break;
            }
            if depth > 0 && c == '}' && quote == outer {
                break;
            }
            self.at = self.at.saturating_add(1);
            let here = Span { start: at, end: at.saturating_add(c.len_utf8()) };
            let quoting = self.split != Split::Text;
            match (quote, c) {
                (Some((_, q)), c) if quoting && c == q && depth > 0 && outer.is_some() => {
                    report.error_with_hint(here, "a quote stands in a variable that is in quotes", "leave it out");
                    return None;
                }
                (Some((_, q)), c) if quoting && c == q => quote = None,
                (None, '"' | '\'') if quoting => quote = Some((at, c)),
                (Some((_, '\'')), c) => push(&mut pieces, c),
                (_, '\\') if !quoting => match self.peek() {
                    Some((_, next @ ('$' | '\\'))) => {
                        self.at = self.at.saturating_add(1);
                        push(&mut pieces, next);
                    }
                    _ => push(&mut pieces, '\\'),
                },
                (_, '\\') => {
                    let Some((next, escaped)) = self.peek() else {
                        report.error(here, "nothing follows the `\\`");
                        return None;
                    };
                    self.at = self.at.saturating_add(1);
                    // Shells, Docker and C disagree on what `\n` means here, so it means nothing.
                    if escaped.is_alphanumeric() {
                        let span = Span { start: at, end: next.saturating_add(escaped.len_utf8()) };
                        let message = format!("`\\{escaped}` is no escape");
                        report.error_with_hint(span, message, "for a backslash write `\\\\`");
                        self.sound = false;
                    }
                    push(&mut pieces, escaped);
                }
                (_, '$') => pieces.push(self.variable(at, depth, quote, report)?),
                (None, c) if depth > 0 && quoting && is_space(c) => {
                    let hint = "put quotes around what holds the space";
                    report.error_with_hint(here, "a space stands in a variable that is not in quotes", hint);
                    return None;
                }
                (_, c) => push(&mut pieces, c),
            }
        }
        if let Some((at, q)) = quote.filter(|_| quote != outer) {
            let span = Span { start: at, end: at.saturating_add(1) };
            report.error_with_hint(span, "this quote is never closed", format!("end the value with `{q}`"));
            return None;
        }
        Some(pieces)
    }

    /// What follows the `$` at `start`.
    fn variable(
        &mut self,
        start: usize,
        depth: usize,
        quote: Option<(usize, char)>,
        report: &mut Report<'_>,
    ) -> Option<Piece> {
        let braces = self.peek().is_some_and(|(_, c)| c == '{');
        self.at = self.at.saturating_add(usize::from(braces));
        let mut name = String::new();
        while let Some((_, c)) = self.peek().filter(|&(_, c)| c.is_ascii_alphanumeric() || c == '_') {
            name.push(c);
            self.at = self.at.saturating_add(1);
        }
        if !is_name(&name) {
            let span = Span { start, end: start.saturating_add(1) };
            report.error_with_hint(span, "the `$` names no variable", "for a plain `$` write `\\$`");
            return None;
        }
        if !braces {
            return Some(Piece::Variable { name, span: Span { start, end: self.end() }, otherwise: None });
        }
        let mut otherwise = None;
        if self.peek().is_some_and(|(_, c)| c == ':') {
            let at = self.at;
            let kind = match self.chars.get(at.saturating_add(1)) {
                Some((_, '-')) => Otherwise::Unset,
                Some((_, '+')) => Otherwise::Set,
                _ => return self.no_variable(start, report),
            };
            self.at = at.saturating_add(2);
            if depth >= DEEPEST {
                let span = Span { start, end: self.end() };
                report.error(span, format!("variables stand in variables more than {DEEPEST} deep"));
                return None;
            }
            let from = self.peek().map_or(self.end(), |(at, _)| at);
            let pieces = self.pieces(depth.saturating_add(1), quote, report)?;
            otherwise = Some((kind, Template { pieces, span: Span { start: from, end: self.end().max(from) } }));
        }
        if self.peek().is_none_or(|(_, c)| c != '}') {
            return self.no_variable(start, report);
        }
        self.at = self.at.saturating_add(1);
        Some(Piece::Variable { name, span: Span { start, end: self.end() }, otherwise })
    }

    fn no_variable(&self, start: usize, report: &mut Report<'_>) -> Option<Piece> {
        let hint = "write `${NAME}`, `${NAME:-word}` or `${NAME:+word}`";
        report.error_with_hint(Span { start, end: self.end() }, "this is no variable", hint);
        None
    }

    fn peek(&self) -> Option<(usize, char)> {
        self.chars.get(self.at).copied()
    }

    /// After the last character that was read.
    fn end(&self) -> usize {
        let last = self.at.checked_sub(1).and_then(|at| self.chars.get(at));
        last.map_or(0, |&(at, c)| at.saturating_add(c.len_utf8()))
    }
}

fn push(pieces: &mut Vec<Piece>, c: char) {
    match pieces.last_mut() {
        Some(Piece::Literal(text)) => text.push(c),
        _ => pieces.push(Piece::Literal(c.to_string())),
    }
}

/// Whether a variable of the environment may be called so.
pub(crate) fn is_name(text: &str) -> bool {
    let head = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(head) && text.len() <= 256 && text.chars().all(|c| head(c) || c.is_ascii_digit())
}
