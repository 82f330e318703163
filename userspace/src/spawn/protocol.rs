//! What the supervisor and init tell each other, over a socket that keeps message boundaries.
//!
//! Messages are three numbers, so that init parses nothing and allocates little. What is longer
//! (the command, CRIU's path) init has in its memory, being a fork of the supervisor.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Orders to init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Fork the command, suspended before its exec.
    Start,
    /// Let the suspended command exec.
    Go,
    /// Start CRIU as this user and group (0, 0 for root).
    Criu { uid: u32, gid: u32 },
    /// From now on this process is the one whose exit ends the instance.
    Main { pid: u32 },
    /// Send a signal to the main process.
    Signal { number: u32 },
    /// Go on without a supervisor.
    Detach,
}

/// What init tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The namespaces are set up.
    Ready,
    /// The command was forked, with this pid in its namespace.
    Started { pid: u32 },
    /// The command has been executed.
    Running,
    /// CRIU was started; its socket comes along.
    Criu { pid: u32 },
    /// CRIU has exited, with this wait status.
    CriuExited { status: u32 },
    /// The order was carried out.
    Done,
    /// A step failed.
    Failed { step: Step, errno: u32 },
    /// Nothing runs any more; the wait status of the main process.
    Exited { status: u32 },
    /// The command listens where the plan has it listen instead, by the place in the plan.
    Bound { place: u32 },
    /// The memory that processes are to share is there.
    Shared,
}

/// The steps that can fail in init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    Mounts = 1,
    Proc = 2,
    Fork = 3,
    Credentials = 4,
    WorkingDirectory = 5,
    Exec = 6,
    Kerndat = 8,
    Enter = 9,
    Group = 10,
    Terminals = 11,
    Guard = 12,
    Memory = 13,
    Bind = 14,
    Shared = 15,
}

impl Step {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        [
            Self::Mounts,
            Self::Proc,
            Self::Fork,
            Self::Credentials,
            Self::WorkingDirectory,
            Self::Exec,
            Self::Kerndat,
            Self::Enter,
            Self::Group,
            Self::Terminals,
            Self::Guard,
            Self::Memory,
            Self::Bind,
            Self::Shared,
        ]
        .into_iter()
        .find(|step| *step as u32 == number)
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mounts => "make the mount namespace private",
            Self::Proc => "mount a private /proc",
            Self::Fork => "fork",
            Self::Credentials => "change the user",
            Self::WorkingDirectory => "enter the working directory",
            Self::Exec => "execute the program",
            Self::Enter => "enter the namespaces",
            Self::Kerndat => "mount a tmpfs for CRIU's kernel data",
            Self::Group => "enter its control group",
            Self::Terminals => "mount a private /dev/pts",
            Self::Memory => "open the files with the memory",
            Self::Guard => "set up the guard of mapped memory",
            Self::Shared => "make the memory that processes share",
            Self::Bind => "have it listen elsewhere (seccomp)",
        })
    }
}

type Words = [u32; 3];

impl Order {
    fn to_words(self) -> Words {
        match self {
            Self::Start => [1, 0, 0],
            Self::Go => [2, 0, 0],
            Self::Criu { uid, gid } => [3, uid, gid],
            Self::Main { pid } => [4, pid, 0],
            Self::Signal { number } => [5, number, 0],
            Self::Detach => [7, 0, 0],
        }
    }

    fn from_words([kind, a, b]: Words) -> Option<Self> {
        Some(match kind {
            1 => Self::Start,
            2 => Self::Go,
            3 => Self::Criu { uid: a, gid: b },
            4 => Self::Main { pid: a },
            5 => Self::Signal { number: a },
            7 => Self::Detach,
            _ => return None,
        })
    }
}

impl Notice {
    fn to_words(self) -> Words {
        match self {
            Self::Ready => [1, 0, 0],
            Self::Started { pid } => [2, pid, 0],
            Self::Running => [3, 0, 0],
            Self::Criu { pid } => [4, pid, 0],
            Self::CriuExited { status } => [5, status, 0],
            Self::Done => [6, 0, 0],
            Self::Failed { step, errno } => [7, step as u32, errno],
            Self::Exited { status } => [8, status, 0],
            Self::Bound { place } => [9, place, 0],
            Self::Shared => [10, 0, 0],
        }
    }

    fn from_words([kind, a, b]: Words) -> Option<Self> {
        Some(match kind {
            1 => Self::Ready,
            2 => Self::Started { pid: a },
            3 => Self::Running,
            4 => Self::Criu { pid: a },
            5 => Self::CriuExited { status: a },
            6 => Self::Done,
            7 => Self::Failed {
                step: Step::from_number(a)?,
                errno: b,
            },
            8 => Self::Exited { status: a },
            9 => Self::Bound { place: a },
            10 => Self::Shared,
            _ => return None,
        })
    }
}

/// Sends an order.
///
/// # Errors
/// What sendmsg(2) says; `EPIPE` if init is gone.
pub fn send_order(socket: BorrowedFd<'_>, order: Order) -> io::Result<()> {
    send(socket, order.to_words(), None)
}

/// Receives an order; `None` if the supervisor is gone.
///
/// # Errors
/// What recvmsg(2) says; `InvalidData` for a message that is none.
pub fn receive_order(socket: BorrowedFd<'_>) -> io::Result<Option<Order>> {
    let Some((words, _)) = receive(socket)? else {
        return Ok(None);
    };
    Order::from_words(words).ok_or_else(invalid).map(Some)
}

/// Sends a notice, with a descriptor if there is one to hand over.
///
/// # Errors
/// What sendmsg(2) says.
pub fn send_notice(
    socket: BorrowedFd<'_>,
    notice: Notice,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    send(socket, notice.to_words(), descriptor)
}

/// Receives a notice and the descriptor that came with it; `None` if init is gone.
///
/// # Errors
/// What recvmsg(2) says, `WouldBlock` if there is none now; `InvalidData` for a message that is
/// none.
pub fn receive_notice(socket: BorrowedFd<'_>) -> io::Result<Option<(Notice, Option<OwnedFd>)>> {
    let Some((words, descriptor)) = receive(socket)? else {
        return Ok(None);
    };
    let notice = Notice::from_words(words).ok_or_else(invalid)?;
    Ok(Some((notice, descriptor)))
}

/// Sends nothing but a descriptor.
///
/// # Errors
/// What sendmsg(2) says.
pub fn send_descriptor(socket: BorrowedFd<'_>, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    send(socket, [0; 3], Some(descriptor))
}

/// Receives a descriptor.
///
/// # Errors
/// What recvmsg(2) says; `InvalidData` if there comes none.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let received = receive(socket)?;
    received
        .and_then(|(_, descriptor)| descriptor)
        .ok_or_else(invalid)
}

fn invalid() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "not a message of init's protocol",
    )
}

fn send(
    socket: BorrowedFd<'_>,
    words: Words,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes = words.map(u32::to_ne_bytes).concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Words, Option<OwnedFd>)>> {
    let mut bytes = [0; size_of::<Words>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.bytes != bytes.len() {
        return Err(invalid());
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    let mut words = [0; 3];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    Ok(Some((words, descriptor)))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_as_sent() {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        send_order(a.as_fd(), Order::Criu { uid: 33, gid: 34 }).unwrap();
        send_order(a.as_fd(), Order::Detach).unwrap();
        assert_eq!(
            receive_order(b.as_fd()).unwrap(),
            Some(Order::Criu { uid: 33, gid: 34 })
        );
        assert_eq!(receive_order(b.as_fd()).unwrap(), Some(Order::Detach));

        let file = std::fs::File::open("/dev/null").unwrap();
        let failed = Notice::Failed {
            step: Step::Exec,
            errno: 2,
        };
        send_notice(b.as_fd(), failed, Some(file.as_fd())).unwrap();
        let (notice, descriptor) = receive_notice(a.as_fd()).unwrap().unwrap();
        assert_eq!(notice, failed);
        assert!(descriptor.is_some());

        drop(b);
        assert!(receive_notice(a.as_fd()).unwrap().is_none());
    }
}
