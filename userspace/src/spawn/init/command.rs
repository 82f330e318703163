//! Starts the command, under a filter on bind(2) if it is to listen elsewhere.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::unistd::Pid;

use super::{
    super::{
        bind::{self, Binder, Bound},
        exec,
        protocol::{Notice, Step, receive_descriptor, send_descriptor},
    },
    Init, errno_of, failed,
};
use crate::sys;

/// The pid of the command in its namespace: high enough that init, CRIU and CRIU's helpers do
/// not need it when the tree is restored.
const FIRST_PID: i32 = 300;

/// The last pid given in this pid namespace; see proc(5).
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

impl Init<'_> {
    pub(super) fn start_command(&mut self) -> Notice {
        let Some(command) = &self.plan.command else {
            return Notice::Failed {
                step: Step::Fork,
                errno: libc::EINVAL as u32,
            };
        };
        let pipes = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .and_then(|go| Ok((go, exec::failure_pipe()?)));
        let ((wait, go), (failure, report)) = match pipes {
            Ok(pipes) => pipes,
            Err(errno) => return failed(Step::Fork)(errno),
        };
        // Not clone3's set_tid: that leaves the counter behind, and the command's own children
        // and threads would get the low pids that a restore needs for itself.
        if let Err(error) = fs::write(LAST_PID, (FIRST_PID - 1).to_string()) {
            return Notice::Failed {
                step: Step::Fork,
                errno: errno_of(&error),
            };
        }
        let filter = match bind_socket(&self.plan.bound) {
            Ok(filter) => filter,
            Err(errno) => return failed(Step::Bind)(errno),
        };
        match sys::fork(sys::ForkOptions::default()) {
            Ok(sys::Fork::Child) => {
                drop(go);
                if let Some((_, theirs)) = filter
                    && let Err(error) = sys::seccomp::listen(&bind::program())
                        .and_then(|listener| send_descriptor(theirs.as_fd(), listener.as_fd()))
                {
                    report.send(Step::Bind, &error)
                }
                let (step, error) = command.become_it(&wait);
                report.send(step, &error)
            }
            Ok(sys::Fork::Parent { pid, .. }) => {
                self.main = Some(Pid::from_raw(pid));
                drop(report);
                if let Some((ours, theirs)) = filter {
                    drop(theirs);
                    match receive_descriptor(ours.as_fd()) {
                        Ok(listener) => {
                            let first = self.plan.handed().start;
                            self.binder = Some(Binder::new(listener, &self.plan.bound, first));
                        }
                        Err(error) => {
                            let (step, error) = failure.receive().unwrap_or((Step::Bind, error));
                            return Notice::Failed {
                                step,
                                errno: errno_of(&error),
                            };
                        }
                    }
                }
                self.suspended = Some((go, failure));
                Notice::Started { pid: pid as u32 }
            }
            Err(error) => Notice::Failed {
                step: Step::Fork,
                errno: errno_of(&error),
            },
        }
    }

    pub(super) fn go(&mut self) -> Notice {
        let Some((go, failure)) = self.suspended.take() else {
            return Notice::Failed {
                step: Step::Exec,
                errno: libc::EINVAL as u32,
            };
        };
        let _ = nix::unistd::write(&go, b"g");
        match failure.receive() {
            None => Notice::Running,
            Some((step, error)) => Notice::Failed {
                step,
                errno: errno_of(&error),
            },
        }
    }

    pub(super) fn serve_binder(&mut self) {
        match self.binder.as_ref().map(Binder::serve) {
            Some(Ok(Some(place))) => self.tell(Notice::Bound {
                place: place as u32,
            }),
            // What it does not answer fails with ENOSYS then.
            Some(Err(_)) => self.binder = None,
            _ => {}
        }
    }
}

/// The two ends over which the filter on bind(2) comes to init, if there is to be one.
fn bind_socket(bound: &[Bound]) -> nix::Result<Option<(OwnedFd, OwnedFd)>> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    if bound.is_empty() {
        return Ok(None);
    }
    let kind = (AddressFamily::Unix, SockType::SeqPacket);
    socketpair(kind.0, kind.1, None, SockFlag::SOCK_CLOEXEC).map(Some)
}
