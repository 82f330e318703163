//! The system calls that no library wraps safely: the only module with `unsafe` code.
//!
//! Everything here is a thin function over one system call. What is done with them is decided
//! elsewhere.
#![expect(unsafe_code, reason = "this is the one place for it")]

pub mod bpf;
pub mod perf;
pub mod ptrace;
pub mod seccomp;

use std::{
    ffi::{CString, c_int},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::io::{Interest, unix::AsyncFd};

/// `struct clone_args` of clone3(2).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which side of a [`fork`] this is.
pub enum Fork {
    Child,
    /// The child's pid in the caller's pid namespace, and a pidfd of it.
    Parent {
        pid: i32,
        pidfd: OwnedFd,
    },
}

/// What a [`fork`] makes for its child.
#[derive(Clone, Copy, Default)]
pub struct ForkOptions<'a> {
    pub new_pid_namespace: bool,
    pub new_mount_namespace: bool,
    pub new_network_namespace: bool,
    /// The folder of the control group (v2) to be born in, instead of the parent's.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Forks with clone3(2), into new namespaces or another control group if asked.
///
/// # Errors
/// What clone3(2) says: `EPERM` without the capabilities. `EBUSY` if the process has several threads: their locks would stay taken for ever in the child.
pub fn fork(options: ForkOptions<'_>) -> io::Result<Fork> {
    /// Of linux/sched.h; beyond the 32 bits of the constants in libc.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut flags = libc::CLONE_PIDFD as u64;
    if options.new_pid_namespace {
        flags |= libc::CLONE_NEWPID as u64;
    }
    if options.new_mount_namespace {
        flags |= libc::CLONE_NEWNS as u64;
    }
    if options.new_network_namespace {
        flags |= libc::CLONE_NEWNET as u64;
    }
    if options.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let mut pidfd: c_int = -1;
    let mut args = CloneArgs {
        flags,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: options.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of everything, and as
    // the only thread is the one that calls, no lock is held by another. `args` and what it
    // points to outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent {
            pid: pid as i32,
            // SAFETY: the kernel has just put a new descriptor there, which nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Gives the kernel back what is free of the heap. To fork takes the longer the more memory there is.
pub fn give_back_memory() {
    // Elsewhere, much of it is given back when it is freed.
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but what malloc(3) has as free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Leaves the process at once, without destructors or `atexit` handlers: for forked children,
/// which hold copies of guards that belong to their parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: always sound; it does not return.
    unsafe { libc::_exit(code) }
}

/// Moves descriptors to the numbers 3, 4, … in the order given and closes every other above
/// stderr. They are closed by a later exec.
///
/// # Errors
/// What fcntl(2), dup3(2) and close_range(2) say.
pub fn keep_only(descriptors: &[RawFd]) -> io::Result<()> {
    const FIRST: RawFd = 3;
    let end = FIRST + descriptors.len() as RawFd;
    // Out of the way first, so that no target number is still in use as a source.
    let mut moved = Vec::with_capacity(descriptors.len());
    for &fd in descriptors {
        // SAFETY: takes numbers only; a bad one is an error.
        moved.push(check(unsafe {
            libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, end)
        })?);
    }
    for (from, to) in moved.into_iter().zip(FIRST..) {
        // SAFETY: as above. What was open at `to` belongs to the parent's copy of its guards.
        check(unsafe { libc::dup3(from, to, libc::O_CLOEXEC) })?;
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_close_range, end, u32::MAX, 0) as c_int })?;
    Ok(())
}

/// Gives a descriptor this number, until the next exec.
///
/// # Errors
/// What dup3(2) says.
pub fn keep_as(descriptor: OwnedFd, number: RawFd) -> io::Result<()> {
    let from = std::os::fd::IntoRawFd::into_raw_fd(descriptor);
    if from == number {
        return Ok(());
    }
    // SAFETY: takes numbers only. Used by init, where nothing owns `number`.
    check(unsafe { libc::dup3(from, number, libc::O_CLOEXEC) })?;
    // SAFETY: as above; it was owned by the caller.
    check(unsafe { libc::close(from) }).map(drop)
}

/// Makes `to` a copy of `from` that survives an exec.
///
/// # Errors
/// What dup2(2) says.
pub fn place(from: RawFd, to: RawFd) -> io::Result<()> {
    if from == to {
        return inherit(to);
    }
    // SAFETY: takes numbers only. Used between fork and exec, where nothing owns `to`.
    check(unsafe { libc::dup2(from, to) }).map(drop)
}

/// Lets a descriptor survive an exec.
///
/// # Errors
/// What fcntl(2) says.
pub fn inherit(fd: RawFd) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop)
}

/// Borrows a descriptor number that is known to stay open for the life of the process.
pub fn permanent(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: used by init, for the numbers that `keep_only` placed and nobody closes, by the proxy for
    // the one that it was started with, and by the gateway at its start for those that were passed to it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Owns a listening socket with whose number this process was started.
pub fn own_listener(fd: RawFd) -> OwnedFd {
    // SAFETY: of what was made since the start, nothing that listens is owned by anybody yet: it is
    // looked for once, before any socket is bound.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Restores the default action of the signals that Rust programs ignore, and unblocks all.
pub fn reset_signals() {
    // SAFETY: SIG_DFL installs no handler; an empty mask is valid.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Replaces the program; returns only on failure.
pub fn exec(program: &CString, arguments: &[CString], environment: &[CString]) -> io::Error {
    match nix::unistd::execve(program, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => io::Error::from(errno),
    }
}

/// Opens a new time namespace for the children to come; its offsets can be set until the first.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `EINVAL` where the kernel has no time namespaces.
pub fn unshare_time() -> io::Result<()> {
    const CLONE_NEWTIME: c_int = 0x80;
    // SAFETY: concerns children only, no memory or descriptor of this process.
    check(unsafe { libc::unshare(CLONE_NEWTIME) }).map(drop)
}

/// Lets this thread run as soon as it can, before all ordinary ones; see sched(7). Its children
/// are ordinary again.
///
/// # Errors
/// `EPERM` without CAP_SYS_NICE.
pub fn run_first() -> io::Result<()> {
    // SAFETY: an all-zero structure is valid; with the lowest of the priorities set, it is
    // complete.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = 1;
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: `parameters` outlives the call, which reads it only; 0 is this thread.
    check(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) }).map(drop)
}

/// Has the command killed if this process is.
pub fn die_with_parent(command: &mut tokio::process::Command) {
    // SAFETY: prctl(2) is all that runs between fork and exec, and allocates nothing.
    unsafe {
        command.pre_exec(|| check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)).map(drop));
    }
}

/// Gives the command this limit of open files, if it can be set.
pub fn limit_files(command: &mut tokio::process::Command, limit: Rlimit) {
    // SAFETY: setrlimit(2) is all that runs between fork and exec, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            let _ = setrlimit(Resource::Nofile, limit);
            Ok(())
        });
    }
}

/// Whether two tasks have the same memory, as threads have, and a child in vfork(2) with its
/// parent. False if one of them is gone.
pub fn share_memory(first: i32, second: i32) -> bool {
    /// `KCMP_VM` of linux/kcmp.h.
    const KCMP_VM: c_int = 1;
    // SAFETY: takes numbers only; a bad one is an error.
    unsafe { libc::syscall(libc::SYS_kcmp, first, second, KCMP_VM, 0, 0) == 0 }
}

/// Sends a signal to a thread.
///
/// # Errors
/// What tgkill(2) says: `ESRCH` if it is gone.
pub fn signal_thread(process: i32, tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers only; a bad one is an error.
    check(unsafe { libc::syscall(libc::SYS_tgkill, process, tid, signal) as c_int }).map(drop)
}

/// The first page of a file in memory, as long as this lives.
pub struct Page(*mut libc::c_void);

impl Page {
    /// Maps it, privately.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE);
        let fd = file.as_raw_fd();
        // SAFETY: at an address of the kernel's choice; nobody reads or writes it.
        let page = unsafe { libc::mmap(ptr::null_mut(), 1, protection, flags, fd, 0) };
        match page {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            page => Ok(Self(page)),
        }
    }

    pub fn address(&self) -> u64 {
        self.0.addr() as u64
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `map`, and there are no references into it.
        let _ = unsafe { libc::munmap(self.0, 1) };
    }
}

/// One mapping of a process, as `PROCMAP_QUERY` of linux/fs.h tells of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MapQuery {
    pub size: u64,
    pub query_flags: u64,
    pub query_addr: u64,
    pub vma_start: u64,
    pub vma_end: u64,
    pub vma_flags: u64,
    pub vma_page_size: u64,
    pub vma_offset: u64,
    pub inode: u64,
    pub dev_major: u32,
    pub dev_minor: u32,
    pub vma_name_size: u32,
    pub build_id_size: u32,
    pub vma_name_addr: u64,
    pub build_id_addr: u64,
}

/// Looks up a mapping in an open `/proc/PID/maps`; see ioctl_procmap_query(2). The size is filled
/// in; names and build ids are not asked for.
///
/// # Errors
/// `ENOENT` if there is none, `ENOTTY` if the kernel cannot (before Linux 6.11).
pub fn query_map(maps: BorrowedFd<'_>, mut query: MapQuery) -> io::Result<MapQuery> {
    const PROCMAP_QUERY: libc::Ioctl =
        (3 << 30 | (size_of::<MapQuery>() as u32) << 16 | (b'f' as u32) << 8 | 17) as libc::Ioctl;
    query.size = size_of::<MapQuery>() as u64;
    (query.vma_name_size, query.build_id_size) = (0, 0);
    // SAFETY: `query` is of the size in the request, has buffers of no length, and outlives the call.
    check(unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut query) })?;
    Ok(query)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Waits for a descriptor to become readable, within the asynchronous runtime.
///
/// # Errors
/// What epoll_ctl(2) says.
pub fn readable<T: OwnsDescriptor>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: by the trait's contract the descriptor stays open and the same as long as `owner`
    // lives, and the result owns it.
    unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) }.map_err(io::Error::from)
}

/// A type whose `as_raw_fd` is of a descriptor that it owns and never changes.
pub trait OwnsDescriptor: AsRawFd {}

impl OwnsDescriptor for OwnedFd {}
impl OwnsDescriptor for aya::maps::RingBuf<aya::maps::MapData> {}
impl OwnsDescriptor for aya_log::EbpfLogger<&'static dyn log::Log> {}

/// A value of an eBPF map, as the probe has it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Shared<T>(pub T);

// SAFETY: the same bytes as of a type that any bytes are a value of.
unsafe impl<T: bytemuck::Pod> aya::Pod for Shared<T> {}
