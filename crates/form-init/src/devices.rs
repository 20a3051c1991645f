//! Finding devices by what the host called them, and waiting for those that are not there yet.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

/// The kernel's announcements of devices. Used only as a sign to look again: what is believed is sysfs.
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    /// From now on nothing is missed.
    pub(crate) fn listen() -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Self(fd))
    }

    /// Calls `find` now, and again after each announcement, until it finds something or `limit` is over.
    pub(crate) fn wait<T>(
        &self,
        limit: Duration,
        mut find: impl FnMut() -> io::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = find()? {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => self.drain(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Every error ends it: ENOBUFS means that announcements were lost, and the answer is to look again as well.
    fn drain(&self) {
        let mut buffer = [0; 4096];
        while recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).is_ok() {}
    }
}

/// The block device with this virtio serial, as `/dev/NAME`.
pub(crate) fn disk(sys: &Path, serial: &str) -> io::Result<Option<PathBuf>> {
    by_attribute(&sys.join("block"), "serial", serial)
}

/// The virtio-serial port with this name, as `/dev/NAME`.
pub(crate) fn port(sys: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    by_attribute(&sys.join("class/virtio-ports"), "name", name)
}

/// The name of the network card with this Ethernet address.
pub(crate) fn card(sys: &Path, mac: &str) -> io::Result<Option<String>> {
    let device = by_attribute(&sys.join("class/net"), "address", mac)?;
    Ok(device.and_then(|path| Some(path.file_name()?.to_str()?.to_owned())))
}

fn by_attribute(directory: &Path, attribute: &str, wanted: &str) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // The class appears with its first device.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        // A device may have no such attribute, or may leave while it is looked at.
        let value = fs::read_to_string(entry.path().join(attribute)).unwrap_or_default();
        if value.trim_end() == wanted {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sys(files: &[(&str, &str)]) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        sys
    }

    #[test]
    fn a_disk_is_found_by_its_serial_and_not_by_its_place() {
        let sys =
            sys(&[("block/vda/serial", "form-config"), ("block/vdb/serial", "form-root"), ("block/loop0/size", "0")]);
        assert_eq!(disk(sys.path(), "form-root").unwrap(), Some("/dev/vdb".into()));
        assert_eq!(disk(sys.path(), "form-swap").unwrap(), None);
    }

    #[test]
    fn a_class_without_devices_is_empty_and_no_error() {
        let sys = sys(&[("class/net/eth0/address", "02:00:00:00:00:01\n")]);
        assert_eq!(port(sys.path(), "org.formation.report.0").unwrap(), None);
        assert_eq!(card(sys.path(), "02:00:00:00:00:01").unwrap(), Some("eth0".into()));
    }

    #[test]
    fn waiting_ends_at_the_limit() {
        let uevents = Uevents::listen().unwrap();
        let mut looks = 0;
        let found = uevents.wait(Duration::from_millis(5), || {
            looks += 1;
            Ok(None::<()>)
        });
        assert_eq!(found.unwrap(), None);
        assert!(looks >= 2, "looked {looks} times");
    }
}
