//! The formats that a rule can ask of a string.

use std::net::{IpAddr, SocketAddr};

use crate::v1::rules::Format;

/// `None` where `text` has the format; otherwise what it should be.
pub(crate) fn mismatch(format: Format, text: &str) -> Option<&'static str> {
    let (fits, wanted) = match format {
        Format::Any => (true, ""),
        Format::DnsLabel => {
            (is_label(text), "a DNS label: 1 to 63 of a-z, 0-9 and '-', the first and the last of them no '-'")
        }
        Format::DnsName => (is_name(text, is_label), "a domain name: DNS labels joined by dots, no dot at the end"),
        Format::RecordName => {
            (is_record_name(text), "a name relative to its zone: labels joined by dots, '@' or '*.…'")
        }
        Format::IpAddress => (text.parse::<IpAddr>().is_ok(), "an IP address, like 10.0.0.1 or fd00::1"),
        Format::IpPrefix => (text.parse::<ipnet::IpNet>().is_ok(), "a prefix, like 10.0.0.0/24 or fd00::/64"),
        Format::Digest => (is_digest(text), "a digest: sha256: and 64 lower-case hex digits"),
        Format::EnvName => (is_env_name(text), "an environment name: letters, digits and '_', no digit first"),
        Format::AbsolutePath => {
            (text.starts_with('/') && is_tame_path(text), "an absolute path without '..' or control characters")
        }
        Format::RelativePath => {
            (!text.starts_with('/') && is_tame_path(text), "a relative path without '..' or control characters")
        }
        Format::LabelKey => (
            is_label_key(text),
            "a label's key: 1 to 63 letters, digits, '.', '_', '-' and '/', a letter or digit first",
        ),
        Format::WireGuardKey => (is_wireguard_key(text), "a WireGuard key: 43 letters, digits, '+' and '/', and a '='"),
        Format::SocketAddress => {
            (text.parse::<SocketAddr>().is_ok(), "an address and a port, like 192.0.2.1:51820 or [2001:db8::1]:51820")
        }
        Format::HttpsUrl => (is_https_url(text), "an https:// address of a host, a port and a path"),
    };
    if fits { None } else { Some(wanted) }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_name(text: &str, is_label: fn(&str) -> bool) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

fn is_record_name(text: &str) -> bool {
    let rest = text.strip_prefix("*.").unwrap_or(text);
    // RFC 8552: names of services and of attributes open with an underscore.
    let label = |label: &str| is_label(label.strip_prefix('_').unwrap_or(label));
    text == "@" || text == "*" || is_name(rest, label)
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

fn is_env_name(text: &str) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_label_key(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
    text.len() <= 63 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(inner)
}

fn is_tame_path(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control) && text.split('/').all(|part| part != "..")
}

/// The base64 of 32 bytes has 43 characters that count; the last of them holds four bits, with nothing below. The number's
/// highest bit is in the one before, and has to be 0: X25519 ignores it (RFC 7748, section 5), so with it one key would
/// have two spellings, and whoever knows another's key could take its place by the second.
fn is_wireguard_key(text: &str) -> bool {
    let Some(digits) = text.strip_suffix('=').filter(|digits| digits.len() == 43) else { return false };
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    let highest = digits
        .as_bytes()
        .get(41)
        .is_some_and(|byte| matches!(byte, b'A'..=b'H' | b'Q'..=b'X' | b'g'..=b'n' | b'w'..=b'z' | b'0'..=b'3'));
    digits.bytes().all(inner) && highest && digits.ends_with(|c| "AEIMQUYcgkosw048".contains(c))
}

fn is_https_url(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'@');
    text.strip_prefix("https://")
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && rest.bytes().all(fine))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_takes_what_it_should_and_nothing_else() {
        let long = "a".repeat(64);
        let digest = format!("sha256:{}", "0f".repeat(32));
        let cases: &[(Format, &[&str], &[&str])] = &[
            (Format::DnsLabel, &["a", "a-1", "0"], &["", "-a", "a-", "A", "a.b", "a_b", "ä", &long]),
            (Format::DnsName, &["a", "a.b-c.d"], &["", ".", "a.", ".a", "a..b", "*.a"]),
            (Format::RecordName, &["@", "*", "*.a", "_http._tcp.web", "a.b"], &["", "a.*", "@.a", "a_b", "*a"]),
            (Format::IpAddress, &["1.2.3.4", "fd00::1"], &["1.2.3", "fd00::/64", "1.2.3.4 "]),
            (Format::IpPrefix, &["10.0.0.0/8", "fd00::/64"], &["10.0.0.0", "10.0.0.0/33"]),
            (Format::Digest, &[&digest], &["sha256:", "sha512:00", &digest[..70], &digest.to_uppercase()]),
            (Format::EnvName, &["PATH", "_a1"], &["", "1A", "A-B", "A=B"]),
            (Format::AbsolutePath, &["/", "/a/b"], &["", "a", "/a/../b", "/a\0"]),
            (Format::RelativePath, &["a", "a/b"], &["", "/a", "../a", "a/.."]),
            (Format::LabelKey, &["a", "example.org/App_1"], &["", "/a", "a b", "a=b", "a,b", "!a", &long]),
            (
                Format::WireGuardKey,
                &["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="],
                &[
                    "",
                    "AAAA=",
                    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB=",
                    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAIA=",
                    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
                ],
            ),
            (
                Format::SocketAddress,
                &["192.0.2.1:51820", "[2001:db8::1]:1"],
                &["192.0.2.1", "2001:db8::1:1", "a:1", "192.0.2.1:65536"],
            ),
            (
                Format::HttpsUrl,
                &["https://a:1/b", "https://[::1]:2"],
                &["http://a", "https://", "https://u@h", "https:///x"],
            ),
        ];
        for (format, good, bad) in cases {
            for text in *good {
                assert_eq!(mismatch(*format, text), None, "{format:?} {text:?}");
            }
            for text in *bad {
                assert!(mismatch(*format, text).is_some(), "{format:?} {text:?}");
            }
        }
    }
}
