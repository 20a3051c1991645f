use crate::ast::Formfile;
use crate::diagnostic::{Diagnostic, Report};
use crate::keywords::find;
use crate::lines::{Item, Line, Quotes, Style, is_space, items};
use crate::parse::style_of;
use crate::words::Instruction;

/// The Formfile in its canonical form, which means the same: keywords in upper case and without aliases, one space
/// between words, continuations indented by four, at most one blank line, `\n` at the ends of lines. Comments, heredocs
/// and what only a shell can read are kept as they stand.
///
/// Fails as [`Formfile::parse`] does: what is not understood is not touched.
pub fn format(name: &str, text: &[u8]) -> Result<String, Vec<Diagnostic>> {
    Formfile::parse(name, text)?;
    let mut out = String::new();
    let mut blank = false;
    for item in items(text, &mut Report::new(name, text)) {
        if let Item::Blank = item {
            blank = !out.is_empty();
            continue;
        }
        if std::mem::take(&mut blank) {
            out.push('\n');
        }
        match item {
            Item::Comment(comment) => {
                out.push_str(comment);
                out.push('\n');
            }
            Item::Instruction(line) => write(&line, &mut out),
            Item::Blank => {}
        }
    }
    Ok(out)
}

/// What spaces that only separate come down to: one.
pub(crate) struct Spaces {
    quotes: Quotes,
    style: Style,
}

impl Spaces {
    pub(crate) fn new(style: Style) -> Self {
        Self { quotes: Quotes::new(style), style }
    }

    /// The next part of an instruction, with what stood before it in mind.
    pub(crate) fn collapse(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut after_space = false;
        for c in text.chars() {
            let separates = is_space(c) && self.quotes.outside() && matches!(self.style, Style::Words | Style::Json);
            match (separates, after_space) {
                (true, true) => {}
                (true, false) => out.push(' '),
                (false, _) => out.push(c),
            }
            after_space = separates;
            self.quotes.step(c);
        }
        out
    }
}

fn write(line: &Line<'_>, out: &mut String) {
    let instruction = Instruction::new(line);
    let keyword = find(&instruction.keyword.text).map_or("", |keyword| keyword.canonical);
    let style = style_of(keyword, &instruction);
    let mut free = line.free_joints(style);
    let arguments = instruction.rest.first().map_or(usize::MAX, |&(at, _)| at);
    // Where nothing but the keyword stands before it, a joint is free whatever follows.
    for (free, &(at, _)) in free.iter_mut().zip(line.pieces.iter().skip(1)) {
        *free |= at <= arguments;
    }
    let mut spaces = Spaces::new(style);
    out.push_str(keyword);
    let mut comments = line.comments.iter().peekable();
    let last = line.pieces.len().saturating_sub(1);
    for (index, &(_, piece)) in line.pieces.iter().enumerate() {
        while let Some((_, comment)) = comments.next_if(|(before, _)| *before == index) {
            out.push_str("    ");
            out.push_str(comment);
            out.push('\n');
        }
        let freed = |joint: Option<usize>| joint.and_then(|joint| free.get(joint)).copied().unwrap_or(false);
        let mut text = piece;
        let mut indent = "";
        if index == 0 {
            text = text.trim_start_matches(is_space).get(instruction.keyword.text.len()..).unwrap_or_default();
            text = text.trim_start_matches(is_space);
            indent = if text.is_empty() { "" } else { " " };
        } else if freed(index.checked_sub(1)) {
            text = text.trim_start_matches(is_space);
            indent = "    ";
        }
        let ends_free = freed(Some(index));
        let text = spaces.collapse(text);
        let text = if index == last || ends_free { text.trim_end_matches(is_space) } else { &text };
        out.push_str(indent);
        out.push_str(text);
        if index < last {
            out.push_str(if ends_free { " \\" } else { "\\" });
        }
        out.push('\n');
    }
    for heredoc in &line.heredocs {
        for text in heredoc.body.iter().map(|&(_, text)| text).chain(std::iter::once(heredoc.end)) {
            out.push_str(text);
            out.push('\n');
        }
    }
}
