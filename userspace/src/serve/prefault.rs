//! Maps what a process that stands still will need into its page tables, so that it does not take the page
//! faults when it goes on.
//!
//! A page of a file that is in the page cache is only mapped by that, and takes no memory. With each, the
//! kernel maps those around it that are in the cache too (`fault_around_bytes`). One that is not in the cache
//! is read from the disk: so neither the gateway nor a site waits for it.

use std::{
    io::{self, IoSliceMut},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        uio::{RemoteIoVec, process_vm_readv},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};
use rustix::process::{Signal, pidfd_send_signal, set_parent_process_death_signal};

use crate::{
    sys,
    tree::{self, HostPid},
};

/// The default of `fault_around_bytes`.
const STEP: usize = 64 << 10;

/// As many as the kernel takes at once (`UIO_MAXIOV`).
const BATCH: usize = 1024;

/// How long that may take: a disk may be slow, and a file system may not answer at all.
const LIMIT: Duration = Duration::from_secs(10);

/// Does so for all processes below an init, in a process of its own, as long as it may take. What cannot be
/// read is left as it is.
///
/// # Errors
/// What clone3(2) and epoll_ctl(2) say.
pub async fn prefault(init: HostPid) -> io::Result<()> {
    let (pid, pidfd) = match sys::fork(sys::ForkOptions::default())? {
        sys::Fork::Child => touch_all(init),
        sys::Fork::Parent { pid, pidfd } => (pid, pidfd),
    };
    let ended = sys::readable(pidfd)?;
    if tokio::time::timeout(LIMIT, ended.readable()).await.is_err() {
        let _ = pidfd_send_signal(ended.get_ref(), Signal::KILL);
        // A file system that does not answer may hold it up in spite of that.
        let _ = ended.readable().await;
    }
    let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
    Ok(())
}

/// The process itself.
fn touch_all(init: HostPid) -> ! {
    let _ = rustix::thread::set_name(c"warmimg-prefault");
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // The sockets of the gateway are not to be open for longer than the gateway.
    if sys::keep_only(&[]).is_ok() {
        tree::descendants(init).into_iter().for_each(touch_files);
    }
    sys::exit_now(0)
}

/// Touches all mapped files of a process.
fn touch_files(pid: HostPid) {
    let Ok(maps) = Process::new(pid.0).and_then(|process| process.maps()) else {
        return;
    };
    let places: Vec<usize> = maps.iter().filter(is_meant).flat_map(places).collect();
    let mut left = &places[..];
    while !left.is_empty() {
        let (batch, _) = left.split_at(left.len().min(BATCH));
        match touch(pid, batch) {
            Ok(0) | Err(Errno::EFAULT) => left = &left[1..],
            Ok(touched) => left = &left[touched..],
            // It has ended.
            Err(_) => return,
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
