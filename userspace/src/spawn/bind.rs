//! Has a command listen elsewhere than it asks to: on a socket of its starter, or at another address
//! while something else listens at its own.
//!
//! A seccomp filter stops bind(2) of the command and of all that it starts, and init answers it. The
//! command sees a call that went well. Its own Unix socket from before, which servers tend to remove
//! first, is not removed, as it is not its own here.
//!
//! Invariant: calls that concern no listener of the plan are carried out as ever.

use std::{
    fs, io,
    io::IoSliceMut,
    mem::offset_of,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};
use procfs::process::Process;
use rustix::{
    fs::{OFlags, fcntl_getfl},
    net::{SocketAddrUnix, SocketType, sockopt},
    process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::{
    guard::filter::{MARK, NATIVE, jump, statement},
    listener::{Listener, canonical},
    sys::{
        self,
        seccomp::{self, Answer, Instruction, Notification},
    },
};

/// A listener of a command that is to be elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Where the command asks to listen.
    pub asked: Listener,
    pub instead: Instead,
}

/// Where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instead {
    /// On the socket of that number among those that are handed over, which listens already.
    Handed(usize),
    /// At another address, by its own socket.
    At(Listener),
}

/// The calls that are stopped: bind(2), and those that remove a file.
const CALLS: &[u32] = &[
    libc::SYS_bind as u32,
    libc::SYS_unlinkat as u32,
    #[cfg(target_arch = "x86_64")]
    {
        libc::SYS_unlink as u32
    },
];

/// The filter that stops them.
pub fn program() -> Vec<Instruction> {
    use libc::{BPF_ABS, BPF_IMM, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    let load = |offset: usize| statement(BPF_LD | BPF_W | BPF_ABS, offset as u32);
    let is = |value: u32, yes: u8, no: u8| jump(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no);
    let count = CALLS.len() as u8;
    let mut filter = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        is(NATIVE, 0, count + 1),
        load(offset_of!(libc::seccomp_data, nr)),
    ];
    filter.extend((0..count).map(|place| is(CALLS[usize::from(place)], count - place, 0)));
    filter.extend([
        statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW),
        statement(BPF_LD | BPF_IMM, MARK),
        statement(BPF_RET | BPF_K, libc::SECCOMP_RET_USER_NOTIF),
    ]);
    filter
}

/// What answers the calls.
pub struct Binder<'a> {
    listener: OwnedFd,
    bound: &'a [Bound],
    /// The number of the first socket that is handed over.
    first: RawFd,
}

impl<'a> Binder<'a> {
    pub fn new(listener: OwnedFd, bound: &'a [Bound], first: RawFd) -> Self {
        Self {
            listener,
            bound,
            first,
        }
    }

    /// Becomes readable with a call.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Answers a call; returns which listener is there from now on, if one is.
    ///
    /// # Errors
    /// What seccomp_unotify(2) says.
    pub fn serve(&self) -> io::Result<Option<usize>> {
        let call = match seccomp::receive(self.listener()) {
            Ok(call) => call,
            // It was interrupted, or its process has ended.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_bind = call.data.nr == libc::SYS_bind as i32;
        let (answer, bound) = match is_bind {
            true => match self.bind(&call) {
                Ok(None) => (Answer::Continue, None),
                Ok(bound) => (Answer::Return(0), bound),
                Err(error) => (
                    Answer::Return(error.raw_os_error().unwrap_or(libc::EIO)),
                    None,
                ),
            },
            false if self.keeps(&call) => (Answer::Return(0), None),
            false => (Answer::Continue, None),
        };
        match seccomp::answer(self.listener(), call.id, answer) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            answered => answered.map(|()| bound),
        }
    }

    /// Binds a socket as planned, if there is a plan for it.
    fn bind(&self, call: &Notification) -> io::Result<Option<usize>> {
        let [number, address, length, ..] = call.data.args;
        let Some(asked) = read_listener(call.pid, address, length) else {
            return Ok(None);
        };
        let mut bound = self.bound.iter();
        let Some(place) = bound.position(|bound| is_same(call.pid, &bound.asked, &asked)) else {
            return Ok(None);
        };
        let socket = descriptor_of(call.pid, number as i32)?;
        // The same port by UDP is another.
        if sockopt::socket_type(&socket)? != SocketType::STREAM {
            return Ok(None);
        }
        match &self.bound[place].instead {
            Instead::At(Listener::Tcp { address }) => rustix::net::bind(&socket, address)?,
            Instead::At(Listener::Unix { path }) => {
                rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            }
            Instead::Handed(handed) => {
                let handed = sys::permanent(self.first + *handed as RawFd);
                let is_nonblocking = fcntl_getfl(&socket)?.contains(OFlags::NONBLOCK);
                rustix::io::ioctl_fionbio(handed, is_nonblocking)?;
                let closed_by_exec = is_closed_by_exec(call.pid, number as i32)?;
                seccomp::replace_descriptor(
                    self.listener(),
                    call.id,
                    number as u32,
                    handed,
                    closed_by_exec,
                )?;
            }
        }
        Ok(Some(place))
    }

    /// Whether a file that is to be removed is a socket that listens.
    fn keeps(&self, call: &Notification) -> bool {
        let [first, second, ..] = call.data.args;
        let (folder, name) = match call.data.nr == libc::SYS_unlinkat as i32 {
            true => (first as i32, second),
            false => (libc::AT_FDCWD, first),
        };
        let Some(path) = read_path(call.pid, name) else {
            return false;
        };
        if folder != libc::AT_FDCWD && !path.is_absolute() {
            return false;
        }
        let removed = Listener::Unix { path };
        let mut bound = self.bound.iter();
        bound.any(|bound| is_same(call.pid, &bound.asked, &removed))
    }
}

/// Whether what a process asks for is this listener.
fn is_same(pid: u32, listener: &Listener, asked: &Listener) -> bool {
    match (listener, asked) {
        (Listener::Tcp { address: a }, Listener::Tcp { address: b }) => {
            canonical(*a) == canonical(*b)
        }
        (Listener::Unix { path: a }, Listener::Unix { path: b }) => {
            a == b || {
                let folder = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
                listener.file(&folder).is_some() && listener.file(&folder) == asked.file(&folder)
            }
        }
        _ => false,
    }
}

/// The address that a process gives to bind(2).
fn read_listener(pid: u32, address: u64, length: u64) -> Option<Listener> {
    let mut bytes = [0; size_of::<libc::sockaddr_un>()];
    let length = usize::try_from(length).ok()?.min(bytes.len());
    let read = read(pid, address, &mut bytes[..length])?;
    parse_listener(&bytes[..read])
}

/// An address as the kernel takes it.
fn parse_listener(bytes: &[u8]) -> Option<Listener> {
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = || Some(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
    match i32::from(family) {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?);
            let address = SocketAddr::from((ip, port()?));
            Some(Listener::Tcp { address })
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?);
            let address = SocketAddr::from((ip, port()?));
            Some(Listener::Tcp { address })
        }
        libc::AF_UNIX => {
            let name = &bytes[2..];
            let path = match name.strip_prefix(b"\0") {
                Some(name) => [b"@", name].concat(),
                None => until_nul(name).to_vec(),
            };
            let path = PathBuf::from(std::ffi::OsString::from_vec(path));
            Some(Listener::Unix { path })
        }
        _ => None,
    }
}

/// A path in the memory of a process, if it is no longer than one of a socket.
fn read_path(pid: u32, address: u64) -> Option<PathBuf> {
    let mut bytes = [0; 256];
    let read = read(pid, address, &mut bytes)?;
    let name = until_nul(&bytes[..read]);
    (name.len() < read).then(|| Path::new(std::ffi::OsStr::from_bytes(name)).to_path_buf())
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == 0);
    &bytes[..end.unwrap_or(bytes.len())]
}

/// Reads memory of a process; less than asked for if it ends before.
fn read(pid: u32, address: u64, target: &mut [u8]) -> Option<usize> {
    const PAGE: usize = 4096;
    let base = usize::try_from(address).ok()?;
    // What is behind the page may not be there.
    let within = target.len().min(PAGE - base % PAGE);
    let len = target.len();
    let pieces = [
        RemoteIoVec { base, len: within },
        RemoteIoVec {
            base: base.checked_add(within)?,
            len: len - within,
        },
    ];
    let pid = Pid::from_raw(pid as i32);
    process_vm_readv(pid, &mut [IoSliceMut::new(target)], &pieces).ok()
}

/// Our own descriptor of a file that a process has open.
fn descriptor_of(tid: u32, number: RawFd) -> io::Result<OwnedFd> {
    // A notification is of a thread, and a pidfd of a process.
    let status = Process::new(tid as i32).and_then(|thread| thread.status());
    let process = status.map_err(|_| io::ErrorKind::NotFound)?.tgid;
    let process = rustix::process::Pid::from_raw(process).ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    Ok(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?)
}

fn is_closed_by_exec(pid: u32, number: RawFd) -> io::Result<bool> {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    Ok(flags.unwrap_or(0) & libc::O_CLOEXEC != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_takes_them() {
        let family = |family: i32| (family as u16).to_ne_bytes().to_vec();
        let port = 8080_u16.to_be_bytes();
        let ipv4 = [&family(libc::AF_INET)[..], &port, &[127, 0, 0, 1], &[0; 8]].concat();
        let ipv6 = [
            &family(libc::AF_INET6)[..],
            &port,
            &[0; 4],
            &Ipv6Addr::LOCALHOST.octets(),
            &[0; 4],
        ];
        let unix = |name: &[u8]| [&family(libc::AF_UNIX)[..], name].concat();
        for (bytes, shown) in [
            (ipv4.clone(), Some("tcp:127.0.0.1:8080")),
            (ipv6.concat(), Some("tcp:[::1]:8080")),
            (unix(b"/run/a.sock\0\0"), Some("unix:/run/a.sock")),
            (unix(b"/run/a.sock"), Some("unix:/run/a.sock")),
            (unix(b"\0name"), Some("unix:@name")),
            (ipv4[..7].to_vec(), None),
            (family(libc::AF_NETLINK), None),
            (vec![1], None),
        ] {
            let read = parse_listener(&bytes).map(|listener| listener.to_string());
            assert_eq!(read.as_deref(), shown, "{bytes:?}");
        }
    }

    #[test]
    fn the_filter_is_known_again_and_jumps_within_itself() {
        let program = program();
        let is_mark = |instruction: &Instruction| instruction.k == MARK;
        assert!(program.iter().any(is_mark));
        for (at, instruction) in program.iter().enumerate() {
            let furthest = at + 1 + usize::from(instruction.jt.max(instruction.jf));
            assert!(furthest < program.len() || instruction.code == 6);
        }
    }
}
