//! Threads: how they begin and end, and when they have a processor.

use aya_ebpf::{
    helpers::bpf_get_current_comm, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use probe_ebpf::trace::{
    CLASS_KERNEL, CLASS_RUNNABLE, CLASSES, EndSpan, SPAN_BEGIN, SPAN_END, SPAN_EXEC, SPAN_OFF,
    SPAN_PREEMPTED, Thread,
};

use super::{
    state::{
        EXECUTED, NO_CALL, THREADS, begin, charge, class_off, class_on, count_lost, current, known,
        now, turn,
    },
    tell::{SPANS, span, tell, wake_up},
    totals::add_call,
};
use crate::{
    kernel::{current_tid, tgid_of, tid_of},
    programs::in_tree,
};

/// Of include/linux/sched.h.
const TASK_DEAD: u32 = 0x80;

/// A processor goes from one task to another.
#[btf_tracepoint(function = "sched_switch")]
pub fn profile_switch(ctx: BtfTracePointContext) -> i32 {
    let is_preempted: u32 = ctx.arg(0);
    let previous: *const u8 = ctx.arg(1);
    let next: *const u8 = ctx.arg(2);
    let state: u32 = ctx.arg(3);
    let now = now();
    let tid = tid_of(previous as u64);
    if let Some(thread) = known(tid) {
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
    let tid = tid_of(task);
    if let Some(thread) = known(tid) {
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
    if let Some(thread) = known(tid_of(task as u64))
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
    let maker = tgid_of(parent);
    if !in_tree(maker) {
        return 0;
    }
    let (tid, tgid) = (tid_of(child), tgid_of(child));
    let now = now();
    begin(tid, tgid, CLASS_RUNNABLE, now);
    if let Some(thread) = known(tid) {
        let mut begun = span(SPAN_BEGIN, tid, thread, now, now);
        begun.argument = u64::from(maker) << 32 | u64::from(current_tid());
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
        executed.argument = u64::from(old);
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
        // exit(2) or exit_group(2), which do not return.
        if thread.number != NO_CALL {
            let total = thread.last_ns.saturating_sub(thread.call_ns);
            add_call(thread, thread.number, false, total);
        }
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
