//! Page faults, from begin to end, and the pages that had to be read.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_perf_event_data,
    macros::{btf_tracepoint, perf_event},
    programs::{BtfTracePointContext, PerfEventContext},
};
use probe_ebpf::trace::{CLASS_FAULT, FileKey, SPAN_FAULT, SPAN_MAJOR};

use super::{
    state::{class_on, current, known, now, turn},
    tell::{span, tell},
    totals::{add_disk, add_fault, file_total},
};
use crate::kernel::{Identity, current_tid, file_of_mapping, missed_pages, takes_no_faults};

/// A page fault of the program's own code begins.
#[btf_tracepoint(function = "page_fault_user")]
pub fn profile_fault_user(ctx: BtfTracePointContext) -> i32 {
    fault_begins(ctx.arg(0));
    0
}

/// One begins as the kernel uses the program's memory, or its own.
#[btf_tracepoint(function = "page_fault_kernel")]
pub fn profile_fault_kernel(ctx: BtfTracePointContext) -> i32 {
    const IS_KERNEL: u64 = 1 << 63;
    let address: u64 = ctx.arg(0);
    if address & IS_KERNEL == 0 && !takes_no_faults() {
        fault_begins(address);
    }
    0
}

/// A page fault begins: of kernels that lack these tracepoints, as this takes three times as long.
#[perf_event]
pub fn profile_fault(ctx: PerfEventContext) -> u32 {
    let data = ctx.as_ptr().cast::<bpf_perf_event_data>();
    // SAFETY: the context of a program of this type.
    fault_begins(unsafe { (*data).addr });
    0
}

fn fault_begins(address: u64) {
    if let Some(thread) = current() {
        let now = now();
        turn(thread, CLASS_FAULT, now);
        thread.fault_ns = now;
        thread.fault_off_ns = 0;
        thread.fault_inode = 0;
        thread.fault_device = 0;
        thread.fault_address = address;
    }
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
    let file = Identity {
        inode: thread.fault_inode,
        device: thread.fault_device as u32,
        mode: 0,
    };
    let now = now();
    let mut over = span(SPAN_FAULT, current_tid(), thread, thread.fault_ns, now);
    over.class = CLASS_FAULT;
    over.flags = flags;
    over.device = file.device;
    over.inode = file.inode;
    over.argument = thread.fault_address;
    add_fault(thread, file, flags, now.saturating_sub(thread.fault_ns));
    add_disk(thread, file);
    thread.fault_ns = 0;
    let class = class_on(thread);
    turn(thread, class, now);
    tell(over);
}

/// A page of a file is brought in by the fault that the current thread is in. (`bpf_find_vma` would tell of
/// any mapping, and takes 12 µs, as it has an interrupt raised to give back the lock.)
#[btf_tracepoint(function = "mm_filemap_fault")]
pub fn profile_file(ctx: BtfTracePointContext) -> i32 {
    see_file(ctx.arg(0));
    0
}

/// Pages that are in the page cache are mapped by it, with those around.
#[btf_tracepoint(function = "mm_filemap_map_pages")]
pub fn profile_around(ctx: BtfTracePointContext) -> i32 {
    see_file(ctx.arg(0));
    0
}

fn see_file(mapping: *const u8) {
    if let Some(thread) = known(current_tid())
        && thread.fault_ns != 0
        && let Some(file) = file_of_mapping(mapping as u64)
    {
        thread.fault_inode = file.inode;
        thread.fault_device = u64::from(file.device);
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
