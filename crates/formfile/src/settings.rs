use std::ops::RangeInclusive;

use crate::ast::{Restart, Settings, Spanned};
use crate::diagnostic::{Fault, Report};
use crate::parse::example;
use crate::words::{Instruction, Word, plain_words};

/// Whether the keyword says something about the package as a whole.
pub(crate) fn is_setting(keyword: &str) -> bool {
    matches!(keyword, "NAME" | "DESCRIPTION" | "MODEL" | "VCPU" | "MEMORY" | "DISK" | "GPU" | "REPLICAS" | "RESTART")
}

/// Takes a setting out of its instruction.
pub(crate) fn set(settings: &mut Settings, keyword: &str, instruction: &Instruction<'_, '_>, report: &mut Report<'_>) {
    let whole = instruction.arguments();
    if keyword == "DESCRIPTION" {
        settings.description = report.take(text(&whole));
        return;
    }
    let words = plain_words(&instruction.rest);
    if let Some(second) = words.get(1) {
        let hint = format!("for example `{}`", example(keyword));
        return report.error_with_hint(second.span, format!("{keyword} takes one argument"), hint);
    }
    match keyword {
        "NAME" => settings.name = report.take(label(&whole)),
        "MODEL" => settings.model = report.take(model(&whole)),
        "VCPU" => settings.vcpu = report.take(number(&whole, 1..=64)),
        "MEMORY" => settings.memory_mib = report.take(mib(&whole, 64..=1_048_576)),
        "DISK" => settings.disk_mib = report.take(mib(&whole, 16..=1_048_576)),
        "GPU" => settings.gpu = report.take(number(&whole, 1..=16)),
        "REPLICAS" => settings.replicas = report.take(number(&whole, 1..=100)),
        _ => settings.restart = report.take(restart(&whole)),
    }
}

fn spanned<T>(value: T, word: &Word) -> Result<Spanned<T>, Fault> {
    Ok(Spanned { value, span: word.span })
}

fn text(word: &Word) -> Result<Spanned<String>, Fault> {
    if word.text.len() > 1024 {
        return Err(Fault::bare(word.span, "the description has more than 1024 bytes"));
    }
    spanned(word.text.clone(), word)
}

fn label(word: &Word) -> Result<Spanned<String>, Fault> {
    let text = &word.text;
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if text.len() <= 63 && text.starts_with(edge) && text.ends_with(edge) && text.chars().all(|c| edge(c) || c == '-') {
        return spanned(text.clone(), word);
    }
    let hint = "it becomes a DNS name: up to 63 lower-case letters, digits and `-`, no `-` at the ends";
    Err(Fault::new(word.span, "this cannot name a package", hint))
}

fn model(word: &Word) -> Result<Spanned<String>, Fault> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-/:@+".contains(c);
    if word.text.len() <= 256 && word.text.chars().all(fits) {
        return spanned(word.text.clone(), word);
    }
    let hint = "up to 256 letters, digits and the signs `._-/:@+`";
    Err(Fault::new(word.span, "this cannot name a model", hint))
}

fn restart(word: &Word) -> Result<Spanned<Restart>, Fault> {
    let restart = match word.text.to_ascii_lowercase().as_str() {
        "always" => Restart::Always,
        "on-failure" => Restart::OnFailure,
        "never" => Restart::Never,
        _ => {
            let hint = "write `always`, `on-failure` or `never`";
            return Err(Fault::new(word.span, "RESTART does not know this", hint));
        }
    };
    spanned(restart, word)
}

fn number(word: &Word, range: RangeInclusive<u64>) -> Result<Spanned<u32>, Fault> {
    let Some(number) = digits(&word.text) else {
        let message = format!("`{}` is no whole number", word.text);
        let hint = format!("write a number from {} to {}", range.start(), range.end());
        return Err(Fault::new(word.span, message, hint));
    };
    within(number, word, range, "")
}

/// MiB, or a number with a unit.
fn mib(word: &Word, range: RangeInclusive<u64>) -> Result<Spanned<u32>, Fault> {
    let end = word.text.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.text.len());
    let (number, unit) = word.text.split_at_checked(end).unwrap_or((&word.text, ""));
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mi" | "mib" => 1,
        "g" | "gi" | "gib" => 1024,
        "t" | "ti" | "tib" => 1024 * 1024,
        "mb" | "gb" | "tb" => {
            let hint = "memory comes in powers of two: write `512M`, `2G` or `512MiB`";
            return Err(Fault::new(word.span, format!("`{unit}` counts in thousands"), hint));
        }
        _ => 0,
    };
    match digits(number).filter(|_| factor > 0) {
        Some(number) => within(number.saturating_mul(factor), word, range, " MiB"),
        None => {
            let hint = "write a number of MiB, or a number with a unit: `512M`, `2G`, `1GiB`";
            Err(Fault::new(word.span, format!("`{}` is no size", word.text), hint))
        }
    }
}

fn within(number: u64, word: &Word, range: RangeInclusive<u64>, unit: &str) -> Result<Spanned<u32>, Fault> {
    match u32::try_from(number) {
        Ok(fits) if range.contains(&number) => spanned(fits, word),
        _ => {
            let message = format!("{} is out of range", word.text);
            let hint = format!("it is from {} to {}{unit}", range.start(), range.end());
            Err(Fault::new(word.span, message, hint))
        }
    }
}

/// A decimal number without sign; one that is too large for any of our ranges counts as the largest.
pub(crate) fn digits(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}
