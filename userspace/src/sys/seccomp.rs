//! seccomp(2) with notifications to user space; see seccomp_unotify(2).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

pub use libc::{seccomp_notif as Notification, sock_filter as Instruction};

/// `SECCOMP_IOCTL_NOTIF_RECV`, `SECCOMP_IOCTL_NOTIF_SEND` and `SECCOMP_IOCTL_NOTIF_ADDFD` of
/// linux/seccomp.h: the direction, the letter `!`, and the sizes of the structures.
const RECEIVE: libc::Ioctl = request(READ_AND_WRITE, 0, size_of::<libc::seccomp_notif>());
const SEND: libc::Ioctl = request(READ_AND_WRITE, 1, size_of::<libc::seccomp_notif_resp>());
const ADD: libc::Ioctl = request(WRITE, 3, size_of::<libc::seccomp_notif_addfd>());

const WRITE: u32 = 1;
const READ_AND_WRITE: u32 = 3;

const fn request(direction: u32, number: u32, size: usize) -> libc::Ioctl {
    (direction << 30 | (size as u32) << 16 | (b'!' as u32) << 8 | number) as libc::Ioctl
}

/// What becomes of a system call that was notified of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is carried out.
    Continue,
    /// It is not, and returns this: an errno, or 0.
    Return(i32),
}

/// Whether there is a filter on this process.
pub fn is_filtered() -> bool {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP) == 2 }
}

/// Puts a filter on this process and all that it will start; returns where its notifications come.
///
/// # Errors
/// What seccomp(2) says: `EBUSY` if there is such a filter already.
pub fn listen(program: &[Instruction]) -> io::Result<OwnedFd> {
    let program = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_ptr().cast_mut(),
    };
    // A signal does not interrupt a call that has been received.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
        | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
        | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: `program` and what it points to outlive the call, which reads them only.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Receives a notification. Waits for one, so that it must be known that there is.
///
/// # Errors
/// What seccomp_unotify(2) says: `ENOENT` if the caller has been interrupted meanwhile.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // SAFETY: an all-zero structure is valid, and is what the kernel asks for.
    let mut notification: Notification = unsafe { std::mem::zeroed() };
    // SAFETY: `notification` is of the size in the request and outlives the call.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut notification) };
    super::check(result).map(|_| notification)
}

/// Answers a notification.
///
/// # Errors
/// What seccomp_unotify(2) says: `ENOENT` if the caller is gone.
pub fn answer(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    let (error, flags) = match answer {
        Answer::Continue => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        Answer::Return(errno) => (-errno, 0),
    };
    let mut response = libc::seccomp_notif_resp {
        id,
        val: 0,
        error,
        flags,
    };
    // SAFETY: `response` is of the size in the request and outlives the call.
    super::check(unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw mut response) }).map(drop)
}

/// Gives the caller that a notification is of a descriptor, in place of the one that it has by that
/// number.
///
/// # Errors
/// What seccomp_unotify(2) says: `ENOENT` if the caller is gone.
pub fn replace_descriptor(
    listener: BorrowedFd<'_>,
    id: u64,
    number: u32,
    descriptor: BorrowedFd<'_>,
    closed_by_exec: bool,
) -> io::Result<()> {
    let flags = if closed_by_exec { libc::O_CLOEXEC } else { 0 };
    let mut added = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
        srcfd: descriptor.as_raw_fd() as u32,
        newfd: number,
        newfd_flags: flags as u32,
    };
    // SAFETY: `added` is of the size in the request and outlives the call.
    super::check(unsafe { libc::ioctl(listener.as_raw_fd(), ADD, &raw mut added) }).map(drop)
}
