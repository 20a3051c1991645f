use crate::config::{GuestConfig, InvalidConfig, VERSION};

/// A config drive's greatest size in bytes.
pub const MAX_DRIVE: usize = 1 << 20;
/// A config drive's length is a multiple of this many bytes: a disk has only whole sectors.
pub const SECTOR: usize = 512;

/// Why a config drive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The drive would be, or is, larger than [`MAX_DRIVE`].
    #[error("the config drive has {len} bytes, {MAX_DRIVE} are the limit; shorten env or hosts")]
    TooLarge {
        /// Bytes found.
        len: usize,
    },
    /// Nothing but NUL: a drive that the host never wrote.
    #[error("the config drive is blank; the host has to write it before it starts the guest")]
    Blank,
    /// Not the JSON of a [`GuestConfig`].
    #[error("the config drive is not a guest's configuration")]
    Json(#[source] serde_json::Error),
    /// Written for a guest of another time.
    #[error(
        "the config drive has version {found}, this guest reads {VERSION}; use the initramfs of the host's release"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// Well-formed, and impossible.
    #[error("the config drive cannot be obeyed")]
    Invalid(#[from] InvalidConfig),
}

/// The bytes of a config drive: the JSON of `config`, padded with NUL to whole sectors.
///
/// # Errors
/// A config that [`decode`] would refuse is refused here, where its author can still be told.
pub fn encode(config: &GuestConfig) -> Result<Vec<u8>, DriveError> {
    check(config)?;
    let mut bytes = serde_json::to_vec(config).map_err(DriveError::Json)?;
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    if bytes.len() > MAX_DRIVE {
        return Err(DriveError::TooLarge { len: bytes.len() });
    }
    Ok(bytes)
}

/// Reads what [`encode`] wrote. `bytes` may be longer by any number of NULs, up to [`MAX_DRIVE`].
///
/// # Errors
/// See [`DriveError`]; whatever the bytes, this does not panic.
pub fn decode(bytes: &[u8]) -> Result<GuestConfig, DriveError> {
    if bytes.len() > MAX_DRIVE {
        return Err(DriveError::TooLarge { len: bytes.len() });
    }
    // JSON text has no NUL of its own (RFC 8259, section 7), so the first one ends it.
    let text = bytes.split(|&b| b == 0).next().unwrap_or_default();
    if text.is_empty() {
        return Err(DriveError::Blank);
    }
    // The version first: another one may not even have this shape.
    #[derive(serde::Deserialize)]
    struct Head {
        version: u32,
    }
    let Head { version } = serde_json::from_slice(text).map_err(DriveError::Json)?;
    if version != VERSION {
        return Err(DriveError::Version { found: version });
    }
    let config = serde_json::from_slice(text).map_err(DriveError::Json)?;
    check(&config)?;
    Ok(config)
}

fn check(config: &GuestConfig) -> Result<(), DriveError> {
    if config.version != VERSION {
        return Err(DriveError::Version { found: config.version });
    }
    Ok(config.validate()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Gateways, Interface, MacAddr};

    fn config() -> GuestConfig {
        GuestConfig {
            version: VERSION,
            hostname: "web".into(),
            interfaces: vec![Interface {
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                addresses: vec!["100.64.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
                gateway: Gateways { v4: Some([100, 64, 0, 1].into()), v6: None },
                mtu: Some(1420),
            }],
            dns: vec!["100.64.0.1".parse().unwrap()],
            search: vec!["default.formation.internal".into()],
            hosts: vec!["100.64.0.3 db".into()],
            env: [("PATH".to_owned(), "/bin".to_owned())].into(),
            user: "65532".into(),
            workdir: "/srv".into(),
            entrypoint: vec!["/hello".into()],
            grace_seconds: 3,
            stop_signal: 15,
            volumes: Vec::new(),
            health: None,
        }
    }

    #[test]
    fn a_drive_is_whole_sectors_and_reads_back() {
        let bytes = encode(&config()).unwrap();
        assert_eq!(bytes.len() % SECTOR, 0);
        assert_eq!(decode(&bytes).unwrap(), config());
    }

    #[test]
    fn a_drive_over_the_limit_is_neither_written_nor_read() {
        let mut config = config();
        config.env.insert("BIG".into(), "x".repeat(MAX_DRIVE));
        assert!(matches!(encode(&config), Err(DriveError::TooLarge { .. })));
        assert!(matches!(decode(&vec![b' '; MAX_DRIVE + 1]), Err(DriveError::TooLarge { .. })));
    }

    #[test]
    fn a_blank_drive_and_another_version_are_told_apart_from_garbage() {
        assert!(matches!(decode(&[0; SECTOR]), Err(DriveError::Blank)));
        assert!(matches!(decode(&[]), Err(DriveError::Blank)));
        assert!(matches!(decode(b"{\"version\":2,\"shape\":\"new\"}\0"), Err(DriveError::Version { found: 2 })));
        assert!(matches!(decode(b"\x7fELF"), Err(DriveError::Json(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_drive_with_flipped_bytes_does_not_panic(at in 0usize..512, to in any::<u8>()) {
            let mut bytes = encode(&config()).unwrap();
            bytes[at] = to;
            let _ = decode(&bytes);
        }
    }
}
