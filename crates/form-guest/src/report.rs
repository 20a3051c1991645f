use serde::{Deserialize, Serialize};

/// The longest line, in bytes without its newline, that [`ReportDecoder`] reads.
pub const MAX_LINE: usize = 4096;
/// The longest reason, in characters, of a [`Report::Failed`].
pub const MAX_REASON: usize = 512;

/// What process 1 of a guest tells its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Report {
    /// The kernel is up and process 1 runs.
    Booting,
    /// The entrypoint was executed.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// The entrypoint ended, by `exit` or by a signal. The guest powers off next.
    Exited {
        /// What it gave to `exit`.
        #[serde(default)]
        code: Option<i32>,
        /// What killed it.
        #[serde(default)]
        signal: Option<i32>,
    },
    /// The entrypoint could not be executed. The guest powers off next.
    Failed {
        /// What was wrong, for a person: one line, at most [`MAX_REASON`] characters.
        reason: String,
    },
    /// The health check says something else than before.
    Health {
        /// Whether the workload serves.
        healthy: bool,
        /// What the check wrote, for a person: one line, at most [`MAX_REASON`] characters.
        #[serde(default)]
        output: String,
    },
    /// The guest was asked to stop, and stops.
    Stopping,
}

impl Report {
    /// The report's line, with its newline; always within [`MAX_LINE`].
    pub fn to_line(&self) -> String {
        let bounded = match self {
            Self::Failed { reason } => Self::Failed { reason: one_line(reason) },
            Self::Health { healthy, output } => Self::Health { healthy: *healthy, output: one_line(output) },
            other => other.clone(),
        };
        // Strings and integers always serialise; were that ever to change, an empty line is skipped by the reader.
        let mut line = serde_json::to_string(&bounded).unwrap_or_default();
        line.push('\n');
        line
    }
}

/// Why a line was not a report. The decoder goes on with the next line.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Longer than [`MAX_LINE`].
    #[error("the guest wrote a line of more than {MAX_LINE} bytes to its report port")]
    TooLong,
    /// Not JSON of a [`Report`].
    #[error("the guest wrote a line to its report port that is no report")]
    Json(#[source] serde_json::Error),
}

/// Turns bytes of the report port, in pieces of any size, into reports.
///
/// The guest is hostile: memory stays below [`MAX_LINE`] whatever it writes, and what it says of itself holds no
/// control characters that could speak to an operator's terminal.
#[derive(Debug, Default)]
pub struct ReportDecoder {
    line: Vec<u8>,
    skipping: bool,
}

impl ReportDecoder {
    /// Takes the next `bytes` and returns what is complete now, in order.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<Report, ReportError>> {
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            if !self.skipping && self.line.len() + text.len() > MAX_LINE {
                self.skipping = true;
                self.line = Vec::new();
                out.push(Err(ReportError::TooLong));
            }
            if !self.skipping {
                self.line.extend_from_slice(text);
            }
            if ends {
                if !self.skipping && !self.line.is_empty() {
                    out.push(parse(&self.line));
                }
                self.line.clear();
                self.skipping = false;
            }
        }
        out
    }
}

fn parse(line: &[u8]) -> Result<Report, ReportError> {
    match serde_json::from_slice(line).map_err(ReportError::Json)? {
        Report::Failed { reason } => Ok(Report::Failed { reason: one_line(&reason) }),
        Report::Health { healthy, output } => Ok(Report::Health { healthy, output: one_line(&output) }),
        other => Ok(other),
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> Vec<Report> {
        vec![
            Report::Booting,
            Report::Started { pid: 2 },
            Report::Exited { code: Some(3), signal: None },
            Report::Failed { reason: "no such user".into() },
            Report::Health { healthy: false, output: "no answer".into() },
            Report::Stopping,
        ]
    }

    #[test]
    fn reports_arrive_in_order_whatever_the_pieces() {
        let bytes: String = all().iter().map(Report::to_line).collect();
        for size in 1..bytes.len() {
            let mut decoder = ReportDecoder::default();
            let got: Vec<_> = bytes.as_bytes().chunks(size).flat_map(|c| decoder.push(c)).map(Result::unwrap).collect();
            assert_eq!(got, all());
        }
    }

    #[test]
    fn a_line_without_end_costs_no_memory_and_loses_only_itself() {
        let mut decoder = ReportDecoder::default();
        let mut errors = 0;
        for _ in 0..1000 {
            errors += decoder.push(&[b'x'; 1000]).len();
            assert!(decoder.line.len() <= MAX_LINE);
        }
        assert_eq!(errors, 1);
        let next = decoder.push(format!("\n{}", Report::Stopping.to_line()).as_bytes());
        assert!(matches!(next.as_slice(), [Ok(Report::Stopping)]));
    }

    #[test]
    fn a_reason_cannot_speak_to_a_terminal_nor_fill_a_line() {
        let line = Report::Failed { reason: "\u{1b}]0;owned\u{7}\n".repeat(MAX_LINE) }.to_line();
        assert!(line.len() <= MAX_LINE);
        let hostile = br#"{"event":"failed","reason":"\u001b[2J\u0000gone"}"#;
        let mut decoder = ReportDecoder::default();
        decoder.push(hostile);
        let got = decoder.push(b"\n");
        assert!(matches!(got.as_slice(), [Ok(Report::Failed { reason })] if reason == " [2J gone"), "{got:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..64)) {
            let mut decoder = ReportDecoder::default();
            for piece in pieces {
                let _ = decoder.push(&piece);
            }
        }
    }
}
