//! Sums that are exact whatever becomes of the spans.

use aya_ebpf::{macros::map, maps::PerCpuHashMap};
use bytemuck::Zeroable;
use probe_ebpf::trace::{
    CallsKey, CallsTotal, FaultsKey, FaultsTotal, FileKey, FileTotal, LookupsTotal, SPAN_MAJOR,
    Thread,
};

use super::{
    known_calls::{Known, Names},
    state::count_lost,
};
use crate::kernel::Identity;

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

/// The entry of a key, which is made if there is none.
fn entry<K, V: Zeroable>(map: &PerCpuHashMap<K, V>, key: &K) -> Option<*mut V> {
    if let Some(found) = map.get_ptr_mut(key) {
        return Some(found);
    }
    let _ = map.insert(key, V::zeroed(), BPF_NOEXIST);
    let made = map.get_ptr_mut(key);
    if made.is_none() {
        count_lost();
    }
    made
}

pub fn add_call(thread: &Thread, number: i32, is_error: bool, total_ns: u64) {
    let key = CallsKey {
        tgid: thread.tgid,
        number,
    };
    if let Some(calls) = entry(&CALLS, &key) {
        // SAFETY: points into the map, whose values are plain numbers of this processor.
        unsafe {
            (*calls).count += 1;
            (*calls).errors += u64::from(is_error);
            (*calls).total_ns += total_ns;
            (*calls).on_ns += thread.call_on_ns;
        }
    }
}

pub fn add_file(thread: &Thread, known: Known, result: i64) {
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

pub fn file_total(key: FileKey) -> Option<*mut FileTotal> {
    entry(&FILES, &key)
}

pub fn add_lookup(tgid: u32, total_ns: u64) {
    if let Some(lookups) = entry(&LOOKUPS, &tgid) {
        // SAFETY: points into the map, whose values are plain numbers of this processor.
        unsafe {
            (*lookups).count += 1;
            (*lookups).total_ns += total_ns;
        }
    }
}

pub fn add_fault(thread: &Thread, file: Identity, flags: u32, total_ns: u64) {
    let key = FaultsKey {
        tgid: thread.tgid,
        device: file.device,
        inode: file.inode,
    };
    if let Some(faults) = entry(&FAULTS, &key) {
        // SAFETY: points into the map, whose values are plain numbers of this processor.
        unsafe {
            (*faults).count += 1;
            (*faults).major += u64::from(flags & SPAN_MAJOR != 0);
            (*faults).total_ns += total_ns;
        }
    }
}

/// What a fault waited is time of its file.
pub fn add_disk(thread: &Thread, file: Identity) {
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
