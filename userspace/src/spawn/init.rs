//! Pid 1 of every capture and every instance: a fork of the supervisor, in namespaces of its own. For a
//! checkpoint, a second one in the namespaces of a tree that runs already, which only starts CRIU.
//!
//! It reaps what is orphaned, starts the command and CRIU as its children (CRIU makes the
//! restored root a sibling of itself, so init is the parent of that too), forwards signals, and
//! reports the exit status. It ends when its main process ends, and the kernel then ends
//! everything left in the namespace.
//!
//! Invariant: single-threaded, and never returns into the supervisor's code.

mod command;
mod criu;
mod shared;

use std::{
    ffi::CString,
    fs,
    io::{self, Write as _},
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    ClockOffsets,
    bind::{Binder, Bound},
    command::Command,
    exec,
    namespaces::Visit,
    protocol::{Notice, Order, Step, receive_order, send_notice},
};
use crate::{
    cgroup::Group,
    edit::Shared,
    guard::{Guard, GuardError, Guarded},
    sys, tree,
};

/// Where init keeps its descriptors; CRIU finds the folders as `/proc/PID/fd/N` of it.
pub const CONTROL: RawFd = 3;
/// The folder of CRIU's images.
pub const IMAGES: RawFd = 4;
/// The folder for CRIU's log and statistics, and for what is of use only while init lives.
pub const WORK: RawFd = 5;
/// What becomes the standard output of the server.
pub const STDOUT: RawFd = 6;
/// What becomes the standard error of the server.
pub const STDERR: RawFd = 7;
/// The folder of the instance, whose lock is held by keeping this open.
pub const INSTANCE: RawFd = 8;
/// The first of the listening sockets that are handed over to the server, and after them the first of
/// the files that memory is mapped from.
pub const HANDED: RawFd = 9;

/// Where pseudoterminals are: /dev/ptmx, wherever it is opened, makes its own beside it.
const TERMINALS: &str = "/dev/pts";

/// How long a CRIU whose answer nobody waits for may take to its end.
const CRIU_LIMIT: Duration = Duration::from_secs(120);

/// The name of the file in [`WORK`] with what the guard of its memory has done.
pub const GUARD_FILE: &str = "guard.json";

/// The name of the file in the instance's folder that receives the wait status.
pub const EXIT_FILE: &str = "exit";

/// All that init needs to know; it gets it by being forked.
pub struct Plan {
    /// The command to start; none when an image is restored.
    pub command: Option<Command>,
    /// CRIU's executable.
    pub criu: CString,
    /// Folder of CRIU's kernel data cache. `kerndat_is_new`: mount a tmpfs there, the only file
    /// system CRIU writes it to.
    pub kerndat: PathBuf,
    pub kerndat_is_new: bool,
    /// How many listening sockets are handed over to the server.
    pub handed: usize,
    /// Where the command is to listen instead of where it asks to.
    pub bound: Vec<Bound>,
    /// What memory is mapped, and so guarded.
    pub guarded: Option<Guarded>,
    /// The memory that processes are to share, each with the file that has its pages.
    pub shared: Vec<(PathBuf, Shared)>,
    pub place: Place,
}

impl Plan {
    /// The numbers that the listening sockets have in init.
    pub fn handed(&self) -> Range<RawFd> {
        HANDED..HANDED + self.handed as RawFd
    }

    /// The numbers that the files have there that memory is mapped from.
    pub fn memory(&self) -> Range<RawFd> {
        let files = self
            .guarded
            .as_ref()
            .map_or(0, |guarded| guarded.files.len());
        let first = self.handed().end;
        first..first + files as RawFd
    }

    /// The numbers that the files have there with the memory that processes share.
    pub fn shared(&self) -> Range<RawFd> {
        let first = self.memory().end;
        first..first + self.shared.len() as RawFd
    }
}

/// Where init works.
pub enum Place {
    /// In new namespaces of pids and mounts.
    New(Fresh),
    /// In the namespaces of a process that runs already.
    Of(Visit),
}

/// What else is new.
#[derive(Default)]
pub struct Fresh {
    /// A time namespace whose clocks go on from here.
    pub clocks: Option<ClockOffsets>,
    /// The control group to be in, if not the caller's.
    pub group: Option<Group>,
    /// A network namespace, which nothing is connected to yet.
    pub network: bool,
    /// Terminals, for a server that has some or may open some: they get numbers of its own, which
    /// are free at each restore.
    pub terminals: bool,
}

struct Init<'a> {
    plan: &'a Plan,
    control: BorrowedFd<'static>,
    /// The main process and, once it ended, its wait status.
    main: Option<Pid>,
    main_status: Option<i32>,
    /// Children that ended, with their wait statuses, before it was known which is the main one.
    early: Vec<(Pid, i32)>,
    /// Its exit ends the instance even if others still run.
    main_decides: bool,
    criu: Option<Pid>,
    /// The command between its fork and its exec: the pipe with the word to go, and what tells
    /// of a failure.
    suspended: Option<(OwnedFd, exec::Failure)>,
    supervised: bool,
    binder: Option<Binder<'a>>,
    /// With the file that shows what it has done, which stays open: on some file systems a file
    /// that is written anew goes to the disk at once.
    guard: Option<(Guard, fs::File)>,
}

/// Runs init. `descriptors` are, in order, those of the constants above from [`CONTROL`] on.
pub fn run(plan: &Plan, descriptors: &[RawFd]) -> ! {
    let code = std::panic::catch_unwind(|| start(plan, descriptors)).unwrap_or(70);
    sys::exit_now(code)
}

fn start(plan: &Plan, descriptors: &[RawFd]) -> i32 {
    let _ = rustix::thread::set_name(c"warmimg-init");
    // Away from the caller's terminal, and a session that a restored daemon can be put into.
    let _ = nix::unistd::setsid();
    // Before the descriptors of the namespaces are closed with all others.
    let entered = match &plan.place {
        Place::New(_) => Ok(()),
        Place::Of(visit) => visit.namespaces.enter(),
    };
    if sys::keep_only(descriptors).is_err() || quiet_stdio().is_err() {
        return 70;
    }
    let mut init = Init {
        plan,
        control: sys::permanent(CONTROL),
        main: None,
        main_status: None,
        early: vec![],
        main_decides: false,
        criu: None,
        suspended: None,
        supervised: true,
        binder: None,
        guard: None,
    };
    if matches!(plan.place, Place::New(_)) {
        // If the supervisor is killed, so is init, and with it the namespace.
        let death = Some(rustix::process::Signal::KILL);
        let _ = rustix::process::set_parent_process_death_signal(death);
    }
    let prepared = match (&plan.place, entered) {
        (Place::New(fresh), _) => enter_group(fresh)
            .and_then(|()| init.set_up_mounts(fresh))
            .and_then(|()| init.open_memory())
            .and_then(|()| init.make_shared()),
        (Place::Of(_), entered) => entered.map_err(|error| Notice::Failed {
            step: Step::Enter,
            errno: errno_of(&error),
        }),
    };
    match prepared {
        Ok(()) => init.tell(Notice::Ready),
        Err(failure) => {
            init.tell(failure);
            return 70;
        }
    }
    init.serve()
}

/// An instance outlives its caller: it must not hold the caller's terminal or pipes.
fn quiet_stdio() -> io::Result<()> {
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    for fd in 0..3 {
        sys::place(null.as_raw_fd(), fd)?;
    }
    Ok(())
}

fn failed(step: Step) -> impl Fn(nix::Error) -> Notice {
    move |errno| Notice::Failed {
        step,
        errno: errno as u32,
    }
}

fn errno_of(error: &io::Error) -> u32 {
    error.raw_os_error().unwrap_or(libc::EIO) as u32
}

fn enter_group(fresh: &Fresh) -> Result<(), Notice> {
    let entered = fresh.group.as_ref().map_or(Ok(()), Group::enter);
    entered.map_err(|error| Notice::Failed {
        step: Step::Group,
        errno: errno_of(&error),
    })
}

impl Init<'_> {
    fn set_up_mounts(&self, fresh: &Fresh) -> Result<(), Notice> {
        // Mounts of the host still arrive here; ours never get there.
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
            .map_err(failed(Step::Mounts))?;
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "/proc", Some("proc"), safe, none).map_err(failed(Step::Proc))?;
        if fresh.terminals && Path::new(TERMINALS).exists() {
            let options = Some("newinstance,ptmxmode=0666");
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
            mount(Some("devpts"), TERMINALS, Some("devpts"), flags, options)
                .map_err(failed(Step::Terminals))?;
        }
        if self.plan.kerndat_is_new {
            mount(
                Some("tmpfs"),
                &self.plan.kerndat,
                Some("tmpfs"),
                safe,
                Some("mode=0777,size=1m"),
            )
            .map_err(failed(Step::Kerndat))?;
        }
        Ok(())
    }

    /// Opens the files that memory is mapped from, in the mounts that the server sees: CRIU looks
    /// for them there if it dumps the server again.
    fn open_memory(&self) -> Result<(), Notice> {
        let files = self.plan.guarded.iter().flat_map(|guarded| &guarded.files);
        for (path, number) in files.zip(self.plan.memory()) {
            fs::File::open(path)
                .and_then(|file| sys::keep_as(file.into(), number))
                .map_err(|error| Notice::Failed {
                    step: Step::Memory,
                    errno: errno_of(&error),
                })?;
        }
        Ok(())
    }

    fn tell(&self, notice: Notice) {
        self.tell_with(notice, None);
    }

    fn tell_with(&self, notice: Notice, descriptor: Option<BorrowedFd<'_>>) {
        if self.supervised {
            // If the supervisor is gone, the death signal or the closed socket says so.
            let _ = send_notice(self.control, notice, descriptor);
        }
    }

    /// Serves orders and children until the instance ends; returns the exit code.
    fn serve(&mut self) -> i32 {
        let mut mask = SigSet::all();
        mask.remove(Signal::SIGKILL);
        let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&mask), None);
        let Ok(signals) =
            SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        else {
            return 70;
        };
        loop {
            let watch = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
            let signalled = signals.as_fd();
            let guarded = self.guard.as_ref().map(|(guard, _)| guard.listener());
            let interrupted = self.guard.as_ref().map(|(guard, _)| guard.interruptions());
            let ordered = self.supervised.then_some(self.control);
            let bound = self.binder.as_ref().map(Binder::listener);
            let watched = [Some(signalled), guarded, interrupted, ordered, bound];
            let mut ready: Vec<PollFd> = watched.into_iter().flatten().map(watch).collect();
            if let Err(errno) = poll(&mut ready, PollTimeout::NONE)
                && errno != nix::Error::EINTR
            {
                return 70;
            }
            let is_ready = |fd: Option<BorrowedFd<'_>>| {
                let number = fd.map(|fd| fd.as_raw_fd());
                let mut ready = ready.iter();
                ready.any(|poll| {
                    Some(poll.as_fd().as_raw_fd()) == number && poll.any() == Some(true)
                })
            };
            // Nobody is left whose calls are to be looked at.
            let is_over = |fd: Option<BorrowedFd<'_>>| {
                let number = fd.map(|fd| fd.as_raw_fd());
                let mut ready = ready.iter();
                ready.any(|poll| {
                    Some(poll.as_fd().as_raw_fd()) == number
                        && poll.revents() == Some(PollFlags::POLLHUP)
                })
            };
            let (is_unguarded, is_unbound) = (is_over(guarded), is_over(bound));
            let has_signal = is_ready(Some(signalled));
            let has_order = is_ready(ordered);
            let has_call = is_ready(guarded);
            let has_bind = is_ready(bound);
            let has_interruption = is_ready(interrupted);
            for (is_there, serve) in [
                (
                    has_interruption,
                    Guard::serve_interruptions as fn(&mut _) -> _,
                ),
                (has_call, Guard::serve),
            ] {
                if is_there && let Err(error) = self.serve_guard(serve) {
                    return self.give_up(&error);
                }
            }
            if is_unguarded {
                self.guard = None;
            }
            if has_bind && !is_unbound {
                self.serve_binder();
            }
            if is_unbound {
                self.binder = None;
            }
            if has_signal {
                while let Ok(Some(info)) = signals.read_signal() {
                    self.forward(info.ssi_signo);
                }
            }
            if let Some(status) = self.reap() {
                return self.finish(status);
            }
            if has_order {
                match receive_order(self.control) {
                    Ok(Some(order)) => {
                        self.obey(order);
                        // What it was about may have ended already.
                        if let Some(status) = self.reap() {
                            return self.finish(status);
                        }
                    }
                    // Without its supervisor, an instance that was not detached must not stay.
                    Ok(None) | Err(_) => {
                        self.end_visit();
                        return 70;
                    }
                }
            }
        }
    }

    fn serve_guard(
        &mut self,
        serve: fn(&mut Guard) -> Result<(), GuardError>,
    ) -> Result<(), GuardError> {
        let Some((guard, guard_file)) = &mut self.guard else {
            return Ok(());
        };
        serve(guard)?;
        // Only to be shown.
        let _ = guard.counters().write(guard_file);
        Ok(())
    }

    /// Ends an instance whose memory is no longer guarded: the kernel kills all of it with init.
    fn give_up(&self, error: &GuardError) -> i32 {
        let text = format!(
            "warmimg: the memory of the server can no longer be guarded, so it is killed: {}\n",
            crate::doctor::chain(error)
        );
        // The log of the instance, or what its supervisor passes on.
        let _ = rustix::io::write(sys::permanent(STDERR), text.as_bytes());
        self.finish(libc::SIGKILL)
    }

    /// Lets CRIU come to its end, and then the tree go on: at its end CRIU stops again what was
    /// stopped before. If it were killed, a process of the tree could die with it (SIGTRAP), as long
    /// as CRIU has it execute system calls.
    fn end_visit(&self) {
        let Place::Of(Visit { top, .. }) = &self.plan.place else {
            return;
        };
        let deadline = Instant::now() + CRIU_LIMIT;
        while let Some(criu) = self.criu
            && waitpid(criu, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL))
                == Ok(WaitStatus::StillAlive)
        {
            if Instant::now() > deadline {
                let _ = kill(criu, Signal::SIGKILL);
            }
            let _ = poll(&mut [], 5_u8);
        }
        for pid in top.pids() {
            tree::signal(pid, rustix::process::Signal::CONT);
        }
    }

    fn obey(&mut self, order: Order) {
        let notice = match order {
            Order::Start => self.start_command(),
            Order::Go => self.go(),
            Order::Criu { uid, gid } => match self.start_criu(uid, gid) {
                Ok((pid, socket)) => {
                    self.tell_with(Notice::Criu { pid }, Some(socket.as_fd()));
                    drop(socket);
                    // Meanwhile CRIU gets ready.
                    if !self.plan.shared.is_empty() {
                        self.tell(self.fill_shared().err().unwrap_or(Notice::Shared));
                    }
                    return;
                }
                Err(notice) => notice,
            },
            Order::Main { pid } => {
                let pid = Pid::from_raw(pid as i32);
                let early = std::mem::take(&mut self.early);
                let ended = early.into_iter().find(|(ended, _)| *ended == pid);
                self.main = Some(pid);
                self.main_status = ended.map(|(_, status)| status);
                self.main_decides = true;
                Notice::Done
            }
            Order::Signal { number } => {
                self.forward(number);
                Notice::Done
            }
            Order::Detach => {
                let _ = rustix::process::set_parent_process_death_signal(None);
                self.tell(Notice::Done);
                self.supervised = false;
                return;
            }
        };
        self.tell(notice);
    }

    /// Forwards a signal that init got to the main process.
    fn forward(&self, number: u32) {
        if number != Signal::SIGCHLD as u32
            && let Some(main) = self.main
            && self.main_status.is_none()
        {
            let _ = send_signal(main, number);
        }
    }

    /// Collects ended children. Returns the wait status to end with, when it is time.
    fn reap(&mut self) -> Option<i32> {
        loop {
            // Raw statuses are what is passed on, so no stop or continue is asked for here.
            match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid, code << 8),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.ended(pid, signal as i32),
                Ok(WaitStatus::StillAlive) => {
                    return self.main_status.filter(|_| self.main_decides);
                }
                Ok(_) | Err(nix::Error::EINTR) => {}
                // No children left.
                Err(_) => return self.main_status,
            }
        }
    }

    fn ended(&mut self, pid: Pid, status: i32) {
        if Some(pid) == self.criu {
            self.criu = None;
            self.tell(Notice::CriuExited {
                status: status as u32,
            });
        } else if Some(pid) == self.main {
            self.main_status = Some(status);
        } else if self.main.is_none() {
            self.early.push((pid, status));
        }
    }

    fn finish(&self, status: i32) -> i32 {
        if let Ok(mut file) = open_file(INSTANCE, EXIT_FILE) {
            let _ = writeln!(file, "{status}");
        }
        self.tell(Notice::Exited {
            status: status as u32,
        });
        0
    }
}

/// Opens a new file in one of the folders.
fn open_file(folder: RawFd, name: &str) -> io::Result<fs::File> {
    let file = rustix::fs::openat(
        sys::permanent(folder),
        name,
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::from_raw_mode(0o600),
    )?;
    Ok(fs::File::from(file))
}

/// kill(2) with any signal number, real-time ones too.
fn send_signal(pid: Pid, number: u32) -> nix::Result<()> {
    match Signal::try_from(number as i32) {
        Ok(signal) => kill(pid, signal),
        Err(_) => Err(nix::Error::EINVAL),
    }
}
