use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest. Its text form is OCI's: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 lower-case hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The digest whose 64 hexadecimal digits are `hex`.
    pub fn from_hex(hex: &str) -> Result<Self, ParseDigestError> {
        // One spelling for one digest: it names a file, and two names for one blob would be two blobs.
        if hex.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ParseDigestError::NotHex);
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(hex, &mut bytes).map_err(|_| ParseDigestError::NotHex)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_hex(text.strip_prefix("sha256:").ok_or(ParseDigestError::Algorithm)?)
    }
}

/// Why a text is not a [`Digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// The text names another algorithm, or none.
    #[error("a digest starts with `sha256:`")]
    Algorithm,
    /// What follows the algorithm is not a SHA-256 in lower-case hexadecimal.
    #[error("a SHA-256 digest has 64 lower-case hexadecimal digits")]
    NotHex,
}

/// Counts and hashes what is written through it into `inner`.
#[derive(Debug)]
pub struct Hasher<W> {
    inner: W,
    sha: Sha256,
    size: u64,
}

impl<W> Hasher<W> {
    /// Hashes from here on what goes into `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, sha: Sha256::new(), size: 0 }
    }

    /// How many bytes went through.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The writer underneath, the digest of what went into it, and its length in bytes.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest(self.sha.finalize().into()), self.size)
    }
}

impl<W: Write> Write for Hasher<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.sha.update(buf.get(..written).unwrap_or(buf));
        self.size = self.size.saturating_add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_text_form_survives_a_round_trip() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
    }

    #[test]
    fn another_spelling_of_a_digest_is_refused() {
        assert_eq!(EMPTY.to_uppercase().parse::<Digest>(), Err(ParseDigestError::Algorithm));
        assert_eq!(EMPTY.replace("e3b0", "E3B0").parse::<Digest>(), Err(ParseDigestError::NotHex));
        assert_eq!("sha256:e3b0".parse::<Digest>(), Err(ParseDigestError::NotHex));
    }
}
