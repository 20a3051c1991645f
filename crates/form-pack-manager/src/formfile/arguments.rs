use super::diagnostic::{Report, Span};
use super::lines::{Line, is_space};

/// A piece of an instruction, and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) span: Span,
}

/// An instruction: its keyword, and all that follows it.
#[derive(Debug)]
pub(super) struct Instruction {
    pub(super) keyword: Word,
    /// The characters of the arguments, each with its offset in the file.
    rest: Vec<(usize, char)>,
}

impl Instruction {
    pub(super) fn new(line: &Line<'_>) -> Self {
        let mut chars = line.chars().skip_while(|&(_, c)| is_space(c)).peekable();
        let mut keyword = Vec::new();
        while let Some(next) = chars.next_if(|&(_, c)| !is_space(c)) {
            keyword.push(next);
        }
        let mut rest: Vec<_> = chars.skip_while(|&(_, c)| is_space(c)).collect();
        while rest.last().is_some_and(|&(_, c)| is_space(c)) {
            rest.pop();
        }
        Self { keyword: word(&keyword), rest }
    }

    /// The arguments as they stand.
    pub(super) fn raw(&self) -> Word {
        if self.rest.is_empty() { Word { text: String::new(), span: self.keyword.span } } else { word(&self.rest) }
    }

    /// The arguments, split at spaces.
    pub(super) fn words(&self) -> Vec<Word> {
        self.rest.split(|&(_, c)| is_space(c)).filter(|chars| !chars.is_empty()).map(word).collect()
    }

    /// The first word, and the rest as it stands.
    pub(super) fn first_and_rest(&self) -> (Word, Option<Word>) {
        let end = self.rest.iter().position(|&(_, c)| is_space(c)).unwrap_or(self.rest.len());
        let (first, after) = self.rest.split_at_checked(end).unwrap_or((&self.rest, &[]));
        let gap = after.iter().take_while(|&&(_, c)| is_space(c)).count();
        (word(first), after.get(gap..).filter(|chars| !chars.is_empty()).map(word))
    }

    /// The arguments, split at spaces that no quotes or backslash protect, and with these taken off.
    ///
    /// In `"..."` and outside of quotes, `\` takes the space or sign after it as it is; in `'...'` everything stands for
    /// itself. A bare `$` is reported, for nothing would expand it.
    pub(super) fn quoted_words(&self, report: &mut Report<'_>) -> Option<Vec<Word>> {
        let mut words = Vec::new();
        let mut current: Option<Word> = None;
        let mut quote: Option<(usize, char)> = None;
        let mut chars = self.rest.iter().copied();
        let mut sound = true;
        while let Some((at, c)) = chars.next() {
            if quote.is_none() && is_space(c) {
                words.extend(current.take());
                continue;
            }
            let end = at.saturating_add(c.len_utf8());
            let word = current.get_or_insert_with(|| Word { text: String::new(), span: Span { start: at, end } });
            word.span.end = end;
            match (quote, c) {
                (Some((_, q)), c) if c == q => quote = None,
                (None, '"' | '\'') => quote = Some((at, c)),
                (None | Some((_, '"')), '\\') => {
                    let Some((next, escaped)) = chars.next() else {
                        report.error(Span { start: at, end }, "nothing follows the `\\`");
                        return None;
                    };
                    word.span.end = next.saturating_add(escaped.len_utf8());
                    // Shells, Docker and C disagree on what `\n` means here, so it means nothing.
                    if escaped.is_alphanumeric() {
                        let span = Span { start: at, end: word.span.end };
                        report.error_with_hint(
                            span,
                            format!("`\\{escaped}` is no escape"),
                            "for a backslash write `\\\\`",
                        );
                        sound = false;
                    }
                    word.text.push(escaped);
                }
                (None | Some((_, '"')), '$') => {
                    dollar(Span { start: at, end }, report);
                    sound = false;
                }
                (_, c) => word.text.push(c),
            }
        }
        if let Some((at, q)) = quote {
            let span = Span { start: at, end: at.saturating_add(1) };
            report.error_with_hint(span, "this quote is never closed", format!("end the value with `{q}`"));
            return None;
        }
        words.extend(current);
        sound.then_some(words)
    }

    /// Where the `offset`-th byte of the arguments stands in the file.
    pub(super) fn span_at(&self, offset: usize) -> Span {
        let mut bytes = 0_usize;
        let hit = self.rest.iter().find(|(_, c)| {
            bytes = bytes.saturating_add(c.len_utf8());
            bytes > offset
        });
        let start = match (hit, self.rest.last()) {
            (Some(&(at, _)), _) => at,
            (None, Some(&(at, c))) => at.saturating_add(c.len_utf8()),
            (None, None) => self.keyword.span.end,
        };
        Span { start, end: start.saturating_add(1) }
    }
}

/// Says that variables are not expanded.
pub(super) fn dollar(span: Span, report: &mut Report<'_>) {
    report.error_with_hint(
        span,
        "variables are not expanded",
        "write the value out; for a plain `$` in ENV write `\\$`",
    );
}

fn word(chars: &[(usize, char)]) -> Word {
    let start = chars.first().map_or(0, |&(at, _)| at);
    let end = chars.last().map_or(start, |&(at, c)| at.saturating_add(c.len_utf8()));
    Word { text: chars.iter().map(|&(_, c)| c).collect(), span: Span { start, end } }
}
