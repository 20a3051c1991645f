//! What `dig` got.

use std::process::Command;

/// An answer of form-dns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// `NOERROR`, `NXDOMAIN`, …; empty: there was none.
    pub status: String,
    /// It did not fit, and says so.
    pub truncated: bool,
    /// The data of each record, sorted.
    pub data: Vec<String>,
}

impl Answer {
    /// Asks `@127.0.0.1` by this `dig`; `words` as on its command line.
    #[track_caller]
    pub(crate) fn of(mut dig: Command, words: &[&str]) -> Self {
        dig.args(["@127.0.0.1", "+noall", "+comments", "+answer", "+norecurse", "+time=2", "+tries=3"]).args(words);
        Self::parse(&String::from_utf8_lossy(&dig.output().expect("dig").stdout))
    }

    fn parse(text: &str) -> Self {
        let mut answer = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some((_, rest)) = line.split_once("status: ") {
                answer.status = rest.split(',').next().unwrap_or_default().to_owned();
            } else if let Some(flags) = line.strip_prefix(";; flags:") {
                let flags = flags.split(';').next().unwrap_or_default();
                answer.truncated = flags.split_whitespace().any(|flag| flag == "tc");
            } else if !line.starts_with(';') {
                // Name, TTL, class and type, and then the data.
                let data: Vec<&str> = line.split_whitespace().skip(4).collect();
                answer.data.push(data.join(" "));
            }
        }
        answer.data.sort();
        answer
    }

    /// Whether the name exists, but nothing of the type (RFC 2308, section 2.2).
    pub fn is_no_data(&self) -> bool {
        self.status == "NOERROR" && self.data.is_empty()
    }

    pub fn is_no_such_name(&self) -> bool {
        self.status == "NXDOMAIN"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_dig_writes_it() {
        let text = ";; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 1\n;; flags: qr aa tc; QUERY: 1, ANSWER: 1\n\n\
                    a.b.\t5\tIN\tSRV\t0 0 8080 c.\n";
        let data = vec!["0 0 8080 c.".to_owned()];
        assert_eq!(Answer::parse(text), Answer { status: "NOERROR".into(), truncated: true, data });
    }
}
