//! Page faults, from begin to end, and the pages that had to be read.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_perf_event_data,
    helpers::generated::{bpf_find_vma, bpf_get_current_task_btf},
    macros::{btf_tracepoint, perf_event},
    programs::{BtfTracePointContext, PerfEventContext},
};
use probe_ebpf::trace::{CLASS_FAULT, FileKey, SPAN_FAULT, SPAN_MAJOR};

use super::{
    state::{class_on, current, known, now, turn},
    tell::{span, tell},
    totals::{add_disk, add_fault, file_total},
};
use crate::kernel::{Identity, current_tid, file_mapped_by, missed_pages};

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
