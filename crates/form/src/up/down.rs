//! `form down`: stops the `form up` of a data directory, which is known by the lock that it holds.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Config, UpError};
use crate::error::Error;
use crate::output::say;
use crate::{cli, progress};

/// Stops the cloud of this data directory, and with `--machines` its machines.
pub(crate) async fn down(flags: cli::Down) -> Result<(), Error> {
    let config = Config::of(&flags.up)?;
    let path = config.data_dir.join("form.lock");
    if !path.exists() {
        return Err(Error::Failed(format!("there is no cloud with {}", config.data_dir.display())));
    }
    let mut file = open_lock(&config.data_dir).map_err(Error::file(&path))?;
    let was_up = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
    if was_up {
        let mut text = String::new();
        file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(Error::file(&path))?;
        let pid = text
            .trim()
            .parse::<i32>()
            .map_err(|_| Error::Failed(format!("{}: holds no process id", path.display())))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|error| {
            Error::Failed(format!("process {pid}, which runs the cloud, cannot be told to stop: {error}"))
        })?;
        let bar = progress::waiting("waiting for the cloud to stop");
        tokio::task::spawn_blocking(move || file.lock())
            .await
            .map_err(|error| Error::Failed(error.to_string()))?
            .map_err(Error::file(&path))?;
        bar.finish_and_clear();
    }
    if flags.machines {
        let stopped = vmm_service::stop_all(&config.data_dir.join("machines"), &config.guest_dir).await;
        let stopped = stopped.map_err(|error| Error::Failed(form_service::run::chain(&error)))?;
        // Nobody is left who uses the network.
        let interface = formnet::Config::default().interface;
        formnet::down(&interface).await.map_err(|error| Error::Failed(form_service::run::chain(&error)))?;
        return say(format_args!("the cloud is down, and its network; machines stopped: {stopped}"));
    }
    let instances = std::fs::read_dir(config.data_dir.join("machines/instances"));
    let some = instances.is_ok_and(|mut instances| instances.next().is_some());
    let down = if was_up { "the cloud is down" } else { "the cloud was down already" };
    let machines = if some { "; its machines run on (--machines stops them too)" } else { "" };
    say(format_args!("{down}{machines}"))
}

/// Takes the data directory for this process.
pub(crate) fn lock(data_dir: &Path) -> Result<File, UpError> {
    let fail = |source| UpError::Data { path: data_dir.to_owned(), source };
    std::fs::create_dir_all(data_dir).map_err(fail)?;
    let mut file = open_lock(data_dir).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(UpError::UpAlready(data_dir.to_owned())),
        Err(TryLockError::Error(source)) => return Err(fail(source)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(fail)?;
    Ok(file)
}

fn open_lock(data_dir: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(data_dir.join("form.lock"))
}
