//! Runs nft: one process a transaction, and the kernel does all of it or nothing.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::error::{Error, Result};

/// The processes of ours that a change may come from. A message about one may be read after it has ended.
static OURS: Mutex<VecDeque<u32>> = Mutex::new(VecDeque::new());
const REMEMBERED: usize = 32;
/// Of what nft says when it refuses: it repeats every line it did not like.
const LAST_WORDS: usize = 600;

/// The arguments with which nft applies a script. (It would not print a list that a script asks for as JSON.)
pub(super) const SCRIPT: &[&str] = &["-f", "-"];
/// As [`SCRIPT`], for a script that is JSON.
pub(super) const JSON: &[&str] = &["--json", "-f", "-"];

/// Runs nft with `script` for its input, and returns what it printed.
pub(super) async fn run(action: &'static str, arguments: &[&str], script: &str) -> Result<String> {
    let failed = |message: String| Error::Nft { action, message };
    let io = |error: std::io::Error| failed(error.to_string());
    let mut command = Command::new("nft");
    command.args(arguments).env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = {
        // Held while the process starts, and it starts before it changes anything: so it is known before it is heard of.
        let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn().map_err(|error| failed(format!("{error}; is nftables installed?")))?;
        ours.extend(child.id());
        let surplus = ours.len().saturating_sub(REMEMBERED);
        ours.drain(..surplus);
        child
    };
    if let Some(mut stdin) = child.stdin.take() {
        // If it is gone already, its last words say why.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(io)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let mut message: String = said.trim().chars().take(LAST_WORDS).collect();
        if message.is_empty() {
            message = output.status.to_string();
        }
        return Err(failed(message));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// nfnetlink's name for nf_tables, and its message that a transaction was done (linux/netfilter/nf_tables.h).
const NEWGEN: u16 = (10 << 8) | 15;
const GEN_PROC_PID: u16 = 2;

/// Whether a datagram of the kernel tells of a transaction that is not ours.
pub(super) fn is_by_another(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while let Some((message, next)) = split(rest, u32_at(rest, 0)) {
        rest = next;
        if u16_at(message, 4) != Some(NEWGEN) {
            continue;
        }
        // The process that the attribute names is the host's number, and the one of the header (its socket's address) is
        // the namespace's: in a container we know only the latter.
        let authors = [message.get(20..).and_then(author), u32_at(message, 12)];
        if !authors.into_iter().flatten().any(is_ours) {
            return true;
        }
    }
    false
}

fn is_ours(process: u32) -> bool {
    OURS.lock().unwrap_or_else(PoisonError::into_inner).contains(&process)
}

/// The process that a NEWGEN's attributes name.
fn author(mut attributes: &[u8]) -> Option<u32> {
    while let Some((attribute, next)) = split(attributes, u16_at(attributes, 0).map(u32::from)) {
        attributes = next;
        if u16_at(attribute, 2) == Some(GEN_PROC_PID) {
            return attribute.get(4..8)?.try_into().ok().map(u32::from_be_bytes);
        }
    }
    None
}

/// The first `length` bytes of `bytes`, and what is after them, aligned to four; nothing if they are not there.
fn split(bytes: &[u8], length: Option<u32>) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(length?).ok().filter(|length| *length >= 4)?;
    let first = bytes.get(..length)?;
    Some((first, bytes.get(length.checked_next_multiple_of(4)?..).unwrap_or_default()))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newgen(process: u32) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend(36_u32.to_ne_bytes());
        message.extend(NEWGEN.to_ne_bytes());
        message.extend([0; 14]);
        for (kind, value) in [(1_u16, 7_u32), (GEN_PROC_PID, process)] {
            message.extend(8_u16.to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend(value.to_be_bytes());
        }
        message
    }

    #[test]
    fn a_transaction_of_a_child_of_ours_is_no_news_and_anothers_is() {
        OURS.lock().unwrap().push_back(4711);
        assert!(!is_by_another(&newgen(4711)));
        assert!(is_by_another(&newgen(4712)));
        assert!(is_by_another(&[newgen(4711), newgen(4712)].concat()));
    }

    #[test]
    fn a_datagram_that_is_cut_or_lies_about_its_length_is_read_without_harm() {
        let whole = newgen(1);
        for length in 0..whole.len() {
            is_by_another(&whole[..length]);
            let mut lying = whole.clone();
            lying[0] = u8::try_from(length).unwrap();
            is_by_another(&lying);
            lying[20] = u8::try_from(length).unwrap();
            is_by_another(&lying);
        }
    }
}
