use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// A digest. Its text form is OCI's (image-spec, descriptor.md): the algorithm, `:`, and lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Sum);

/// How a digest is made of what it names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// 64 hexadecimal digits; what everything of ours is named by.
    #[default]
    Sha256,
    /// 128 hexadecimal digits; what a client may name its blobs by.
    Sha512,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Sum {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Algorithm {
    /// As in a digest's text: `sha256`, `sha512`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The digest of `bytes`.
    pub fn digest(self, bytes: &[u8]) -> Digest {
        Digest(match self {
            Self::Sha256 => Sum::Sha256(Sha256::digest(bytes).into()),
            Self::Sha512 => Sum::Sha512(Sha512::digest(bytes).into()),
        })
    }

    /// The digest whose hexadecimal digits are `hex`.
    pub fn from_hex(self, hex: &str) -> Result<Digest, ParseDigestError> {
        // One spelling for one digest: it names a file, and two names for one blob would be two blobs.
        if hex.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ParseDigestError::NotHex(self));
        }
        let mut sum = match self {
            Self::Sha256 => Sum::Sha256([0; 32]),
            Self::Sha512 => Sum::Sha512([0; 64]),
        };
        let bytes: &mut [u8] = match &mut sum {
            Sum::Sha256(bytes) => bytes,
            Sum::Sha512(bytes) => bytes,
        };
        hex::decode_to_slice(hex, bytes).map_err(|_| ParseDigestError::NotHex(self))?;
        Ok(Digest(sum))
    }
}

impl FromStr for Algorithm {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Sha256, Self::Sha512].into_iter().find(|known| known.name() == text).ok_or(ParseDigestError::Algorithm)
    }
}

impl Digest {
    /// The SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Algorithm::Sha256.digest(bytes)
    }

    /// How it was made.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Sum::Sha256(_) => Algorithm::Sha256,
            Sum::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The bytes that the hexadecimal digits stand for.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Sum::Sha256(bytes) => bytes,
            Sum::Sha512(bytes) => bytes,
        }
    }

    /// The lower-case hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
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
        let (algorithm, hex) = text.split_once(':').ok_or(ParseDigestError::Algorithm)?;
        algorithm.parse::<Algorithm>()?.from_hex(hex)
    }
}

/// Why a text is not a [`Digest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// The text names another algorithm, or none.
    #[error("a digest starts with `sha256:` or `sha512:`")]
    Algorithm,
    /// What follows the algorithm is not a digest in lower-case hexadecimal.
    #[error("a {} digest has {} lower-case hexadecimal digits", .0.name(), if *.0 == Algorithm::Sha256 { 64 } else { 128 })]
    NotHex(Algorithm),
}

/// Counts and hashes what is written through it into `inner`.
#[derive(Debug)]
pub struct Hasher<W> {
    inner: W,
    sha: Sha,
    size: u64,
}

#[derive(Debug)]
enum Sha {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl<W> Hasher<W> {
    /// Makes a SHA-256 of what goes into `inner` from here on.
    pub fn new(inner: W) -> Self {
        Self::with(Algorithm::Sha256, inner)
    }

    /// Hashes from here on what goes into `inner`.
    pub fn with(algorithm: Algorithm, inner: W) -> Self {
        let sha = match algorithm {
            Algorithm::Sha256 => Sha::Sha256(Sha256::new()),
            Algorithm::Sha512 => Sha::Sha512(Sha512::new()),
        };
        Self { inner, sha, size: 0 }
    }

    /// How many bytes went through.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The writer underneath, the digest of what went into it, and its length in bytes.
    pub fn finish(self) -> (W, Digest, u64) {
        let sum = match self.sha {
            Sha::Sha256(sha) => Sum::Sha256(sha.finalize().into()),
            Sha::Sha512(sha) => Sum::Sha512(sha.finalize().into()),
        };
        (self.inner, Digest(sum), self.size)
    }
}

impl<W: Write> Write for Hasher<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        let bytes = buf.get(..written).unwrap_or(buf);
        match &mut self.sha {
            Sha::Sha256(sha) => sha.update(bytes),
            Sha::Sha512(sha) => sha.update(bytes),
        }
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
    fn both_algorithms_are_hashed_alike_in_one_piece_and_in_many() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut hasher = Hasher::with(algorithm, Vec::new());
            for part in ["a", "b", "c"] {
                hasher.write_all(part.as_bytes()).unwrap();
            }
            let (_, digest, size) = hasher.finish();
            assert_eq!((digest, size), (algorithm.digest(b"abc"), 3));
            assert_eq!(digest.to_string().parse(), Ok(digest));
        }
        // FIPS 180-4's own example.
        assert!(Algorithm::Sha512.digest(b"abc").hex().starts_with("ddaf35a193617abacc417349ae204131"));
    }

    #[test]
    fn another_spelling_of_a_digest_is_refused() {
        assert_eq!(EMPTY.to_uppercase().parse::<Digest>(), Err(ParseDigestError::Algorithm));
        assert_eq!(EMPTY.replace("e3b0", "E3B0").parse::<Digest>(), Err(ParseDigestError::NotHex(Algorithm::Sha256)));
        assert_eq!("md5:e3b0".parse::<Digest>(), Err(ParseDigestError::Algorithm));
        assert_eq!("sha256:e3b0".parse::<Digest>(), Err(ParseDigestError::NotHex(Algorithm::Sha256)));
    }
}
