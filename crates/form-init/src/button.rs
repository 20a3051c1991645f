//! The ACPI power button, as an input device (linux/input.h).

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NONBLOCK;

/// `struct input_event` on 64-bit: two longs of time, then type, code and value.
const EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// An open power button. A press that comes before anyone looks is kept by the kernel.
pub(crate) struct Button(File);

impl Button {
    /// Every power button of the machine. ACPI may know several, and does not say which of them the host presses.
    pub(crate) fn all(sys: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(sys.join("class/input")) else { return Vec::new() };
        let is_button = |entry: &fs::DirEntry| {
            let name = fs::read_to_string(entry.path().join("device/name")).unwrap_or_default();
            entry.file_name().to_string_lossy().starts_with("event") && name.trim_end() == "Power Button"
        };
        let open = |entry: fs::DirEntry| {
            let path = Path::new("/dev/input").join(entry.file_name());
            OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).ok()
        };
        entries.flatten().filter(is_button).filter_map(open).map(Self).collect()
    }

    /// For `poll`.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Reads what is there, and says whether the button was pressed.
    pub(crate) fn pressed(&mut self) -> bool {
        let mut buffer = [0; EVENT * 16];
        let mut pressed = false;
        while let Ok(length @ 1..) = self.0.read(&mut buffer) {
            pressed |= buffer.get(..length).unwrap_or_default().chunks_exact(EVENT).any(is_press);
        }
        pressed
    }
}

fn is_press(event: &[u8]) -> bool {
    let Some(&[t0, t1, c0, c1, v0, v1, v2, v3]) = event.get(16..24) else { return false };
    u16::from_ne_bytes([t0, t1]) == EV_KEY
        && u16::from_ne_bytes([c0, c1]) == KEY_POWER
        && i32::from_ne_bytes([v0, v1, v2, v3]) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        [&[0; 16][..], &kind.to_ne_bytes(), &code.to_ne_bytes(), &value.to_ne_bytes()].concat()
    }

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        assert!(is_press(&event(EV_KEY, KEY_POWER, 1)));
        assert!(!is_press(&event(EV_KEY, KEY_POWER, 0)), "its release");
        assert!(!is_press(&event(EV_KEY, 30, 1)), "another key");
        assert!(!is_press(&event(0, 0, 0)), "the end of a packet");
        assert!(!is_press(&[1; 5]), "a piece of an event");
    }
}
