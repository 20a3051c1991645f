//! Label selectors: `app=web,tier!=db,debug,!old`, all of them to be met.

use std::collections::BTreeMap;
use std::str::FromStr;

/// Which resources are meant, by their labels. The default one means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Is(String, String),
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

/// A selector that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("label selector: {0:?} is none of key=value, key!=value, key, !key")]
pub struct SelectorError(String);

impl Selector {
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|term| match term {
            Term::Is(key, value) => labels.get(key) == Some(value),
            Term::IsNot(key, value) => labels.get(key) != Some(value),
            Term::Has(key) => labels.contains_key(key),
            Term::HasNot(key) => !labels.contains_key(key),
        })
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let terms = text.split(',').map(str::trim).filter(|_| !text.trim().is_empty());
        terms.map(term).collect::<Result<_, _>>().map(Self)
    }
}

fn term(text: &str) -> Result<Term, SelectorError> {
    let wrong = || SelectorError(text.to_owned());
    let key = |key: &str| {
        let key = key.trim();
        let fine = !key.is_empty() && !key.contains(['=', '!', ' ']);
        if fine { Ok(key.to_owned()) } else { Err(wrong()) }
    };
    let value = |value: &str| value.trim().to_owned();
    if let Some((name, given)) = text.split_once("!=") {
        Ok(Term::IsNot(key(name)?, value(given)))
    } else if let Some((name, given)) = text.split_once('=') {
        Ok(Term::Is(key(name)?, value(given.strip_prefix('=').unwrap_or(given))))
    } else if let Some(name) = text.strip_prefix('!') {
        Ok(Term::HasNot(key(name)?))
    } else {
        Ok(Term::Has(key(text)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str) -> bool {
        let labels = [("app", "web"), ("debug", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        selector.parse::<Selector>().unwrap().matches(&labels.into())
    }

    #[test]
    fn all_terms_have_to_be_met() {
        assert!(matches(""));
        assert!(matches("app=web, debug, !old, tier!=db"));
        assert!(matches("app==web"));
        assert!(!matches("app=web,old"));
        assert!(!matches("app!=web"));
        assert!(!matches("!debug"));
    }

    #[test]
    fn a_term_that_cannot_be_read_is_named() {
        for bad in ["=x", "a,,b", "!", "a b", "a!b=c"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
