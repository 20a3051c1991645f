//! Messages over the socket that is the sandbox's standard input: their length, then JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A run has a page of environment and some secrets; nothing is ever near this.
const MOST: u32 = 64 << 20;

pub(crate) fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).ok().filter(|length| *length <= MOST);
    let length =
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the step's description is too long"))?;
    to.write_all(&length.to_ne_bytes())?;
    to.write_all(&json)
}

/// `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(mut from: impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let length = u32::from_ne_bytes(length);
    if length > MOST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut json = Vec::new();
    from.take(length.into()).read_to_end(&mut json)?;
    Ok(Some(serde_json::from_slice(&json)?))
}
