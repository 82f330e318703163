//! When CRIU's own clock of a restore starts, seen from outside: right after it has read the
//! inventory of the image (`cr_restore_tasks` of its `criu/cr-restore.c`).
//!
//! By inotify(7). Only for those who want to know: the kernel takes some milliseconds to close
//! what it watches with, and so it is kept to the end.

use std::{io, mem::MaybeUninit, os::fd::OwnedFd, path::Path, time::Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::{Interest, unix::AsyncFd};

use super::RESTORE_LOG;
use crate::sys;

/// Sees CRIU start.
pub struct Start {
    inotify: AsyncFd<OwnedFd>,
    /// CRIU has made its log. Who reads the image before that is another restore of it.
    has_log: bool,
    began: Option<Instant>,
}

impl Start {
    /// Watches what a CRIU does that is not started yet.
    ///
    /// # Errors
    /// What inotify(7) says.
    pub fn watch(work: &Path, inventory: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, work, WatchFlags::CREATE)?;
        inotify::add_watch(&inotify, inventory, WatchFlags::CLOSE_NOWRITE)?;
        Ok(Self {
            inotify: sys::readable(inotify)?,
            has_log: false,
            began: None,
        })
    }

    /// Waits for a restore, and looks when its clock starts.
    pub async fn during<T>(&mut self, restore: impl Future<Output = T>) -> T {
        tokio::pin!(restore);
        tokio::select! {
            biased;
            () = self.seen() => restore.await,
            outcome = &mut restore => outcome,
        }
    }

    /// When CRIU's clock started, if that was seen.
    pub fn began(&self) -> Option<Instant> {
        self.began
    }

    async fn seen(&mut self) {
        let (has_log, began) = (&mut self.has_log, &mut self.began);
        let next = |inotify: &OwnedFd| -> io::Result<()> {
            let now = Instant::now();
            let mut buffer = [MaybeUninit::uninit(); 512];
            let mut events = inotify::Reader::new(inotify, &mut buffer);
            loop {
                match events.next()?.file_name() {
                    Some(name) => *has_log |= name.to_bytes() == RESTORE_LOG.as_bytes(),
                    None if *has_log => {
                        *began = Some(now);
                        return Ok(());
                    }
                    None => {}
                }
            }
        };
        let seen = self.inotify.async_io(Interest::READABLE, next).await;
        if seen.is_err() {
            // Then it is not known.
            std::future::pending().await
        }
    }
}
