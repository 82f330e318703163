//! A clean start: new pid and mount namespaces, and an init of our own in them. And, to compare
//! with it, an ordinary start: a [`Child`].
//!
//! Invariant: everything that runs in a [`Sandbox`] with namespaces of its own ends with it. Dropping
//! it kills init, and the kernel then kills the rest of the namespace; so does the supervisor's own
//! death, unless the sandbox was [detached](Sandbox::detach). One that [visits](Visit) a tree leaves
//! it running: when it is dropped or the supervisor dies, its init waits for CRIU and lets the tree go on.

mod bind;
mod caller;
mod child;
mod command;
mod exec;
mod init;
mod namespaces;
mod protocol;

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::poll::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::{Interest, unix::AsyncFd};

use self::protocol::{Notice, Order, receive_notice, send_order};
pub use self::{
    bind::{Bound, Instead},
    child::Child,
    command::{COMPATIBLE_ENVIRONMENT, Command, CommandError, RunAs},
    init::{EXIT_FILE, Fresh, GUARD_FILE, IMAGES, Place, Plan, STDERR, STDOUT, WORK},
    namespaces::{Namespaces, Visit},
    protocol::Step,
};
use crate::{
    cgroup::Group,
    sys,
    tree::{HostPid, NsPid},
};

/// How long init may take to end a visit, in milliseconds.
const VISIT_LIMIT: u16 = 10_000;

/// Why a sandbox could not be made, or does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("cannot make the namespaces (clone3)")]
    Namespaces(#[source] io::Error),
    #[error("process {pid} runs in a container: its {what} is another than that of this host")]
    Container { pid: HostPid, what: &'static str },
    #[error("cannot enter the namespaces of process {pid}")]
    Enter { pid: HostPid, source: io::Error },
    #[error("cannot set the clocks of the new time namespace")]
    Clocks(#[source] io::Error),
    #[error("cannot open the control group to start in")]
    Group(#[source] io::Error),
    #[error("cannot make init's control socket")]
    Socket(#[source] io::Error),
    #[error("init cannot {step}")]
    Init { step: Step, source: io::Error },
    #[error("cannot {step}")]
    Child { step: Step, source: io::Error },
    #[error("the control socket of init (pid {init}) failed")]
    Control { init: HostPid, source: io::Error },
    #[error("init (pid {init}) is gone")]
    Gone { init: HostPid },
    #[error("init (pid {init}) answered {answer} out of turn")]
    OutOfTurn { init: HostPid, answer: String },
}

/// What the monotonic and boot-time clocks of a new time namespace show beyond the host's, in
/// nanoseconds. See time_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffsets {
    pub monotonic_ns: i64,
    pub boottime_ns: i64,
}

impl ClockOffsets {
    /// The lines of `/proc/PID/timens_offsets`.
    fn to_lines(self) -> String {
        let line = |clock: &str, ns: i64| {
            format!(
                "{clock} {} {}\n",
                ns.div_euclid(1_000_000_000),
                ns.rem_euclid(1_000_000_000)
            )
        };
        line("monotonic", self.monotonic_ns) + &line("boottime", self.boottime_ns)
    }
}

/// The descriptors that init gets besides its control socket.
pub struct Descriptors<'a> {
    pub images: BorrowedFd<'a>,
    pub work: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    /// Where the exit status is written; its lock is held as long as init lives.
    pub instance: BorrowedFd<'a>,
    /// Listening sockets that are handed over to the server, as many as the plan says.
    pub handed: Vec<BorrowedFd<'a>>,
}

/// Pid and mount namespaces with an init, under supervision.
pub struct Sandbox {
    init: HostPid,
    pidfd: OwnedFd,
    control: AsyncFd<OwnedFd>,
    exited: Option<i32>,
    criu_exited: Option<i32>,
    is_bound: bool,
    /// The memory that processes share is there.
    has_shared: bool,
    detached: bool,
    /// Init sees to it that what it visits goes on, and ends by itself.
    visits: bool,
}

impl Sandbox {
    /// Makes the namespaces, or enters those of a process that runs already, and waits until init
    /// has set itself up there.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn create(plan: &Plan, descriptors: &Descriptors<'_>) -> Result<Self, SpawnError> {
        let fresh = match &plan.place {
            Place::New(fresh) => fresh,
            Place::Of(visit) => {
                let born = visit.namespaces.of_children();
                let _born = born.map_err(SpawnError::Namespaces)?;
                return Self::start_init(plan, descriptors, sys::ForkOptions::default()).await;
            }
        };
        let _clocks = match fresh.clocks {
            None => None,
            Some(offsets) => {
                let own = namespaces::Clocks::of_children().map_err(SpawnError::Clocks)?;
                fs::write("/proc/self/timens_offsets", offsets.to_lines())
                    .map_err(SpawnError::Clocks)?;
                Some(own)
            }
        };
        let group = fresh.group.as_ref().map(Group::born_in);
        let group = group.transpose().map_err(SpawnError::Group)?.flatten();
        let options = sys::ForkOptions {
            new_pid_namespace: true,
            new_mount_namespace: true,
            new_network_namespace: fresh.network,
            cgroup: group.as_ref().map(AsFd::as_fd),
        };
        Self::start_init(plan, descriptors, options).await
    }

    async fn start_init(
        plan: &Plan,
        descriptors: &Descriptors<'_>,
        options: sys::ForkOptions<'_>,
    ) -> Result<Self, SpawnError> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| SpawnError::Socket(errno.into()))?;
        let Descriptors {
            images,
            work,
            stdout,
            stderr,
            instance,
            handed,
        } = descriptors;
        let fixed = [theirs.as_fd(), *images, *work, *stdout, *stderr, *instance];
        let order: Vec<_> = fixed.iter().chain(handed).map(AsRawFd::as_raw_fd).collect();
        let (pid, pidfd) = match sys::fork(options).map_err(SpawnError::Namespaces)? {
            sys::Fork::Child => init::run(plan, &order),
            sys::Fork::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop(theirs);
        rustix::io::ioctl_fionbio(&ours, true).map_err(|errno| SpawnError::Socket(errno.into()))?;
        let mut sandbox = Self {
            init: HostPid(pid),
            pidfd,
            control: sys::readable(ours).map_err(SpawnError::Socket)?,
            exited: None,
            criu_exited: None,
            is_bound: false,
            has_shared: plan.shared.is_empty(),
            detached: false,
            visits: matches!(plan.place, Place::Of(_)),
        };
        match sandbox.reply().await? {
            (Notice::Ready, _) => Ok(sandbox),
            (other, _) => Err(sandbox.out_of_turn(other)),
        }
    }

    /// The pid of init as the supervisor sees it.
    pub fn init(&self) -> HostPid {
        self.init
    }

    /// Forks the plan's command, suspended before its exec.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn start(&mut self) -> Result<NsPid, SpawnError> {
        match self.ask(Order::Start).await? {
            (Notice::Started { pid }, _) => Ok(NsPid(pid as i32)),
            (other, _) => Err(self.out_of_turn(other)),
        }
    }

    /// Lets the suspended command exec, and waits until it has.
    ///
    /// # Errors
    /// [`SpawnError::Init`] with the step that failed.
    pub async fn go(&mut self) -> Result<(), SpawnError> {
        match self.ask(Order::Go).await? {
            (Notice::Running, _) => Ok(()),
            (other, _) => Err(self.out_of_turn(other)),
        }
    }

    /// Starts CRIU, as another user and group if given; returns its socket.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn start_criu(&mut self, user: Option<(u32, u32)>) -> Result<OwnedFd, SpawnError> {
        self.criu_exited = None;
        let (uid, gid) = user.unwrap_or((0, 0));
        match self.ask(Order::Criu { uid, gid }).await? {
            (Notice::Criu { .. }, Some(socket)) => Ok(socket),
            (other, _) => Err(self.out_of_turn(other)),
        }
    }

    /// Waits until CRIU has exited, and returns its wait status.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn criu_exit(&mut self) -> Result<i32, SpawnError> {
        loop {
            if let Some(status) = self.criu_exited {
                return Ok(status);
            }
            self.receive().await?;
        }
    }

    /// Declares the process whose exit ends the sandbox.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn set_main(&mut self, pid: NsPid) -> Result<(), SpawnError> {
        self.command(Order::Main { pid: pid.0 as u32 }).await
    }

    /// Sends a signal to the main process.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn signal(&mut self, number: i32) -> Result<(), SpawnError> {
        self.command(Order::Signal {
            number: number as u32,
        })
        .await
    }

    /// Lets the sandbox live on without a supervisor.
    ///
    /// # Errors
    /// See [`SpawnError`]: init has ended then, or is about to.
    pub async fn detach(&mut self) -> Result<(), SpawnError> {
        let told = self.command(Order::Detach).await;
        self.detached = told.is_ok();
        if told.is_err() {
            // It may not know, and would wait for orders that nobody gives.
            let kill = rustix::process::Signal::KILL;
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, kill);
        }
        told
    }

    /// Waits until nothing runs any more, and returns the wait status of the main process.
    ///
    /// # Errors
    /// [`SpawnError::Gone`] if init itself was killed.
    pub async fn exit(&mut self) -> Result<i32, SpawnError> {
        loop {
            if let Some(status) = self.exited {
                return Ok(status);
            }
            self.receive().await?;
        }
    }

    /// Waits until the command listens where the plan has it listen instead. Returns whether it does: it
    /// may have ended before.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn bound(&mut self) -> Result<bool, SpawnError> {
        while !self.is_bound && self.exited.is_none() {
            self.receive().await?;
        }
        Ok(self.is_bound)
    }

    /// Waits until the memory is there that processes are to share.
    ///
    /// # Errors
    /// See [`SpawnError`].
    pub async fn shared_memory(&mut self) -> Result<(), SpawnError> {
        while !self.has_shared {
            self.receive().await?;
        }
        Ok(())
    }

    async fn command(&mut self, order: Order) -> Result<(), SpawnError> {
        match self.ask(order).await? {
            (Notice::Done, _) => Ok(()),
            (other, _) => Err(self.out_of_turn(other)),
        }
    }

    async fn ask(&mut self, order: Order) -> Result<(Notice, Option<OwnedFd>), SpawnError> {
        let init = self.init;
        send_order(self.control.get_ref().as_fd(), order)
            .map_err(|source| SpawnError::Control { init, source })?;
        self.reply().await
    }

    /// The next notice that is an answer; what init tells unasked is kept for those who wait.
    async fn reply(&mut self) -> Result<(Notice, Option<OwnedFd>), SpawnError> {
        loop {
            if let Some(answer) = self.receive().await? {
                return Ok(answer);
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<(Notice, Option<OwnedFd>)>, SpawnError> {
        let init = self.init;
        let received = self
            .control
            .async_io(Interest::READABLE, |socket| receive_notice(socket.as_fd()))
            .await
            .map_err(|source| SpawnError::Control { init, source })?;
        match received {
            None => Err(SpawnError::Gone { init }),
            Some((Notice::Exited { status }, _)) => {
                self.exited = Some(status as i32);
                Ok(None)
            }
            Some((Notice::CriuExited { status }, _)) => {
                self.criu_exited = Some(status as i32);
                Ok(None)
            }
            Some((Notice::Shared, _)) => {
                self.has_shared = true;
                Ok(None)
            }
            Some((Notice::Bound { .. }, _)) => {
                self.is_bound = true;
                Ok(None)
            }
            Some((Notice::Failed { step, errno }, _)) => Err(SpawnError::Init {
                step,
                source: io::Error::from_raw_os_error(errno as i32),
            }),
            Some(answer) => Ok(Some(answer)),
        }
    }

    fn out_of_turn(&self, answer: Notice) -> SpawnError {
        SpawnError::OutOfTurn {
            init: self.init,
            answer: format!("{answer:?}"),
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        if self.visits {
            let _ = rustix::net::shutdown(self.control.get_ref(), rustix::net::Shutdown::Both);
            let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            let outcome = std::iter::repeat_with(|| poll(&mut ended, VISIT_LIMIT));
            let mut outcome = outcome.skip_while(|polled| *polled == Err(nix::Error::EINTR));
            if outcome.next() != Some(Ok(1)) {
                tracing::warn!("CRIU has not ended; the tree goes on when it has");
                return;
            }
        } else {
            let kill = rustix::process::Signal::KILL;
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, kill);
        }
        let pid = nix::unistd::Pid::from_raw(self.init.0);
        while nix::sys::wait::waitpid(pid, None) == Err(nix::Error::EINTR) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_offsets_are_written_with_positive_nanoseconds() {
        let offsets = ClockOffsets {
            monotonic_ns: -1_500_000_000,
            boottime_ns: 2_000_000_001,
        };
        assert_eq!(offsets.to_lines(), "monotonic -2 500000000\nboottime 2 1\n");
    }
}
