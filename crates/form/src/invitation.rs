//! What a new machine is given to get in: one word, which says where form-state is, what its certificate has to be of,
//! and the secret of a JoinToken.
//!
//! ```text
//!   formation1- base64url of:   length, address   length, zone   length, secret   length, CA (DER)
//! ```
//!
//! A length is two bytes, the higher first. The CA comes along so that the new machine asks nobody but this cloud.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use form_client::Endpoint;

const PREFIX: &str = "formation1-";
/// One of ours has some 700 bytes.
const MOST_BYTES: usize = 16 << 10;
const LINE: usize = 64;

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Invitation {
    pub(crate) state: Endpoint,
    /// The zone of the cluster's own names.
    pub(crate) zone: String,
    pub(crate) secret: String,
    /// The cluster's CA, DER.
    ca: Vec<u8>,
}

impl Invitation {
    /// `None`: the CA is none.
    pub(crate) fn new(state: Endpoint, zone: String, secret: String, ca_pem: &str) -> Option<Self> {
        let body: String = ca_pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
        let ca = BASE64.decode(body.as_bytes()).ok().filter(|ca| !ca.is_empty())?;
        Some(Self { state, zone, secret, ca })
    }

    /// `None`: it is too long to be written.
    pub(crate) fn encode(&self) -> Option<String> {
        let state = String::from(self.state.clone());
        let mut bytes = Vec::new();
        for field in [state.as_bytes(), self.zone.as_bytes(), self.secret.as_bytes(), &self.ca] {
            bytes.extend(u16::try_from(field.len()).ok()?.to_be_bytes());
            bytes.extend(field);
        }
        Some(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes)))
    }

    /// # Errors
    /// With a sentence on what is wrong.
    pub(crate) fn decode(text: &str) -> Result<Self, String> {
        let cut = || "this is no invitation, or a part of one; `form node invite` prints one, in one line".to_owned();
        if text.starts_with("formation") && !text.starts_with(PREFIX) {
            return Err(
                "this invitation is of another version of Formation; use the same one on both machines".to_owned()
            );
        }
        let body = text.strip_prefix(PREFIX).filter(|body| body.len() <= MOST_BYTES).ok_or_else(cut)?;
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| cut())?;
        let mut rest = bytes.as_slice();
        let mut field = || -> Option<&[u8]> {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let (field, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            rest = after;
            Some(field)
        };
        let fields = (field(), field(), field(), field());
        let (Some(state), Some(zone), Some(secret), Some(ca)) = fields else { return Err(cut()) };
        if !rest.is_empty() || ca.is_empty() {
            return Err(cut());
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| cut());
        Ok(Self { state: text(state)?.try_into()?, zone: text(zone)?, secret: text(secret)?, ca: ca.to_vec() })
    }

    pub(crate) fn ca_pem(&self) -> String {
        let body = BASE64.encode(&self.ca);
        let lines: Vec<String> =
            body.as_bytes().chunks(LINE).map(|line| String::from_utf8_lossy(line).into()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// The name of the JoinToken.
    pub(crate) fn token_name(&self) -> String {
        let name = self.secret.strip_prefix("formjoin_").and_then(|rest| rest.split_once('_'));
        name.map(|(name, _)| name.to_owned()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invitation() -> (Invitation, String) {
        let dir = tempfile::tempdir().unwrap();
        let authority = form_service::Authority::open_or_create(dir.path()).unwrap();
        let ca = authority.issue("form", "one", &[], &[]).unwrap().ca_pem;
        let state = Endpoint::try_from("192.0.2.1:3004".to_owned()).unwrap();
        let secret = "formjoin_two-0123_abc".to_owned();
        (Invitation::new(state, "formation.internal".into(), secret, &ca).unwrap(), ca)
    }

    #[test]
    fn what_is_written_is_read_and_the_ca_is_the_same_certificate() {
        let (invitation, ca) = invitation();
        let word = invitation.encode().unwrap();
        assert!(word.len() < 1000 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        let read = Invitation::decode(&word).unwrap();
        assert!(read == invitation);
        assert_eq!(read.ca_pem().replace(char::is_whitespace, ""), ca.replace(char::is_whitespace, ""));
        assert_eq!(read.token_name(), "two-0123");
    }

    #[test]
    fn a_word_that_was_cut_or_changed_is_refused_and_nothing_panics() {
        let (invitation, _) = invitation();
        let word = invitation.encode().unwrap();
        for end in 0..word.len() {
            assert!(Invitation::decode(&word[..end]).is_err(), "{end}");
        }
        for at in 0..word.len() {
            let mut changed = word.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let _ = Invitation::decode(&String::from_utf8(changed).unwrap());
        }
        let said = Invitation::decode(&word.replace("formation1", "formation2")).err().unwrap();
        assert!(said.contains("another version"), "{said}");
        assert!(Invitation::decode("hello").is_err());
    }
}
