//! What the words of a Formfile mean, once their variables are expanded. Each function tells a bad value with its place.

use std::fmt;

use crate::{Fault, Span};

/// What a Package can hold (`package.proto`).
pub const MOST_ENV: usize = 512;
/// Bytes of one value of `ENV`.
pub const MOST_ENV_BYTES: usize = 32_768;
/// Ports that are exposed.
pub const MOST_PORTS: usize = 64;
/// Arguments of a command, its program among them.
pub const MOST_ARGUMENTS: usize = 256;
/// Bytes of one of them.
pub const MOST_ARGUMENT_BYTES: usize = 4096;
/// Labels of a package.
pub const MOST_LABELS: usize = 64;
/// Volumes of a package.
pub const MOST_VOLUMES: usize = 64;

/// What holds where the file says nothing: the smallest machine that a Linux guest and a small service are at ease in.
pub const DEFAULT_VCPU: u32 = 1;
/// Memory, in MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 256;
/// Root disk, in MiB.
pub const DEFAULT_DISK_MIB: u32 = 256;
/// Seconds between two health checks.
pub const DEFAULT_INTERVAL_SECONDS: u32 = 30;
/// Seconds that a health check may take.
pub const DEFAULT_TIMEOUT_SECONDS: u32 = 30;
/// Failures in a row that make an instance unhealthy.
pub const DEFAULT_RETRIES: u32 = 3;

/// A port and its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port {
    /// 1..=65535.
    pub number: u16,
    /// TCP if the Formfile does not say.
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `tcp`
    Tcp,
    /// `udp`
    Udp,
}

impl fmt::Display for Port {
    /// As in the Formfile and in an OCI configuration: `8080/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}/{protocol}", self.number)
    }
}

/// A port of `EXPOSE`.
pub fn port(text: &str, span: Span) -> Result<Port, Fault> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => {
            let hint = format!("write `{number}/tcp` or `{number}/udp`");
            return Err(Fault::new(span, format!("`{protocol}` is no protocol that EXPOSE knows"), hint));
        }
    };
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    match number.parse() {
        Ok(number @ 1..) if digits => Ok(Port { number, protocol }),
        _ => {
            let hint = "a port is a number from 1 to 65535; name several one by one";
            Err(Fault::new(span, format!("`{number}` is no port"), hint))
        }
    }
}

/// `user[:group]` of `USER` and `--chown`: names as useradd takes them, or numbers.
pub fn user(text: &str, span: Span) -> Result<String, Fault> {
    let part = |text: &str| {
        let head = |c: char| c.is_ascii_lowercase() || c == '_';
        let tail = |c: char| head(c) || c.is_ascii_digit() || c == '-';
        let name = text.len() <= 32 && text.starts_with(head) && text.chars().all(tail);
        // 2^32 - 1 is what the kernel takes for "no change".
        name || (text.bytes().all(|b| b.is_ascii_digit()) && text.parse().is_ok_and(|id: u32| id != u32::MAX))
    };
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    if part(user) && group.is_none_or(part) {
        return Ok(text.to_owned());
    }
    let hint = "write `user` or `user:group`: lower-case names as useradd takes them, or numbers";
    Err(Fault::new(span, format!("`{text}` names no user"), hint))
}

/// A path in the package: absolute and normalised, made so with the working directory `workdir`.
pub fn package_path(text: &str, workdir: &str, span: Span) -> Result<String, Fault> {
    plain_path(text, span)?;
    let base = if text.starts_with('/') { "" } else { workdir };
    let joined = format!("{base}/{text}");
    let parts = joined.split('/').filter(|part| !matches!(*part, "" | "."));
    let path = parts.fold(String::new(), |path, part| path + "/" + part);
    Ok(if path.is_empty() { "/".to_owned() } else { path })
}

/// Whether a destination is a directory by its spelling.
pub fn is_directory(text: &str) -> bool {
    text.ends_with('/') || text.ends_with("/.") || text == "."
}

/// A path or glob of the build context, or of another stage: relative, without `.` and empty parts; the empty one is
/// the whole. Out of another stage (`whole_root`) it may also begin with `/`.
pub fn source_path(text: &str, whole_root: bool, span: Span) -> Result<String, Fault> {
    if text.contains("://") {
        let hint = "download it in a RUN, or put it into the build context";
        return Err(Fault::new(span, "the source is a URL", hint));
    }
    if text.starts_with('/') && !whole_root {
        let hint = format!("sources are relative to the build context; write `{}`", text.trim_start_matches('/'));
        return Err(Fault::new(span, "the source is an absolute path", hint));
    }
    plain_path(text, span)?;
    let parts: Vec<_> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let path = parts.join("/");
    if is_glob(&path) {
        glob(&path, span)?;
    }
    Ok(path)
}

/// Whether a path holds `*`, `?` or `[`.
pub fn is_glob(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// The glob of [`source_path`]: `*`, `?` and `[...]` within a name, `**` over any number of names.
pub fn glob(path: &str, span: Span) -> Result<globset::GlobMatcher, Fault> {
    let built = globset::GlobBuilder::new(path).literal_separator(true).backslash_escape(false).build();
    let glob = built.map_err(|e| {
        let message = format!("`{path}` is no glob: {}", e.kind());
        Fault::new(span, message, "`*`, `?`, `[a-z]` and `**` are known; for the sign itself write `[*]`")
    })?;
    Ok(glob.compile_matcher())
}

/// Whether nothing about the path needs explaining.
fn plain_path(text: &str, span: Span) -> Result<(), Fault> {
    if text.is_empty() {
        return Err(Fault::new(span, "the path is empty", "write `.` for the directory itself"));
    }
    if text.split('/').any(|part| part == "..") {
        return Err(Fault::new(span, "the path contains `..`", "write it without"));
    }
    if text.contains('\0') {
        return Err(Fault::new(span, "the path holds a NUL", "remove it"));
    }
    // What Linux allows, so that nothing fails that late.
    if text.len() > 4095 || text.split('/').any(|part| part.len() > 255) {
        return Err(Fault::bare(span, "the path is too long: at most 255 bytes for a name and 4095 in all"));
    }
    Ok(())
}

/// A package of `INSTALL`, `name` or `name=version`, as Debian's policy spells both.
pub fn debian_package(text: &str, span: Span) -> Result<(String, Option<String>), Fault> {
    let (name, version) = text.split_once('=').map_or((text, None), |(name, version)| (name, Some(version)));
    let name_fits = name.len() >= 2
        && name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    let version_fits = version.is_none_or(|version| {
        version.len() <= 128
            && version.starts_with(|c: char| c.is_ascii_digit())
            && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-~:".contains(&b))
    });
    if name_fits && version_fits {
        return Ok((name.to_owned(), version.map(str::to_owned)));
    }
    let hint = "write `name` or `name=version`, as `apt list` tells them; options are not taken";
    Err(Fault::new(span, format!("`{text}` names no Debian package"), hint))
}

/// The number of a signal, out of `SIGTERM`, `TERM` or `15`.
pub fn signal(text: &str, span: Span) -> Result<u8, Fault> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = SIGNALS.iter().find(|(known, _)| *known == name).map(|&(_, number)| number);
    let number = if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None };
    match known.or(number) {
        Some(number @ 1..=31) => Ok(number),
        _ => {
            let hint = "write a name such as `SIGINT`, or a number from 1 to 31";
            Err(Fault::new(span, format!("`{text}` is no signal"), hint))
        }
    }
}

/// As signal(7) has them for x86 and ARM.
const SIGNALS: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("WINCH", 28),
    ("PWR", 30),
];
