//! Keeps the time of every followed thread by what it does, and tells of each thing that is over.
//!
//! A thread's state is written by the thread itself, at its system calls, page faults and switches,
//! so that each nanosecond is counted once; only `woken_ns` and `waker` are written by another.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_perf_event_data,
    helpers::{
        bpf_get_current_comm, bpf_ktime_get_ns,
        generated::{bpf_find_vma, bpf_get_current_task_btf},
    },
    macros::{btf_tracepoint, map, perf_event},
    maps::{Array, HashMap, PerCpuHashMap, RingBuf},
    programs::{BtfTracePointContext, PerfEventContext},
};
use bytemuck::Zeroable as _;
use probe_ebpf::trace::{
    CLASS_DISK, CLASS_EVENTS, CLASS_FAULT, CLASS_FILES, CLASS_KERNEL, CLASS_LOCK, CLASS_NETWORK,
    CLASS_OTHER, CLASS_PEER, CLASS_RUNNABLE, CLASS_SLEEP, CLASS_USER, CLASSES, CallsKey,
    CallsTotal, EndSpan, FaultsKey, FaultsTotal, FileKey, FileTotal, LookupsTotal, MAX_THREADS,
    NAME_LEN, NamedSpan, SPAN_BEGIN, SPAN_CALL, SPAN_CONNECTED, SPAN_CUT, SPAN_END, SPAN_EXEC,
    SPAN_FAULT, SPAN_MAJOR, SPAN_OFF, SPAN_PREEMPTED, SPAN_REGULAR, Span, Thread,
};

use crate::{
    calls::{self, Names},
    kernel::{
        AF_UNIX, Identity, Registers, current_tgid, current_tid, family_of, file_mapped_by,
        file_of, identity_of, missed_pages, read_user_text, sock_of, tgid_of, tid_of,
    },
    programs::in_tree,
};

/// The threads, by thread id.
#[map]
static THREADS: HashMap<u32, Thread> = HashMap::with_max_entries(MAX_THREADS, 0);

/// What is over; user space sets the size.
#[map]
static SPANS: RingBuf = RingBuf::with_byte_size(1 << 26, 0);

/// Spans and map entries that found no room.
#[map]
static LOST: Array<u64> = Array::with_max_entries(1, 0);

/// Whether a program has been executed.
#[map]
static EXECUTED: Array<u32> = Array::with_max_entries(1, 0);

#[map]
static CALLS: PerCpuHashMap<CallsKey, CallsTotal> = PerCpuHashMap::with_max_entries(16384, 0);

#[map]
static FILES: PerCpuHashMap<FileKey, FileTotal> = PerCpuHashMap::with_max_entries(32768, 0);

#[map]
static FAULTS: PerCpuHashMap<FaultsKey, FaultsTotal> = PerCpuHashMap::with_max_entries(16384, 0);

#[map]
static LOOKUPS: PerCpuHashMap<u32, LookupsTotal> = PerCpuHashMap::with_max_entries(4096, 0);

/// Of bpf(2): another thread may have been first.
const BPF_NOEXIST: u64 = 1;

const NO_CALL: i32 = -1;
const ENOENT: i64 = -2;
const TCP_ESTABLISHED: i32 = 1;

/// Of include/linux/sched.h.
const TASK_DEAD: u32 = 0x80;

fn count_lost() {
    if let Some(count) = LOST.get_ptr_mut(0) {
        // SAFETY: points into the map; a lost increment on a race still leaves it above zero.
        unsafe { *count += 1 };
    }
}

fn now() -> u64 {
    // SAFETY: has no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// The state of a thread that is known.
fn known(tid: u32) -> Option<&'static mut Thread> {
    let thread = THREADS.get_ptr_mut(tid)?;
    // SAFETY: points into the map, whose values are plain numbers.
    Some(unsafe { &mut *thread })
}

/// The state of the current thread if it is followed; that begins now if it has not yet.
fn current() -> Option<&'static mut Thread> {
    let tid = current_tid();
    if let Some(thread) = known(tid) {
        return Some(thread);
    }
    let tgid = current_tgid();
    if !in_tree(tgid) {
        return None;
    }
    begin(tid, tgid, CLASS_KERNEL, now());
    known(tid)
}

/// Has a stack of its own, as a state takes half of what programs have.
#[inline(never)]
fn begin(tid: u32, tgid: u32, class: u32, now: u64) {
    // Who is made has to wait for a processor.
    let off_ns = if class == CLASS_RUNNABLE { now } else { 0 };
    let thread = Thread {
        tgid,
        class,
        start_ns: now,
        last_ns: now,
        number: NO_CALL,
        call_class: CLASS_KERNEL,
        wait_class: CLASS_OTHER,
        is_contended: 0,
        is_ending: 0,
        call_ns: 0,
        call_on_ns: 0,
        call_off_ns: 0,
        arguments: [0; 3],
        device: 0,
        flags: 0,
        inode: 0,
        fault_ns: 0,
        fault_off_ns: 0,
        fault_address: 0,
        off_ns,
        woken_ns: off_ns,
        waker: 0,
        times: [0; CLASSES],
    };
    if THREADS.insert(tid, thread, 0).is_err() {
        count_lost();
    }
}

fn is_on(class: u32) -> bool {
    matches!(class, CLASS_USER | CLASS_KERNEL | CLASS_FAULT | CLASS_FILES)
}

/// Counts the time since the last change to a class of its own, and begins another.
fn charge(thread: &mut Thread, spent_on: u32, until: u64) {
    let spent = until.saturating_sub(thread.last_ns);
    if let Some(time) = thread.times.get_mut(spent_on as usize) {
        *time += spent;
    }
    if thread.fault_ns != 0 && !is_on(spent_on) {
        thread.fault_off_ns += spent;
    } else if thread.number != NO_CALL {
        if is_on(spent_on) {
            thread.call_on_ns += spent;
        } else {
            thread.call_off_ns += spent;
        }
    }
    thread.last_ns = until;
}

fn turn(thread: &mut Thread, class: u32, now: u64) {
    charge(thread, thread.class, now);
    thread.class = class;
}

/// The class of a thread on a processor.
fn class_on(thread: &Thread) -> u32 {
    if thread.fault_ns != 0 {
        CLASS_FAULT
    } else if thread.number != NO_CALL {
        thread.call_class
    } else if thread.is_ending != 0 {
        CLASS_KERNEL
    } else {
        CLASS_USER
    }
}

/// The class of a thread that waits.
fn class_off(thread: &Thread) -> u32 {
    if thread.is_contended != 0 {
        CLASS_LOCK
    } else if thread.fault_ns != 0 {
        CLASS_DISK
    } else if thread.number != NO_CALL {
        thread.wait_class
    } else {
        CLASS_OTHER
    }
}

fn span(kind: u32, tid: u32, thread: &Thread, start_ns: u64, end_ns: u64) -> Span {
    Span {
        kind,
        flags: 0,
        tgid: thread.tgid,
        tid,
        start_ns,
        end_ns,
        woken_ns: 0,
        waker: 0,
        class: 0,
        number: thread.number,
        device: 0,
        inode: 0,
        result: 0,
        arguments: [0; 3],
    }
}

fn tell(span: Span) {
    let Some(mut entry) = SPANS.reserve::<Span>(0) else {
        count_lost();
        return;
    };
    entry.write(span);
    entry.submit(wake_up());
}

/// Tells of a system call, which ends now.
fn tell_call(mut span: Span, thread: &mut Thread) {
    let Some(mut entry) = SPANS.reserve::<Span>(0) else {
        count_lost();
        return;
    };
    span.end_ns = leave(thread);
    entry.write(span);
    entry.submit(wake_up());
}

/// Tells of a system call with a text of the process' memory, `len` bytes long or, if that is 0, up to a
/// NUL.
fn tell_named(span: Span, thread: &mut Thread, address: u64, len: u64) {
    let Some(mut entry) = SPANS.reserve::<NamedSpan>(0) else {
        count_lost();
        return;
    };
    // SAFETY: the reserved bytes are ours until submitted, and every field is written.
    let named = unsafe {
        let named = entry.as_mut_ptr();
        (*named).span = span;
        (*named).name = [0; NAME_LEN];
        &mut *named
    };
    let (copied, is_cut) = read_user_text(address, len, &mut named.name);
    named.name_len = copied;
    if is_cut {
        named.span.flags |= SPAN_CUT;
    }
    named.span.end_ns = leave(thread);
    entry.submit(wake_up());
}

/// How a span is handed over: user space is woken for a million bytes at a time, as each wake-up is an
/// interrupt, which takes longer than the call that was told of.
fn wake_up() -> u64 {
    const NO_WAKEUP: u64 = 1;
    const FORCE_WAKEUP: u64 = 2;
    const AVAILABLE: u64 = 0;
    const ENOUGH: u64 = 1 << 20;
    if SPANS.query(AVAILABLE) < ENOUGH {
        NO_WAKEUP
    } else {
        FORCE_WAKEUP
    }
}

/// A system call begins.
#[btf_tracepoint(function = "sys_enter")]
pub fn profile_enter(ctx: BtfTracePointContext) -> i32 {
    if let Some(thread) = current() {
        let registers: *const u8 = ctx.arg(0);
        let number: i64 = ctx.arg(1);
        enter(thread, Registers(registers as u64), number as i32);
    }
    0
}

fn enter(thread: &mut Thread, registers: Registers, number: i32) {
    let now = now();
    let known = calls::of(number);
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
        registers.argument(0).unwrap_or(0),
        registers.argument(1).unwrap_or(0),
        registers.argument(2).unwrap_or(0),
    ];
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
                _ => CLASS_NETWORK,
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
    let known = calls::of(number);
    let now = now();
    let class = thread.class;
    charge(thread, class, now);
    let is_error = (-4095..0).contains(&result);
    let total = now.saturating_sub(thread.call_ns);
    add_call(thread, number, is_error, total);
    if let Names::Opened(_) = known.names
        && !is_error
        && let Some(identity) = file_of(result as i32).and_then(identity_of)
    {
        thread.inode = identity.inode;
        thread.device = identity.device;
    }
    if thread.inode != 0 && known.class == CLASS_FILES || thread.flags & SPAN_REGULAR != 0 {
        add_file(thread, known, result);
    }
    if result == ENOENT && matches!(known.names, Names::Path(_) | Names::Opened(_)) {
        add_lookup(thread.tgid, total);
    }
    let mut over = span(SPAN_CALL, current_tid(), thread, thread.call_ns, now);
    over.class = thread.call_class;
    over.flags = thread.flags;
    over.device = thread.device;
    over.inode = thread.inode;
    over.result = result;
    over.arguments = thread.arguments;
    match known.names {
        Names::Path(index) | Names::Opened(index) => {
            tell_named(over, thread, thread.arguments[index & 1], 0);
        }
        Names::Peer => {
            let socket = file_of(thread.arguments[0] as i32).and_then(sock_of);
            let (address, len) = (thread.arguments[1], thread.arguments[2]);
            // Known by its socket from now on, as its state may change later.
            over.arguments[2] = socket.unwrap_or(0);
            tell_named(over, thread, address, len.clamp(1, NAME_LEN as u64));
        }
        _ => tell_call(over, thread),
    }
    // If it could not be told of.
    if thread.number != NO_CALL {
        leave(thread);
    }
}

/// Returns to the thread's own code; what was done here counts as the kernel's.
fn leave(thread: &mut Thread) -> u64 {
    let now = now();
    turn(thread, CLASS_USER, now);
    thread.number = NO_CALL;
    now
}

fn add_call(thread: &Thread, number: i32, is_error: bool, total_ns: u64) {
    let key = CallsKey {
        tgid: thread.tgid,
        number,
    };
    if CALLS.get_ptr_mut(key).is_none() {
        let _ = CALLS.insert(key, CallsTotal::zeroed(), BPF_NOEXIST);
    }
    if let Some(calls) = CALLS.get_ptr_mut(key) {
        // SAFETY: points into the map, whose values are plain numbers of this processor.
        unsafe {
            (*calls).count += 1;
            (*calls).errors += u64::from(is_error);
            (*calls).total_ns += total_ns;
            (*calls).on_ns += thread.call_on_ns;
        }
    }
}

fn add_file(thread: &Thread, known: calls::Known, result: i64) {
    let key = FileKey {
        inode: thread.inode,
        device: thread.device,
        reserved: 0,
    };
    if let Some(file) = file_total(key) {
        let is_open = matches!(known.names, Names::Opened(_));
        let bytes = if known.reads && result > 0 {
            result as u64
        } else {
            0
        };
        // SAFETY: points into the map, whose values are plain numbers of this processor.
        unsafe {
            (*file).opens += u64::from(is_open);
            (*file).reads += u64::from(known.reads);
            (*file).bytes_read += bytes;
            (*file).on_ns += thread.call_on_ns;
            (*file).disk_ns += thread.call_off_ns;
        }
    }
}

fn file_total(key: FileKey) -> Option<*mut FileTotal> {
    if FILES.get_ptr_mut(key).is_none() {
        let _ = FILES.insert(key, FileTotal::zeroed(), BPF_NOEXIST);
    }
    let file = FILES.get_ptr_mut(key);
    if file.is_none() {
        count_lost();
    }
    file
}

fn add_lookup(tgid: u32, total_ns: u64) {
    if LOOKUPS.get_ptr_mut(tgid).is_none() {
        let _ = LOOKUPS.insert(tgid, LookupsTotal::zeroed(), BPF_NOEXIST);
    }
    match LOOKUPS.get_ptr_mut(tgid) {
        // SAFETY: points into the map, whose values are plain numbers.
        Some(lookups) => unsafe {
            (*lookups).count += 1;
            (*lookups).total_ns += total_ns;
        },
        None => count_lost(),
    }
}

/// A processor goes from one task to another.
#[btf_tracepoint(function = "sched_switch")]
pub fn profile_switch(ctx: BtfTracePointContext) -> i32 {
    let is_preempted: u32 = ctx.arg(0);
    let previous: *const u8 = ctx.arg(1);
    let next: *const u8 = ctx.arg(2);
    let state: u32 = ctx.arg(3);
    let now = now();
    if let Some(tid) = tid_of(previous as u64)
        && let Some(thread) = known(tid)
    {
        if state & TASK_DEAD != 0 && is_preempted & 1 == 0 {
            end(tid, thread, now);
            return switch_to(next as u64, now);
        }
        let waits = is_preempted & 1 == 0 && state != 0;
        let class = if waits {
            class_off(thread)
        } else {
            CLASS_RUNNABLE
        };
        thread.woken_ns = if waits { 0 } else { now };
        thread.waker = 0;
        thread.off_ns = now;
        turn(thread, class, now);
    }
    switch_to(next as u64, now)
}

fn switch_to(task: u64, now: u64) -> i32 {
    if let Some(tid) = tid_of(task)
        && let Some(thread) = known(tid)
    {
        resume(tid, thread, now);
    }
    0
}

/// A thread gets a processor.
fn resume(tid: u32, thread: &mut Thread, now: u64) {
    let off_ns = thread.off_ns;
    if off_ns == 0 {
        return;
    }
    let mut over = span(SPAN_OFF, tid, thread, off_ns, now);
    over.class = thread.class;
    over.device = thread.device;
    over.inode = thread.inode;
    over.arguments = thread.arguments;
    if thread.class == CLASS_RUNNABLE {
        over.flags = SPAN_PREEMPTED;
        over.woken_ns = off_ns;
    } else {
        let woken = thread.woken_ns;
        let woken = if woken >= off_ns && woken <= now {
            woken
        } else {
            now
        };
        over.woken_ns = woken;
        over.waker = thread.waker as u32;
        charge(thread, thread.class, woken);
    }
    charge(thread, CLASS_RUNNABLE, now);
    thread.class = class_on(thread);
    thread.off_ns = 0;
    tell(over);
}

/// A task is about to be woken by the current one, or by an interrupt of it.
#[btf_tracepoint(function = "sched_waking")]
pub fn profile_waking(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    if let Some(thread) = tid_of(task as u64).and_then(known)
        && thread.woken_ns == 0
    {
        let tid = current_tid();
        thread.waker = match known(tid) {
            Some(_) => u64::from(tid),
            None => 0,
        };
        thread.woken_ns = now();
    }
    0
}

/// A thread or process was made.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn profile_fork(ctx: BtfTracePointContext) -> i32 {
    let parent: *const u8 = ctx.arg(0);
    let child: *const u8 = ctx.arg(1);
    let (parent, child) = (parent as u64, child as u64);
    let Some(maker) = tgid_of(parent).filter(|&tgid| in_tree(tgid)) else {
        return 0;
    };
    let (Some(tid), Some(tgid)) = (tid_of(child), tgid_of(child)) else {
        return 0;
    };
    let now = now();
    begin(tid, tgid, CLASS_RUNNABLE, now);
    if let Some(thread) = known(tid) {
        let mut begun = span(SPAN_BEGIN, tid, thread, now, now);
        begun.arguments[0] = u64::from(maker) << 32 | u64::from(current_tid());
        tell(begun);
    }
    0
}

/// A program was executed. The thread that does it becomes the first of its process.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn profile_exec(ctx: BtfTracePointContext) -> i32 {
    let old: u32 = ctx.arg(1);
    let tid = current_tid();
    if old != tid
        && let Some(thread) = known(old)
    {
        let _ = THREADS.insert(tid, &*thread, 0);
        let _ = THREADS.remove(old);
    }
    if let Some(thread) = current() {
        let now = now();
        if is_first() {
            restart(thread, now);
        }
        let mut executed = span(SPAN_EXEC, tid, thread, now, now);
        executed.arguments[0] = u64::from(old);
        tell(executed);
    }
    0
}

/// Whether this is the first execution of all, with which the profile begins.
fn is_first() -> bool {
    match EXECUTED.get_ptr_mut(0) {
        // SAFETY: points into the map, whose value is a plain number; only one process can be first.
        Some(executed) => unsafe { core::mem::replace(&mut *executed, 1) == 0 },
        None => false,
    }
}

/// Forgets what a thread did until now.
fn restart(thread: &mut Thread, now: u64) {
    thread.times = [0; CLASSES];
    thread.start_ns = now;
    thread.last_ns = now;
    thread.call_ns = now;
    thread.call_on_ns = 0;
    thread.call_off_ns = 0;
}

/// A thread begins to end: it gives back its memory and files, and tells those who wait for it.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn profile_exits(_ctx: BtfTracePointContext) -> i32 {
    if let Some(thread) = known(current_tid()) {
        turn(thread, CLASS_KERNEL, now());
        thread.number = NO_CALL;
        thread.call_class = CLASS_KERNEL;
        thread.fault_ns = 0;
        thread.is_ending = 1;
    }
    0
}

/// Tells of a thread that has left its processor for good.
fn end(tid: u32, thread: &mut Thread, now: u64) {
    turn(thread, CLASS_KERNEL, now);
    match SPANS.reserve::<EndSpan>(0) {
        Some(mut entry) => {
            entry.write(EndSpan {
                span: span(SPAN_END, tid, thread, thread.start_ns, now),
                times: thread.times,
                name: bpf_get_current_comm().unwrap_or_default(),
            });
            entry.submit(wake_up());
        }
        None => count_lost(),
    }
    let _ = THREADS.remove(tid);
}

/// A lock of the kernel is waited for.
#[btf_tracepoint(function = "contention_begin")]
pub fn profile_contended(_ctx: BtfTracePointContext) -> i32 {
    if let Some(thread) = known(current_tid()) {
        thread.is_contended = 1;
    }
    0
}

#[btf_tracepoint(function = "contention_end")]
pub fn profile_acquired(_ctx: BtfTracePointContext) -> i32 {
    if let Some(thread) = known(current_tid()) {
        thread.is_contended = 0;
    }
    0
}

/// A page fault begins.
#[perf_event]
pub fn profile_fault(ctx: PerfEventContext) -> u32 {
    if let Some(thread) = current() {
        let data = ctx.as_ptr().cast::<bpf_perf_event_data>();
        let now = now();
        turn(thread, CLASS_FAULT, now);
        thread.fault_ns = now;
        thread.fault_off_ns = 0;
        // SAFETY: the context of a program of this type.
        thread.fault_address = unsafe { (*data).addr };
    }
    0
}

/// It is over, without storage.
#[perf_event]
pub fn profile_minor(_ctx: PerfEventContext) -> u32 {
    fault_is_over(0);
    0
}

/// It is over, and storage was waited for.
#[perf_event]
pub fn profile_major(_ctx: PerfEventContext) -> u32 {
    fault_is_over(SPAN_MAJOR);
    0
}

fn fault_is_over(flags: u32) {
    let Some(thread) = known(current_tid()) else {
        return;
    };
    if thread.fault_ns == 0 {
        return;
    }
    let file = mapped_file(thread.fault_address);
    let now = now();
    let mut over = span(SPAN_FAULT, current_tid(), thread, thread.fault_ns, now);
    over.class = CLASS_FAULT;
    over.flags = flags;
    over.device = file.device;
    over.inode = file.inode;
    over.arguments[0] = thread.fault_address;
    add_fault(thread, file, flags, now.saturating_sub(thread.fault_ns));
    add_disk(thread, file);
    thread.fault_ns = 0;
    let class = class_on(thread);
    turn(thread, class, now);
    tell(over);
}

/// The file that is mapped at an address of the current process; none of it is 0.
fn mapped_file(address: u64) -> Identity {
    let mut found = Identity {
        inode: 0,
        device: 0,
        mode: 0,
    };
    // SAFETY: the verifier checks the function and that the context outlives the call.
    unsafe {
        let task = bpf_get_current_task_btf();
        bpf_find_vma(
            task,
            address,
            see_mapping as *mut c_void,
            (&raw mut found).cast(),
            0,
        );
    }
    found
}

extern "C" fn see_mapping(_task: *mut c_void, mapping: *mut c_void, found: *mut Identity) -> i64 {
    if let Some(identity) = file_mapped_by(mapping as u64) {
        // SAFETY: the verifier knows the pointer as the context given to `bpf_find_vma`.
        unsafe { *found = identity };
    }
    0
}

fn add_fault(thread: &Thread, file: Identity, flags: u32, total_ns: u64) {
    let key = FaultsKey {
        tgid: thread.tgid,
        device: file.device,
        inode: file.inode,
    };
    if FAULTS.get_ptr_mut(key).is_none() {
        let _ = FAULTS.insert(key, FaultsTotal::zeroed(), BPF_NOEXIST);
    }
    match FAULTS.get_ptr_mut(key) {
        // SAFETY: points into the map, whose values are plain numbers of this processor.
        Some(faults) => unsafe {
            (*faults).count += 1;
            (*faults).major += u64::from(flags & SPAN_MAJOR != 0);
            (*faults).total_ns += total_ns;
        },
        None => count_lost(),
    }
}

/// What a fault waited is time of its file.
fn add_disk(thread: &Thread, file: Identity) {
    let key = FileKey {
        inode: file.inode,
        device: file.device,
        reserved: 0,
    };
    if file.inode != 0
        && thread.fault_off_ns != 0
        && let Some(total) = file_total(key)
    {
        // SAFETY: points into the map, whose values are plain numbers of this processor.
        unsafe { (*total).disk_ns += thread.fault_off_ns };
    }
}

/// A fault that a signal tells of is over.
#[btf_tracepoint(function = "signal_deliver")]
pub fn profile_signal(_ctx: BtfTracePointContext) -> i32 {
    if let Some(thread) = known(current_tid())
        && thread.fault_ns != 0
    {
        thread.fault_ns = 0;
        let class = class_on(thread);
        turn(thread, class, now());
    }
    0
}

/// A page that was not in the page cache is put there, to be read into.
#[btf_tracepoint(function = "mm_filemap_add_to_page_cache")]
pub fn profile_missed(ctx: BtfTracePointContext) -> i32 {
    if known(current_tid()).is_none() {
        return 0;
    }
    let folio: *const u8 = ctx.arg(0);
    let Some((identity, pages)) = missed_pages(folio as u64) else {
        return 0;
    };
    let key = FileKey {
        inode: identity.inode,
        device: identity.device,
        reserved: 0,
    };
    if let Some(file) = file_total(key) {
        // SAFETY: points into the map, whose values are plain numbers of this processor.
        unsafe { (*file).pages_missed += pages };
    }
    0
}

/// A TCP connection was established.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn profile_tcp(ctx: BtfTracePointContext) -> i32 {
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
        connected.arguments[0] = sock as u64;
        tell(connected);
    }
    0
}
