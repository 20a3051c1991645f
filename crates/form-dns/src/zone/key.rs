use std::borrow::Borrow;

use hickory_proto::rr::Name;

/// A name as a key that sorts, byte by byte, in the canonical order of RFC 4034, section 6.1.
///
/// It is the labels from the root down, in lower case, each followed by a zero: `www.x.` is `x\0www\0`. So the keys of
/// all names above a name are prefixes of its own, and those below it follow it at once. The root is the empty key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(Vec<u8>);

/// The end of a label. A byte that is one, or [`ESCAPE`], is written as `ESCAPE` and its successor: order stays.
const END: u8 = 0;
const ESCAPE: u8 = 1;

impl Key {
    pub(super) fn of(name: &Name) -> Self {
        let mut key = Vec::with_capacity(64);
        for label in name.iter().rev() {
            push_label(&mut key, label);
        }
        Self(key)
    }

    /// This name and all above it, itself first, the root last.
    pub(super) fn with_ancestors(&self) -> impl Iterator<Item = &[u8]> {
        let ends =
            self.0.iter().enumerate().rev().filter(|&(_, &byte)| byte == END).map(|(at, _)| at.saturating_add(1));
        ends.chain([0]).filter_map(|end| self.0.get(..end))
    }

    /// The wildcard right below the name `parent`.
    pub(super) fn wildcard_below(parent: &[u8]) -> Self {
        let mut key = parent.to_vec();
        push_label(&mut key, b"*");
        Self(key)
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

fn push_label(key: &mut Vec<u8>, label: &[u8]) {
    for byte in label {
        match byte.to_ascii_lowercase() {
            byte @ (END | ESCAPE) => key.extend([ESCAPE, byte.saturating_add(1)]),
            byte => key.push(byte),
        }
    }
    key.push(END);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::of(&Name::from_ascii(name).unwrap())
    }

    /// Labels may hold any byte, which text may not.
    fn key_of(labels: &[&[u8]]) -> Key {
        Key::of(&Name::from_labels(labels.iter().copied()).unwrap())
    }

    #[test]
    fn rfc4034_6_1_keys_sort_as_the_example_says() {
        let keys = [
            key("example."),
            key("a.example."),
            key("yljkjljk.a.example."),
            key("Z.a.example."),
            key("zABC.a.EXAMPLE."),
            key("z.example."),
            key_of(&[b"\x01", b"z", b"example"]),
            key("*.z.example."),
            key_of(&[b"\xc8", b"z", b"example"]),
        ];
        assert!(keys.is_sorted() && keys.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn labels_with_zeros_in_them_are_no_other_names() {
        assert_ne!(key_of(&[b"a\0b", b"x"]), key("b.a.x."));
        assert_eq!(key_of(&[b"a\0", b"x"]).with_ancestors().count(), 3);
        let labels: [&[u8]; 6] = [b"\0", b"\0\0", b"\0\x01", b"\x01", b"\x01\x01", b"\x02"];
        assert!(labels.map(|label| key_of(&[label, b"x"])).is_sorted());
    }

    #[test]
    fn the_ancestors_of_a_name_are_its_prefixes() {
        let name = key("www.Sub.x.");
        let above: Vec<_> = name.with_ancestors().collect();
        assert_eq!(above, [&b"x\0sub\0www\0"[..], b"x\0sub\0", b"x\0", b""]);
        assert_eq!(Key::wildcard_below(b"x\0"), key("*.x."));
    }
}
