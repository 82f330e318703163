//! System calls, from entry to exit.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use bytemuck::Zeroable as _;
use probe_ebpf::trace::{
    CLASS_DISK, CLASS_EVENTS, CLASS_FILES, CLASS_LOCK, CLASS_NETWORK, CLASS_OTHER, CLASS_PEER,
    CLASS_SLEEP, CLASS_USER, NAME_LEN, SPAN_CALL, SPAN_CONNECTED, SPAN_DNS, SPAN_REGULAR, Span,
    Thread,
};

use super::{
    known_calls::{self, Names},
    state::{NO_CALL, current, now, turn},
    tell::{span, tell, tell_answer, tell_call, tell_named},
    totals::{add_call, add_file, add_lookup},
};
use crate::{
    kernel::{
        AF_UNIX, Call, Registers, current_tid, family_of, file_of, identity_of, peer_port_of,
        sock_of,
    },
    programs::see_call,
};

/// What a look-up of a path that does not exist returns.
const ENOENT: i64 = -2;

/// What a futex(2) returns that nobody woke: it was waited for as one sleeps.
const ETIMEDOUT: i64 = -110;

/// Where name servers are asked.
const DNS_PORT: u16 = 53;

/// A system call begins. Takes the place of `system_call`, as each program of a tracepoint costs.
#[btf_tracepoint(function = "sys_enter")]
pub fn profile_enter(ctx: BtfTracePointContext) -> i32 {
    if let Some(thread) = current() {
        let registers: *const u8 = ctx.arg(0);
        let number: i64 = ctx.arg(1);
        enter(thread, Registers(registers as u64), number as i32);
        if let Some(call) = Call::of(number) {
            see_call(&ctx, call);
        }
    }
    0
}

fn enter(thread: &mut Thread, registers: Registers, number: i32) {
    let now = now();
    let known = known_calls::of(number);
    thread.fault_ns = 0;
    turn(thread, known.class, now);
    thread.number = number;
    thread.call_class = known.class;
    thread.wait_class = known.wait;
    thread.call_ns = now;
    thread.call_on_ns = 0;
    thread.call_off_ns = 0;
    thread.flags = 0;
    thread.inode = 0;
    thread.device = 0;
    thread.arguments = [
        registers.argument(0),
        registers.argument(1),
        registers.argument(2),
    ];
    thread.lock_ns = thread.times[CLASS_LOCK as usize];
    match known.names {
        Names::Descriptor | Names::Peer => see_descriptor(thread, thread.arguments[0] as i32),
        Names::Several(count) => {
            if thread.arguments[count & 1] == 0 {
                thread.wait_class = CLASS_SLEEP;
            }
        }
        Names::Nothing | Names::Path(_) | Names::Opened(_) => {}
    }
    thread.class = thread.call_class;
}

/// Takes note of the file that a call is about, and of the classes that follow from what it is.
fn see_descriptor(thread: &mut Thread, fd: i32) {
    const S_IFMT: u16 = 0o170_000;
    const S_IFSOCK: u16 = 0o140_000;
    const S_IFREG: u16 = 0o100_000;
    const S_IFBLK: u16 = 0o060_000;
    const S_IFIFO: u16 = 0o010_000;
    const S_IFCHR: u16 = 0o020_000;
    let Some(file) = file_of(fd) else { return };
    let Some(identity) = identity_of(file) else {
        return;
    };
    thread.inode = identity.inode;
    thread.device = identity.device;
    match identity.mode & S_IFMT {
        S_IFREG | S_IFBLK => {
            thread.call_class = CLASS_FILES;
            thread.wait_class = CLASS_DISK;
            thread.flags |= SPAN_REGULAR;
        }
        S_IFSOCK => {
            thread.wait_class = match sock_of(file) {
                Some(sock) if family_of(sock) == AF_UNIX => CLASS_PEER,
                Some(sock) => {
                    if peer_port_of(sock) == DNS_PORT {
                        thread.flags |= SPAN_DNS;
                    }
                    CLASS_NETWORK
                }
                None => CLASS_NETWORK,
            };
        }
        S_IFIFO => thread.wait_class = CLASS_PEER,
        S_IFCHR => thread.wait_class = CLASS_OTHER,
        // An eventfd, timerfd, signalfd and the like.
        _ => thread.wait_class = CLASS_EVENTS,
    }
}

/// A system call is over.
#[btf_tracepoint(function = "sys_exit")]
pub fn profile_exit(ctx: BtfTracePointContext) -> i32 {
    if let Some(thread) = current() {
        let result: i64 = ctx.arg(1);
        exit(thread, result);
    }
    0
}

fn exit(thread: &mut Thread, result: i64) {
    let number = thread.number;
    thread.fault_ns = 0;
    if number == NO_CALL {
        turn(thread, CLASS_USER, now());
        return;
    }
    let known = known_calls::of(number);
    let is_error = (-4095..0).contains(&result);
    if let Names::Opened(_) = known.names
        && !is_error
        && let Some(identity) = file_of(result as i32).and_then(identity_of)
    {
        thread.inode = identity.inode;
        thread.device = identity.device;
    }
    let mut over = span(SPAN_CALL, current_tid(), thread, thread.call_ns, 0);
    over.class = thread.call_class;
    over.flags = thread.flags;
    over.device = thread.device;
    over.inode = thread.inode;
    over.result = result;
    match known.names {
        Names::Path(index) | Names::Opened(index) => {
            tell_named(over, thread, thread.arguments[index & 1], 0);
        }
        Names::Peer => {
            let socket = file_of(thread.arguments[0] as i32).and_then(sock_of);
            let (address, len) = (thread.arguments[1], thread.arguments[2]);
            // Known by its socket from now on, as its state may change later.
            over.argument = socket.unwrap_or(0);
            tell_named(over, thread, address, len.clamp(1, NAME_LEN as u64));
        }
        Names::Descriptor if thread.flags & SPAN_DNS != 0 && known.reads && result > 0 => {
            tell_answer(over, thread, thread.arguments[1], result as u64);
        }
        _ => tell_call(over, thread),
    }
    // If it could not be told of.
    if thread.number != NO_CALL {
        leave(thread);
    }
    if known.wait == CLASS_LOCK && result == ETIMEDOUT {
        let slept = thread.times[CLASS_LOCK as usize].saturating_sub(thread.lock_ns);
        thread.times[CLASS_LOCK as usize] -= slept;
        thread.times[CLASS_SLEEP as usize] += slept;
    }
    let total = thread.last_ns.saturating_sub(thread.call_ns);
    add_call(thread, number, is_error, total);
    if thread.inode != 0 && known.class == CLASS_FILES || thread.flags & SPAN_REGULAR != 0 {
        add_file(thread, known, result);
    }
    if result == ENOENT && matches!(known.names, Names::Path(_) | Names::Opened(_)) {
        add_lookup(thread.tgid, total);
    }
}

/// Returns to the thread's own code. Most of what is done here counts as the kernel's.
pub fn leave(thread: &mut Thread) -> u64 {
    let now = now();
    turn(thread, CLASS_USER, now);
    thread.number = NO_CALL;
    now
}

/// A TCP connection was established.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn profile_tcp(ctx: BtfTracePointContext) -> i32 {
    const TCP_ESTABLISHED: i32 = 1;
    const TCP_SYN_SENT: i32 = 2;
    let sock: *const u8 = ctx.arg(0);
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    if old == TCP_SYN_SENT && new == TCP_ESTABLISHED {
        // In the context of any task: user space knows the socket or not.
        let mut connected = Span::zeroed();
        connected.kind = SPAN_CONNECTED;
        connected.start_ns = now();
        connected.end_ns = connected.start_ns;
        connected.number = NO_CALL;
        connected.argument = sock as u64;
        tell(connected);
    }
    0
}
