use crate::{Fault, Span};

/// A word in which variables stand: `$NAME`, `${NAME}`, `${NAME:-word}` if it is unset or empty, `${NAME:+word}` if it
/// is neither. Quotes and backslashes are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Two literals never stand side by side.
    pub pieces: Vec<Piece>,
    /// The word in the file.
    pub span: Span,
}

/// A part of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Stands for itself.
    Literal(String),
    /// Stands for what the variable holds.
    Variable {
        /// A name as `ENV` has it.
        name: String,
        /// From the `$` to its end.
        span: Span,
        /// `:-` or `:+`, and the word after it.
        otherwise: Option<(Otherwise, Template)>,
    },
}

/// When the word after a name holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// `:-`: the variable is unset or empty.
    Unset,
    /// `:+`: it is neither; else it is the empty text.
    Set,
}

/// A template is expanded to no more than a Package holds in one value.
const MOST_BYTES: usize = 64 << 10;

impl Template {
    /// The text, if no variable stands in it.
    pub fn literal(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The text, with what `lookup` knows of variables. Fails where a variable is unset and nothing says what holds
    /// then, and past 64 KiB.
    pub fn expand(&self, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, Fault> {
        let mut out = String::new();
        self.expand_into(&mut out, lookup)?;
        Ok(out)
    }

    /// The names that stand in it, also inside of other variables.
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for piece in &self.pieces {
            if let Piece::Variable { name, otherwise, .. } = piece {
                names.push(name.as_str());
                names.extend(otherwise.iter().flat_map(|(_, word)| word.names()));
            }
        }
        names
    }

    /// Says that all of it stands at `span`: of text that was decoded, no finer place is known.
    pub(crate) fn respan(&mut self, whole: Span) {
        self.span = whole;
        for piece in &mut self.pieces {
            if let Piece::Variable { span, otherwise, .. } = piece {
                *span = whole;
                if let Some((_, word)) = otherwise {
                    word.respan(whole);
                }
            }
        }
    }

    fn expand_into(&self, out: &mut String, lookup: &dyn Fn(&str) -> Option<String>) -> Result<(), Fault> {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.push_str(text),
                Piece::Variable { name, span, otherwise } => {
                    let value = lookup(name);
                    let set = value.as_ref().is_some_and(|value| !value.is_empty());
                    match (otherwise, value) {
                        (Some((Otherwise::Unset, word)), _) if !set => word.expand_into(out, lookup)?,
                        (Some((Otherwise::Set, word)), _) if set => word.expand_into(out, lookup)?,
                        (Some((Otherwise::Set, _)), _) => {}
                        (_, Some(value)) => out.push_str(&value),
                        (_, None) => {
                            let message = format!("the variable `{name}` is not set");
                            let hint = format!(
                                "put `ARG {name}` or `ENV {name}=...` before it, or say what holds then: `${{{name}:-...}}`"
                            );
                            return Err(Fault::new(*span, message, hint));
                        }
                    }
                }
            }
            if out.len() > MOST_BYTES {
                let message = format!("with its variables, this has more than {MOST_BYTES} bytes");
                return Err(Fault::new(self.span, message, "give long values in a file of the build context"));
            }
        }
        Ok(())
    }
}
