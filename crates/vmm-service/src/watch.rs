//! Waiting for files to change, without looking at them all the time.

use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::error::{Result, file, system};
use crate::sys::Readable;

/// How often a busy directory is looked at: a chatty guest makes many small writes.
const PACE: Duration = Duration::from_millis(50);

/// Tells of changes in a directory, and of its end. Used only as a sign to look: several changes may be one sign.
#[derive(Debug)]
pub(crate) struct DirectoryWatch(Readable);

impl DirectoryWatch {
    /// From now on no change is missed.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(system("watch files"))?;
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
        inotify::add_watch(&inotify, directory, flags).map_err(file("watch", directory))?;
        // Its own end only its parent tells for certain: the kernel waits with the directory's own word until nobody has
        // a file of it open any more, and whoever reads a log has.
        if let Some(parent) = directory.parent() {
            let flags = WatchFlags::DELETE | WatchFlags::MOVED_FROM;
            inotify::add_watch(&inotify, parent, flags).map_err(file("watch", parent))?;
        }
        Ok(Self(Readable::new(inotify).map_err(system("watch files"))?))
    }

    /// Waits for a change since the last call. Nothing is lost if the wait is given up.
    pub(crate) async fn changed(&mut self) -> Result<()> {
        let mut ready = self.0.readable().await.map_err(system("watch files"))?;
        tokio::time::sleep(PACE).await;
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.0, &mut events) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(errno) => return Err(system("watch files")(errno)),
            }
        }
    }
}
