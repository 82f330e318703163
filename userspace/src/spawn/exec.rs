//! How a forked child tells that it could not become its program: over a pipe that the exec
//! closes, so that an end of file is a success.

use std::{io, os::fd::OwnedFd};

use super::protocol::Step;
use crate::sys;

/// The end of the parent.
pub struct Failure(OwnedFd);

/// The end of the child.
pub struct Report(OwnedFd);

/// Makes both ends.
pub fn failure_pipe() -> nix::Result<(Failure, Report)> {
    let (failure, report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((Failure(failure), Report(report)))
}

impl Report {
    /// Tells what failed, and ends the child.
    pub fn send(&self, step: Step, error: &io::Error) -> ! {
        let errno = error.raw_os_error().unwrap_or(libc::EIO) as u32;
        let words = [step as u32, errno].map(u32::to_ne_bytes).concat();
        let _ = nix::unistd::write(&self.0, &words);
        sys::exit_now(127)
    }
}

impl Failure {
    /// Waits for the exec; returns what failed, if anything did. The parent's copy of the
    /// [`Report`] must be closed.
    pub fn receive(&self) -> Option<(Step, io::Error)> {
        let mut words = [[0; 4]; 2];
        match nix::unistd::read(&self.0, words.as_flattened_mut()) {
            Ok(8) => {
                let [step, errno] = words.map(u32::from_ne_bytes);
                let step = Step::from_number(step).unwrap_or(Step::Exec);
                Some((step, io::Error::from_raw_os_error(errno as i32)))
            }
            _ => None,
        }
    }
}
