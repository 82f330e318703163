//! A start as a shell or a service manager does it: a fork and an exec, without namespaces.
//!
//! Invariant: the process itself ends with its [`Child`]; what it started in turn ends with the
//! control group that it was born in, which is the caller's.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};
use tokio::io::unix::AsyncFd;

use super::{Command, SpawnError, Step, exec};
use crate::{sys, tree::HostPid};

/// A process that was started by [`Child::start`].
pub struct Child {
    pid: HostPid,
    pidfd: AsyncFd<OwnedFd>,
    status: Option<i32>,
}

impl Child {
    /// Starts a command in a session and a control group (v2) of its own, with nothing as its
    /// standard input. It has been executed when this returns.
    ///
    /// # Errors
    /// [`SpawnError::Child`] with the step that failed.
    pub fn start(
        command: &Command,
        stdout: BorrowedFd<'_>,
        stderr: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
    ) -> Result<Self, SpawnError> {
        let fork_error = |source| SpawnError::Child {
            step: Step::Fork,
            source,
        };
        let null = std::fs::File::open("/dev/null").map_err(fork_error)?;
        let (failure, report) = exec::failure_pipe().map_err(|errno| fork_error(errno.into()))?;
        let options = sys::ForkOptions {
            cgroup: Some(cgroup),
            ..sys::ForkOptions::default()
        };
        match sys::fork(options).map_err(fork_error)? {
            sys::Fork::Child => {
                if let Err(error) = sys::place(null.as_raw_fd(), 0) {
                    report.send(Step::Exec, &error);
                }
                let (stdout, stderr) = (stdout.as_raw_fd(), stderr.as_raw_fd());
                let (step, error) = command.execute(stdout, stderr, Some(Signal::KILL));
                report.send(step, &error)
            }
            sys::Fork::Parent { pid, pidfd } => {
                drop(report);
                let child = Self {
                    pid: HostPid(pid),
                    pidfd: sys::readable(pidfd).map_err(fork_error)?,
                    status: None,
                };
                match failure.receive() {
                    None => Ok(child),
                    Some((step, source)) => Err(SpawnError::Child { step, source }),
                }
            }
        }
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(self.pidfd.get_ref().as_fd(), signal);
    }

    /// Waits until it has ended, and returns its wait status.
    ///
    /// # Errors
    /// What poll(2) and waitpid(2) say.
    pub async fn exit(&mut self) -> io::Result<i32> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let _ = self.pidfd.readable().await?;
        self.reap()
    }

    fn reap(&mut self) -> io::Result<i32> {
        let waited = waitpid(Pid::from_raw(self.pid.0), WaitOptions::empty())?;
        let status = waited.map_or(0, |(_, status)| status.as_raw());
        self.status = Some(status);
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.signal(Signal::KILL);
            let _ = self.reap();
        }
    }
}
