//! What a thread does, since when, and for how long in all.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap},
};
use probe_ebpf::trace::{
    CLASS_DISK, CLASS_FAULT, CLASS_FILES, CLASS_KERNEL, CLASS_LOCK, CLASS_OTHER, CLASS_RUNNABLE,
    CLASS_USER, CLASSES, MAX_THREADS, Thread,
};

use crate::{
    kernel::{current_tgid, current_tid},
    programs::in_tree,
};

/// The threads, by thread id.
#[map]
pub static THREADS: HashMap<u32, Thread> = HashMap::with_max_entries(MAX_THREADS, 0);

/// Spans and map entries that found no room.
#[map]
pub static LOST: Array<u64> = Array::with_max_entries(1, 0);

/// Whether a program has been executed.
#[map]
pub static EXECUTED: Array<u32> = Array::with_max_entries(1, 0);

pub const NO_CALL: i32 = -1;

pub fn count_lost() {
    if let Some(count) = LOST.get_ptr_mut(0) {
        // SAFETY: points into the map; a lost increment on a race still leaves it above zero.
        unsafe { *count += 1 };
    }
}

pub fn now() -> u64 {
    // SAFETY: has no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// The state of a thread that is known.
pub fn known(tid: u32) -> Option<&'static mut Thread> {
    let thread = THREADS.get_ptr_mut(tid)?;
    // SAFETY: points into the map, whose values are plain numbers.
    Some(unsafe { &mut *thread })
}

/// The state of the current thread if it is followed; that begins now if it has not yet.
pub fn current() -> Option<&'static mut Thread> {
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
pub fn begin(tid: u32, tgid: u32, class: u32, now: u64) {
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
        lock_ns: 0,
        device: 0,
        flags: 0,
        inode: 0,
        fault_ns: 0,
        fault_off_ns: 0,
        fault_inode: 0,
        fault_device: 0,
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

pub fn is_on(class: u32) -> bool {
    matches!(class, CLASS_USER | CLASS_KERNEL | CLASS_FAULT | CLASS_FILES)
}

/// Counts the time since the last change to a class of its own, and begins another.
pub fn charge(thread: &mut Thread, spent_on: u32, until: u64) {
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

pub fn turn(thread: &mut Thread, class: u32, now: u64) {
    charge(thread, thread.class, now);
    thread.class = class;
}

/// The class of a thread on a processor.
pub fn class_on(thread: &Thread) -> u32 {
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
pub fn class_off(thread: &Thread) -> u32 {
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
