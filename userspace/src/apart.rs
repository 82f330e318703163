//! Work that is done by a child that is forked for it: what it changes about itself ends with it.

use std::io;

use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, waitpid},
    unistd::Pid,
};

use crate::sys;

/// Has a child do something, and waits until it is done.
///
/// # Errors
/// What clone3(2) says, or what the work fails with, as far as that is an errno.
pub fn in_child(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let child = match sys::fork(sys::ForkOptions::default())? {
        sys::Fork::Child => {
            let failed = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
            sys::exit_now(work().map_or_else(failed, |()| 0))
        }
        sys::Fork::Parent { pid, .. } => Pid::from_raw(pid),
    };
    loop {
        return match waitpid(child, None) {
            Err(Errno::EINTR) => continue,
            Ok(WaitStatus::Exited(_, 0)) => Ok(()),
            Ok(WaitStatus::Exited(_, code)) => Err(io::Error::from_raw_os_error(code)),
            Ok(_) => Err(io::ErrorKind::Other.into()),
            Err(errno) => Err(errno.into()),
        };
    }
}
