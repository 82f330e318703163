//! One program per thing that is watched.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_loop, bpf_send_signal_thread},
    },
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, RingBuf},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::{debug, error};
use probe_ebpf::{
    Event, FLAG_STOPPED, KIND_ACCEPT, KIND_BIND, KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_FORKING,
    KIND_LISTEN, KIND_WAIT, MAX_PROCESSES, SOCKETS_PER_EPOLL, STOP_AT_ACCEPT, STOP_AT_FORK,
    STOP_AT_LISTEN, STOP_AT_READY, STOP_NEVER, TEXT_LEN,
};

use crate::kernel::{
    AF_INET, AF_INET6, AF_UNIX, Call, Registers, STATE_CLOSE, STATE_LISTEN, current_tgid,
    current_tid, describe_address, describe_exec, describe_sock, exit_status_if_last, family_of,
    file_of, is_bound_unix, is_listening, is_wanted, private_data, read_user, sock_of, state_of,
    tgid_of,
};

/// Where the tree is stopped: one of `STOP_*`. Set by user space before loading.
#[unsafe(no_mangle)]
static STOP_AT: u32 = STOP_NEVER;

/// The followed processes, by thread group id.
#[map]
static TREE: HashMap<u32, u32> = HashMap::with_max_entries(MAX_PROCESSES, 0);

/// Sockets that each epoll instance watches and that listen or may yet listen. Keyed by the
/// kernel's `eventpoll`, not by descriptor, so that fork, dup and passing it on change nothing.
#[map]
static EPOLLS: HashMap<u64, [u64; SOCKETS_PER_EPOLL]> = HashMap::with_max_entries(4096, 0);

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Whether a socket of the tree has listened.
#[map]
static LISTENED: Array<u32> = Array::with_max_entries(1, 0);

/// The process that was stopped: the first to reach the point, and no other.
#[map]
static STOPPED: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// Events and map entries that found no room; user space reports the count.
#[map]
static DROPPED: Array<u64> = Array::with_max_entries(1, 0);

const SIGSTOP: u32 = 19;

fn stop_at() -> u32 {
    // SAFETY: a valid, initialised static that user space sets before loading.
    unsafe { core::ptr::read_volatile(&raw const STOP_AT) }
}

pub fn in_tree(tgid: u32) -> bool {
    TREE.get_ptr(tgid).is_some()
}

fn count_drop() {
    if let Some(count) = DROPPED.get_ptr_mut(0) {
        // SAFETY: points into the map; a lost increment on a race still leaves it above zero.
        unsafe { *count += 1 };
    }
}

/// Records an event of the current task; `fill` adds what is special to it.
fn record(kind: u32, fill: impl FnOnce(&mut Event)) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count_drop();
        return;
    };
    // SAFETY: the reserved bytes are ours until submitted, and every field is written.
    let event = unsafe {
        let event = entry.as_mut_ptr();
        (*event).time_ns = bpf_ktime_get_ns();
        (*event).kind = kind;
        (*event).flags = 0;
        (*event).tgid = current_tgid();
        (*event).tid = current_tid();
        (*event).value = 0;
        (*event).fd = -1;
        (*event).family = 0;
        (*event).port = 0;
        (*event).text_len = 0;
        (*event).text = [0; TEXT_LEN];
        (*event).reserved = 0;
        &mut *event
    };
    fill(event);
    entry.submit(0);
}

/// Records that the current task reached a point that has to do with a socket, and stops it if
/// this is where to stop. The signal goes to this very thread, so that it is the one that
/// takes it, on its way back to user mode: nothing of its own code runs past this system call.
fn reach(ctx: &BtfTracePointContext, kind: u32, fd: i32, sock: u64, stop: bool) {
    let flags = if stop { stop_here(ctx, kind) } else { 0 };
    record(kind, |event| {
        event.flags = flags;
        event.fd = fd;
        describe_sock(sock, event);
    });
}

/// Stops the current thread if none has been; returns the flags of the event that tells of it.
fn stop_here(ctx: &BtfTracePointContext, kind: u32) -> u32 {
    const BPF_NOEXIST: u64 = 1;
    if STOPPED.insert(0, current_tgid(), BPF_NOEXIST).is_err() {
        return 0;
    }
    // SAFETY: a plain number; the helper is allowed in every program type used here.
    let result = unsafe { bpf_send_signal_thread(SIGSTOP) };
    if result != 0 {
        error!(ctx, "cannot stop thread {}: {}", current_tid(), result);
        let _ = STOPPED.remove(0);
        return 0;
    }
    debug!(ctx, "stopped thread {} at point {}", current_tid(), kind);
    FLAG_STOPPED
}

#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) -> i32 {
    let parent: *const u8 = ctx.arg(0);
    let child: *const u8 = ctx.arg(1);
    let (parent, child) = (tgid_of(parent as u64), tgid_of(child as u64));
    if parent == child || !in_tree(parent) {
        return 0;
    }
    if TREE.insert(child, 1, 0).is_err() {
        count_drop();
        error!(&ctx, "too many processes: {} is not followed", child);
    }
    record(KIND_FORK, |event| event.value = child);
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(ctx: BtfTracePointContext) -> i32 {
    if in_tree(current_tgid()) {
        let bprm: *const u8 = ctx.arg(2);
        record(KIND_EXEC, |event| describe_exec(bprm as u64, event));
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let tgid = current_tgid();
    if !in_tree(tgid) {
        return 0;
    }
    let task: *const u8 = ctx.arg(0);
    if let Some(status) = exit_status_if_last(task as u64) {
        let _ = TREE.remove(tgid);
        record(KIND_EXIT, |event| event.value = status);
    }
    0
}

/// Every TCP listener passes here, those of io_uring too, which makes no listen(2) call.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn tcp_state(ctx: BtfTracePointContext) -> i32 {
    let sock: *const u8 = ctx.arg(0);
    let new: i32 = ctx.arg(2);
    if new == i32::from(STATE_LISTEN) && in_tree(current_tgid()) {
        listens(&ctx, -1, sock as u64);
    }
    0
}

fn listens(ctx: &BtfTracePointContext, fd: i32, sock: u64) {
    let wanted = is_wanted(sock);
    if wanted && let Some(listened) = LISTENED.get_ptr_mut(0) {
        // SAFETY: points into the map, whose value is a plain number.
        unsafe { *listened = 1 };
    }
    reach(
        ctx,
        KIND_LISTEN,
        fd,
        sock,
        wanted && stop_at() == STOP_AT_LISTEN,
    );
}

/// Every system call of the machine passes here; those of no interest leave at once.
#[btf_tracepoint(function = "sys_enter")]
pub fn system_call(ctx: BtfTracePointContext) -> i32 {
    if let Some(call) = Call::of(ctx.arg(1))
        && in_tree(current_tgid())
    {
        see_call(&ctx, call);
    }
    0
}

/// A process of the tree makes a system call that may be about a socket; the program is one of `sys_enter`.
pub fn see_call(ctx: &BtfTracePointContext, call: Call) {
    let registers: *const u8 = ctx.arg(0);
    let registers = Registers(registers as u64);
    match call {
        Call::Bind => bind(ctx, registers),
        Call::Listen => listen(ctx, registers),
        Call::Fork => fork(ctx, 0),
        Call::Clone => fork(ctx, registers.argument(0)),
        // The flags are the first member of `struct clone_args`.
        Call::Clone3 => read_user(registers.argument(0)).and_then(|flags| fork(ctx, flags)),
        Call::Accept => accept(ctx, registers),
        Call::EpollCtl => epoll_ctl(registers),
        Call::EpollWait => epoll_wait(ctx, registers),
        Call::Poll => poll(ctx, registers),
        Call::Select => select(ctx, registers),
    };
}

/// Recorded as it is called; whether it succeeds shows when the socket listens.
fn bind(ctx: &BtfTracePointContext, registers: Registers) -> Option<()> {
    let fd = registers.argument(0) as i32;
    file_of(fd).and_then(sock_of)?;
    record(KIND_BIND, |event| {
        event.fd = fd;
        describe_address(registers.argument(1), registers.argument(2) as u32, event);
    });
    debug!(ctx, "thread {} binds descriptor {}", current_tid(), fd);
    Some(())
}

/// Listeners that are not TCP: those are seen as their state changes. A signal takes effect when
/// the call returns, so the socket listens by then; an unbound one will not.
fn listen(ctx: &BtfTracePointContext, registers: Registers) -> Option<()> {
    let fd = registers.argument(0) as i32;
    let sock = file_of(fd).and_then(sock_of)?;
    let family = family_of(sock);
    if family == AF_INET || family == AF_INET6 || (family == AF_UNIX && !is_bound_unix(sock)) {
        return None;
    }
    listens(ctx, fd, sock);
    Some(())
}

/// A fork with a signal pending is not carried out: it begins anew when the task goes on. So the
/// process is stopped, and restored, just before it.
fn fork(ctx: &BtfTracePointContext, flags: u64) -> Option<()> {
    /// Of clone(2): a thread, not a process.
    const CLONE_THREAD: u64 = 0x1_0000;
    if stop_at() != STOP_AT_FORK || flags & CLONE_THREAD != 0 {
        return None;
    }
    // SAFETY: points into the map, whose value is a plain number.
    if unsafe { *LISTENED.get_ptr(0)? } == 0 {
        return None;
    }
    let flags = stop_here(ctx, KIND_FORKING);
    record(KIND_FORKING, |event| event.flags = flags);
    Some(())
}

fn accept(ctx: &BtfTracePointContext, registers: Registers) -> Option<()> {
    let fd = registers.argument(0) as i32;
    let sock = file_of(fd).and_then(sock_of)?;
    if is_listening(sock) && is_wanted(sock) {
        let stop = matches!(stop_at(), STOP_AT_READY | STOP_AT_ACCEPT);
        reach(ctx, KIND_ACCEPT, fd, sock, stop);
    }
    Some(())
}

fn epoll_ctl(registers: Registers) -> Option<()> {
    const EPOLL_CTL_DEL: u64 = 2;
    let epoll = file_of(registers.argument(0) as i32).and_then(private_data)?;
    let sock = file_of(registers.argument(2) as i32).and_then(sock_of)?;
    if registers.argument(1) == EPOLL_CTL_DEL {
        forget(epoll, sock);
    } else if may_listen(sock) {
        remember(epoll, sock);
    }
    Some(())
}

/// Listening, or neither connected nor connecting, so that it may yet listen.
fn may_listen(sock: u64) -> bool {
    matches!(state_of(sock), STATE_LISTEN | STATE_CLOSE)
}

fn remember(epoll: u64, sock: u64) {
    let Some(sockets) = EPOLLS.get_ptr_mut(epoll) else {
        let mut sockets = [0; SOCKETS_PER_EPOLL];
        sockets[0] = sock;
        if EPOLLS.insert(epoll, sockets, 0).is_err() {
            count_drop();
        }
        return;
    };
    // SAFETY: points into the map, whose values are plain numbers.
    let sockets = unsafe { &mut *sockets };
    if sockets.contains(&sock) {
        return;
    }
    for slot in sockets.iter_mut() {
        if *slot == 0 || !may_listen(*slot) {
            *slot = sock;
            return;
        }
    }
    count_drop();
}

fn forget(epoll: u64, sock: u64) {
    if let Some(sockets) = EPOLLS.get_ptr_mut(epoll) {
        // SAFETY: points into the map, whose values are plain numbers.
        let sockets = unsafe { &mut *sockets };
        for slot in sockets.iter_mut() {
            if *slot == sock {
                *slot = 0;
            }
        }
    }
}

fn epoll_wait(ctx: &BtfTracePointContext, registers: Registers) -> Option<()> {
    let fd = registers.argument(0) as i32;
    let epoll = file_of(fd).and_then(private_data)?;
    let sockets = EPOLLS.get_ptr(epoll)?;
    // SAFETY: points into the map, whose values are plain numbers.
    let sockets = unsafe { &*sockets };
    for &sock in sockets {
        if is_listening(sock) && is_wanted(sock) {
            reach(ctx, KIND_WAIT, fd, sock, stop_at() == STOP_AT_READY);
            return Some(());
        }
    }
    None
}

/// What a loop over a set of descriptors looks at, and what it found.
#[repr(C)]
struct Search {
    /// The set in user memory.
    set: u64,
    found_fd: i32,
    found_sock: u64,
}

impl Search {
    /// Looks at one descriptor; returns 1, which ends the loop, if it is a listening socket.
    fn look_at(&mut self, fd: i32) -> i64 {
        match file_of(fd).and_then(sock_of) {
            Some(sock) if is_listening(sock) && is_wanted(sock) => {
                self.found_fd = fd;
                self.found_sock = sock;
                1
            }
            _ => 0,
        }
    }
}

/// Runs `step` for the numbers below `count`, at most `SET_LIMIT`, and reports what it found.
fn search(
    ctx: &BtfTracePointContext,
    set: u64,
    count: u64,
    step: extern "C" fn(u64, *mut Search) -> i64,
) -> Option<()> {
    /// Descriptors of a poll(2) or select(2) set that are looked at.
    const SET_LIMIT: u64 = 1024;
    let mut search = Search {
        set,
        found_fd: -1,
        found_sock: 0,
    };
    let steps = if count > SET_LIMIT { SET_LIMIT } else { count };
    // SAFETY: the verifier checks the function and that the context outlives the loop.
    unsafe {
        bpf_loop(
            steps as u32,
            step as *mut c_void,
            (&raw mut search).cast(),
            0,
        );
    }
    if search.found_sock != 0 {
        let stop = stop_at() == STOP_AT_READY;
        reach(ctx, KIND_WAIT, search.found_fd, search.found_sock, stop);
    } else if count > SET_LIMIT {
        count_drop();
    }
    Some(())
}

fn poll(ctx: &BtfTracePointContext, registers: Registers) -> Option<()> {
    search(ctx, registers.argument(0), registers.argument(1), poll_step)
}

extern "C" fn poll_step(index: u64, search: *mut Search) -> i64 {
    /// `struct pollfd` of poll(2): the descriptor comes first.
    const SIZE: u64 = 8;
    // SAFETY: the verifier knows the pointer as the context given to `bpf_loop`.
    let search = unsafe { &mut *search };
    match read_user::<i32>(search.set + index * SIZE) {
        Some(fd) => search.look_at(fd),
        None => 1,
    }
}

fn select(ctx: &BtfTracePointContext, registers: Registers) -> Option<()> {
    search(
        ctx,
        registers.argument(1),
        registers.argument(0),
        select_step,
    )
}

extern "C" fn select_step(index: u64, search: *mut Search) -> i64 {
    // SAFETY: the verifier knows the pointer as the context given to `bpf_loop`.
    let search = unsafe { &mut *search };
    match read_user::<u8>(search.set + index / 8) {
        Some(bits) if bits & (1 << (index % 8)) != 0 => search.look_at(index as i32),
        Some(_) => 0,
        None => 1,
    }
}
