//! Has an instance that is to end take no more connections, so that those that it has come to their ends while
//! new ones go to others.
//!
//! Instances share one socket, so it cannot be closed or shut down for one of them. But the epoll instances by
//! which a server waits for it are its own: the socket is removed from them. The server hears of no
//! connection any more; what it does otherwise is not touched.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    event::epoll,
    io::Errno,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::{
    apart::in_child,
    sys,
    tree::{self, HostPid},
};

/// Has the processes below an init hear of no more connections of a socket. Those that wait for it in
/// accept(2), poll(2) or select(2) still do.
///
/// # Errors
/// The first that /proc, pidfd_getfd(2) or epoll_ctl(2) say; all others hear of none then.
pub fn take_no_more(init: HostPid, socket: BorrowedFd<'_>) -> io::Result<()> {
    let inode = rustix::fs::fstat(socket)?.st_ino;
    let mut done = Ok(());
    for pid in tree::descendants(init) {
        let left = fs::read_dir(format!("/proc/{pid}/fd")).and_then(|descriptors| {
            let descriptors = descriptors.flatten();
            let left = descriptors.map(|descriptor| leave(pid, &descriptor, socket, inode));
            left.map(unless_gone).fold(Ok(()), Result::and)
        });
        done = done.and(unless_gone(left));
    }
    done
}

/// What has ended, or was closed, hears of nothing.
fn unless_gone(left: io::Result<()>) -> io::Result<()> {
    left.or_else(|error| match tree::is_gone(&error) {
        true => Ok(()),
        false => Err(error),
    })
}

/// Removes a socket from a descriptor of a process, if that is an epoll instance.
fn leave(
    pid: HostPid,
    descriptor: &fs::DirEntry,
    socket: BorrowedFd<'_>,
    inode: u64,
) -> io::Result<()> {
    let target = fs::read_link(descriptor.path())?;
    let number = descriptor.file_name().to_string_lossy().parse();
    let (true, Ok(number)) = (target.as_os_str() == "anon_inode:[eventpoll]", number) else {
        return Ok(());
    };
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
    let watched = watched(&info, inode);
    if watched.is_empty() {
        return Ok(());
    }
    let process = Pid::from_raw(pid.0).ok_or(Errno::SRCH)?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let epoll = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
    remove(&epoll, socket, &watched)
}

/// The numbers by which an epoll instance watches a file, from its fdinfo; see proc(5).
fn watched(info: &str, inode: u64) -> Vec<RawFd> {
    let of_file = |line: &str| -> Option<RawFd> {
        let words: Vec<&str> = line.strip_prefix("tfd:")?.split_whitespace().collect();
        let found = words.iter().find_map(|word| word.strip_prefix("ino:"))?;
        let is_meant = u64::from_str_radix(found, 16) == Ok(inode);
        words.first()?.parse().ok().filter(|_| is_meant)
    };
    info.lines().filter_map(of_file).collect()
}

/// Removes a file from an epoll instance, which knows it by these numbers of another process: a child
/// has it by the same.
fn remove(epoll: &OwnedFd, socket: BorrowedFd<'_>, numbers: &[RawFd]) -> io::Result<()> {
    let behind = numbers.iter().max().map_or(0, |most| most + 1);
    in_child(|| {
        // Out of the way of all these numbers.
        let epoll = rustix::io::fcntl_dupfd_cloexec(epoll, behind)?;
        let socket = rustix::io::fcntl_dupfd_cloexec(socket, behind)?;
        let delete = |&number: &RawFd| -> io::Result<()> {
            sys::place(socket.as_raw_fd(), number)?;
            Ok(epoll::delete(epoll.as_fd(), sys::permanent(number))?)
        };
        // One that fails keeps the others from nothing.
        numbers.iter().map(delete).fold(Ok(()), Result::and)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_is_read_as_the_kernel_tells_it() {
        let info = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t2062\n\
                    tfd:       21 events:       19 data:               15  pos:0 ino:3b9a sdev:8\n\
                    tfd:        7 events: 40000001 data: 7fff00000007  pos:0 ino:3b9b sdev:8\n";
        assert_eq!(watched(info, 0x3b9a), [21]);
        assert_eq!(watched(info, 0x3b9b), [7]);
        assert!(watched(info, 2062).is_empty());
    }
}
