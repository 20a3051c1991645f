//! The archive that a kernel unpacks at boot: cpio, "newc" (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

/// What an entry is, and its content.
pub(crate) enum Entry<'a> {
    Directory,
    File { mode: u32, bytes: &'a [u8] },
    CharacterDevice { major: u32, minor: u32 },
}

/// An archive in the making. Owners and times are all zero: the same entries give the same bytes.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds `name`, a path without a leading slash, after its directory.
    pub(crate) fn add(&mut self, name: &str, entry: &Entry<'_>) {
        self.entries += 1;
        match *entry {
            Entry::Directory => self.write(name, 0o040_755, &[], (0, 0)),
            Entry::File { mode, bytes } => self.write(name, 0o100_000 | mode, bytes, (0, 0)),
            Entry::CharacterDevice { major, minor } => self.write(name, 0o020_600, &[], (major, minor)),
        }
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.write("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn write(&mut self, name: &str, mode: u32, content: &[u8], (major, minor): (u32, u32)) {
        let (inode, links) = (self.entries, 1);
        let (size, name_size) = (content.len(), name.len() + 1);
        let header = format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{major:08x}{minor:08x}\
             {name_size:08x}{:08x}",
            0, 0, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_made_of_aligned_records_and_ends_with_the_trailer() {
        let mut archive = Archive::default();
        archive.add("dev", &Entry::Directory);
        archive.add("dev/console", &Entry::CharacterDevice { major: 5, minor: 1 });
        archive.add("init", &Entry::File { mode: 0o755, bytes: b"hello" });
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("0707010000000100"), "{text}");
        // mode, uid, gid, links, time and size of "init"
        let header = "000081ed000000000000000000000001000000000000000500000000";
        assert!(text.contains(header), "{text}");
        assert!(text.contains("init\0") && text.contains("hello\x00\x00\x00070701"));
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
