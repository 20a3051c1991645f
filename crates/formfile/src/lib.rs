//! The Formfile: what a package is made of, how it starts, and the machine it runs on.
//!
//! A pure crate: text in, a tree or diagnostics out. Whoever builds it brings arguments, context and bases, expands each
//! [`Template`], and has [`value`] judge what comes out; a [`Fault`] of either leads back to its place in the file.
//! The language is written down in `docs/formfile.md`. What it does not know it refuses where it stands, so that a
//! Formfile never means less than it says.

mod ast;
mod diagnostic;
mod flags;
mod ignore;
mod keywords;
mod layout;
mod lines;
mod lint;
mod parse;
mod settings;
mod template;
pub mod value;
mod words;

pub use ast::{
    Arg, Command, Copy, Formfile, Healthcheck, Mount, MountKind, Network, Op, Restart, Run, Settings, Sharing, Source,
    Spanned, Stage, Step,
};
pub use diagnostic::{Diagnostic, Fault, Severity, Span};
pub use ignore::Ignore;
pub use keywords::{KEYWORDS, Keyword};
pub use layout::format;
pub use lint::{LINTS, lint};
pub use template::{Otherwise, Piece, Template};

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
