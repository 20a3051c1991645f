//! Why a resource is refused.

use std::fmt;

/// All that is wrong with a resource; shown with a violation a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// At least one.
    pub violations: Vec<Violation>,
}

/// One thing that is wrong: where, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// From the resource's root: `spec.ports[0].port`. Empty: the resource as a whole.
    pub path: String,
    /// What is wrong, and what would be right: `3 is below the least, 64`.
    pub what: String,
}

impl Invalid {
    /// One violation.
    pub fn at(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self { violations: vec![Violation { path: path.into(), what: what.into() }] }
    }

    pub(crate) fn check(violations: Vec<Violation>) -> Result<(), Self> {
        if violations.is_empty() { Ok(()) } else { Err(Self { violations }) }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.what) } else { write!(f, "{}: {}", self.path, self.what) }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.violations.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            violation.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}
