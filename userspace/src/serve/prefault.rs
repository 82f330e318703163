//! Maps what a process that stands still will need into its page tables, so that it does not take the page
//! faults when it goes on.
//!
//! A page of a file that is in the page cache is only mapped by that, and takes no memory. With each, the
//! kernel maps those around it that are in the cache too (`fault_around_bytes`).

use std::io::IoSliceMut;

use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

use crate::tree::{self, HostPid};

/// The default of `fault_around_bytes`.
const STEP: usize = 64 << 10;

/// As many as the kernel takes at once (`UIO_MAXIOV`).
const BATCH: usize = 1024;

/// Does so for all processes below an init. What cannot be read is left as it is.
pub async fn prefault(init: HostPid) {
    for pid in tree::descendants(init) {
        let Ok(maps) = Process::new(pid.0).and_then(|process| process.maps()) else {
            continue;
        };
        let places: Vec<usize> = maps.iter().filter(is_meant).flat_map(places).collect();
        let mut left = &places[..];
        while !left.is_empty() {
            let (batch, _) = left.split_at(left.len().min(BATCH));
            match touch(pid, batch) {
                Ok(0) | Err(Errno::EFAULT) => left = &left[1..],
                Ok(touched) => left = &left[touched..],
                // It has ended.
                Err(_) => break,
            }
            // The other sites are not to wait for all of it.
            tokio::task::yield_now().await;
        }
    }
}

/// A mapped file that can be read; a device may do anything when it is.
fn is_meant(map: &&MemoryMap) -> bool {
    let is_file = matches!(&map.pathname, MMapPath::Path(path) if !path.starts_with("/dev"));
    is_file && map.perms.contains(MMPermissions::READ)
}

fn places(map: &MemoryMap) -> impl Iterator<Item = usize> + use<> {
    let (start, end) = map.address;
    // In each of the ranges that are mapped at once.
    let next = (start as usize / STEP + 1) * STEP;
    std::iter::once(start as usize).chain((next..end as usize).step_by(STEP))
}

/// Reads a byte at each place; returns how many could be read until one could not.
fn touch(pid: HostPid, places: &[usize]) -> nix::Result<usize> {
    let remote: Vec<_> = places
        .iter()
        .map(|&base| RemoteIoVec { base, len: 1 })
        .collect();
    let mut bytes = [0; BATCH];
    let own = &mut bytes[..places.len()];
    process_vm_readv(Pid::from_raw(pid.0), &mut [IoSliceMut::new(own)], &remote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mapped_files_are_touched() {
        let own = Process::myself().unwrap();
        let maps = own.maps().unwrap();
        let text = maps.iter().find(is_meant).unwrap();
        let found: Vec<_> = places(text).collect();
        assert_eq!(found[0] as u64, text.address.0);
        assert!(found[1..].iter().all(|place| place % STEP == 0));
        let pid = HostPid(own.pid());
        assert_eq!(touch(pid, &found[..1]), Ok(1));
        // The first that cannot be read ends it.
        assert_eq!(touch(pid, &[found[0], 0, found[0]]), Ok(1));
        assert_eq!(touch(pid, &[0]), Err(Errno::EFAULT));
    }
}
