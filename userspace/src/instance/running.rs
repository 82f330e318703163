//! A detached instance that somebody waits for, be it ours or one that another process has restored.

use std::{
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::unix::AsyncFd;

use super::{Instance, InstanceError, LEAVING, OUTPUT, Record, discard, read, read_status, write};
use crate::sys;

/// The last lines of a log.
pub(super) fn last_lines(mut log: fs::File) -> io::Result<String> {
    /// How much of it, at most.
    const BYTES: u64 = 2048;
    const LINES: usize = 10;
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
    let mut bytes = vec![];
    log.take(BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LINES)..].join("\n"))
}

/// A detached instance that somebody waits for.
pub struct Running {
    pub(super) instance: Instance,
    init: AsyncFd<OwnedFd>,
    /// Since when it is known to run.
    pub since: Instant,
}

impl Running {
    /// Waits for an instance of this name.
    ///
    /// # Errors
    /// [`InstanceError::Ended`] or [`InstanceError::Signal`].
    pub fn follow(parent: &Path, id: &str) -> Result<Self, InstanceError> {
        let ended = || InstanceError::Ended { id: id.to_owned() };
        let instance = Instance::read(parent.join(id)).ok_or_else(ended)?;
        let pidfd = instance.open_init()?.ok_or_else(ended)?;
        let init = sys::readable(pidfd).map_err(instance.signal_error())?;
        Ok(Self {
            instance,
            init,
            since: Instant::now(),
        })
    }

    pub fn record(&self) -> &Record {
        &self.instance.record
    }

    /// Records why it is to end, for those who follow it later: it takes no more connections.
    ///
    /// # Errors
    /// [`InstanceError::Write`].
    pub fn set_leaving(&self, why: &impl Serialize) -> Result<(), InstanceError> {
        write(&self.instance.folder, LEAVING, why)
    }

    /// Why it is to end, if that was recorded.
    pub fn leaving<T: DeserializeOwned>(&self) -> Option<T> {
        read(&self.instance.folder, LEAVING)
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        // The only failure is that the runtime ends.
        let _ = self.init.readable().await;
    }

    /// Ends it as [`Instance::stop`] does.
    ///
    /// # Errors
    /// As of that.
    pub async fn stop(&self, grace: Duration) -> Result<bool, InstanceError> {
        let stopped = self.instance.stop(grace).await;
        self.reap();
        stopped
    }

    /// Removes it once it has ended by itself; returns its wait status, and the last that it wrote.
    pub fn discard(&self) -> (Option<i32>, String) {
        self.reap();
        let status = read_status(&self.instance.folder);
        let last = self.instance.log().and_then(|log| {
            last_lines(log).map_err(|source| InstanceError::Read {
                path: self.instance.folder.join(OUTPUT),
                source,
            })
        });
        let _ = discard(&self.instance.folder);
        (status, last.unwrap_or_default())
    }

    /// Init is our child, unless another gateway has restored it.
    fn reap(&self) {
        use nix::sys::wait::{WaitPidFlag, waitpid};
        let init = nix::unistd::Pid::from_raw(self.instance.record.init.0);
        let _ = waitpid(init, Some(WaitPidFlag::WNOHANG));
    }
}
