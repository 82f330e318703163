//! Has a command listen elsewhere than it asks to: on a socket of its starter, or at another address
//! while something else listens at its own.
//!
//! A seccomp filter stops bind(2) of the command and of all that it starts, and init answers it. The
//! command sees a call that went well. Servers tend to remove their own Unix socket of before, and some look
//! first whether another serves it; here it is not their own, so it is not removed, and nobody seems to be
//! there. The mode and the owner that they give to it are given to the file where it is instead.
//!
//! Invariant: calls that concern no listener of the plan are carried out as ever.

use std::{
    fs::{self, Permissions},
    io,
    mem::offset_of,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::{
            ffi::OsStringExt as _,
            fs::{PermissionsExt as _, chown},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{OFlags, fcntl_getfl},
    io::Errno,
    net::{SocketAddrUnix, SocketType, sockopt},
};

use super::caller::{Rights, descriptor_of, is_closed_by_exec, read, read_path, until_nul};
use crate::{
    apart::in_child,
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

/// The calls that are stopped for a Unix socket besides bind(2).
const ON_UNIX: &[libc::c_long] = &[
    libc::SYS_connect,
    libc::SYS_unlinkat,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
];

/// What is to be done with a file.
enum Deed {
    Remove,
    SetMode(u32),
    SetOwner(Option<u32>, Option<u32>),
}

/// The filter that stops the calls that may concern these listeners.
pub fn program(bound: &[Bound]) -> Vec<Instruction> {
    use libc::{BPF_ABS, BPF_IMM, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    let load = |offset: usize| statement(BPF_LD | BPF_W | BPF_ABS, offset as u32);
    let is = |value: u32, yes: u8, no: u8| jump(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no);
    let is_unix = |bound: &Bound| matches!(bound.asked, Listener::Unix { .. });
    let mut calls = vec![libc::SYS_bind as u32];
    if bound.iter().any(is_unix) {
        calls.extend(ON_UNIX.iter().map(|&call| call as u32));
    }
    let count = calls.len() as u8;
    let mut filter = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        is(NATIVE, 0, count + 1),
        load(offset_of!(libc::seccomp_data, nr)),
    ];
    filter.extend((0..count).map(|place| is(calls[usize::from(place)], count - place, 0)));
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
        let (answer, bound) = match libc::c_long::from(call.data.nr) {
            libc::SYS_bind => match self.bind(&call) {
                Ok(None) => (Answer::Continue, None),
                Ok(bound) => (Answer::Return(0), bound),
                Err(error) => (Answer::Return(errno(&error)), None),
            },
            libc::SYS_connect if self.is_asked(&call) => (Answer::Return(libc::ECONNREFUSED), None),
            libc::SYS_connect => (Answer::Continue, None),
            _ => match self.change(&call) {
                Ok(false) => (Answer::Continue, None),
                Ok(true) => (Answer::Return(0), None),
                Err(error) => (Answer::Return(errno(&error)), None),
            },
        };
        match seccomp::answer(self.listener(), call.id, answer) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            answered => answered.map(|()| bound),
        }
    }

    /// Binds a socket as planned, if there is a plan for it.
    fn bind(&self, call: &Notification) -> io::Result<Option<usize>> {
        let [number, address, length, ..] = call.data.args;
        let asked = read_listener(call.pid, address, length);
        let Some(place) = asked.and_then(|asked| self.place(call.pid, &asked)) else {
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
                let address = SocketAddrUnix::new(path)?;
                let rights = Rights::of(call.pid)?;
                in_child(|| {
                    rights.take()?;
                    Ok(rustix::net::bind(&socket, &address)?)
                })?;
            }
            Instead::Handed(handed) => {
                let handed = self.handed(*handed);
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

    /// Which listener of the plan a process means.
    fn place(&self, pid: u32, asked: &Listener) -> Option<usize> {
        let mut bound = self.bound.iter();
        bound.position(|bound| is_same(pid, &bound.asked, asked))
    }

    /// Whether a process connects to one of these Unix sockets.
    fn is_asked(&self, call: &Notification) -> bool {
        let [_, address, length, ..] = call.data.args;
        match read_listener(call.pid, address, length) {
            Some(asked @ Listener::Unix { .. }) => self.place(call.pid, &asked).is_some(),
            _ => false,
        }
    }

    /// Does what is to be done with the file of one of these Unix sockets, where it is instead; returns whether
    /// it is one.
    fn change(&self, call: &Notification) -> io::Result<bool> {
        let named = file_call(call).and_then(|(folder, name, deed)| {
            let path = read_path(call.pid, name)?;
            let is_known = folder == libc::AT_FDCWD || path.is_absolute();
            let place = self.place(call.pid, &Listener::Unix { path })?;
            is_known.then_some((place, deed))
        });
        let Some((place, deed)) = named else {
            return Ok(false);
        };
        let with_file = |change: &dyn Fn(PathBuf) -> io::Result<()>| {
            let file = self.file(place)?.ok_or(Errno::NOENT)?;
            let rights = Rights::of(call.pid)?;
            in_child(|| rights.take().and_then(|()| change(file)))
        };
        match deed {
            Deed::Remove => {}
            Deed::SetMode(mode) => {
                with_file(&|file| fs::set_permissions(file, Permissions::from_mode(mode)))?;
            }
            Deed::SetOwner(user, group) => with_file(&|file| chown(file, user, group))?,
        }
        Ok(true)
    }

    /// The file of a listener, where it is instead.
    fn file(&self, place: usize) -> io::Result<Option<PathBuf>> {
        let listener = match &self.bound[place].instead {
            Instead::At(listener) => Some(listener.clone()),
            Instead::Handed(number) => Listener::of(self.handed(*number))?,
        };
        Ok(listener.and_then(|listener| listener.file(Path::new(""))))
    }

    fn handed(&self, number: usize) -> BorrowedFd<'static> {
        sys::permanent(self.first + number as RawFd)
    }
}

/// What a call is to do with which file: the folder, where the name is in memory, and the deed.
fn file_call(call: &Notification) -> Option<(RawFd, u64, Deed)> {
    let [first, second, third, fourth, ..] = call.data.args;
    let owner = |user: u64, group: u64| {
        // -1 is for the one that it has.
        let [user, group] = [user, group].map(|id| Some(id as u32).filter(|&id| id != u32::MAX));
        Deed::SetOwner(user, group)
    };
    let folder = first as RawFd;
    Some(match libc::c_long::from(call.data.nr) {
        libc::SYS_unlinkat => (folder, second, Deed::Remove),
        libc::SYS_fchmodat | libc::SYS_fchmodat2 => (folder, second, Deed::SetMode(third as u32)),
        libc::SYS_fchownat => (folder, second, owner(third, fourth)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink => (libc::AT_FDCWD, first, Deed::Remove),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chmod => (libc::AT_FDCWD, first, Deed::SetMode(second as u32)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chown | libc::SYS_lchown => (libc::AT_FDCWD, first, owner(second, third)),
        _ => return None,
    })
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::Wanted;

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
        for asked in ["tcp:127.0.0.1:80", "unix:/run/a.sock"] {
            let Ok(Wanted::Exactly(asked)) = asked.parse() else {
                panic!("{asked} is no listener");
            };
            let instead = Instead::Handed(0);
            let program = program(&[Bound { asked, instead }]);
            let is_mark = |instruction: &Instruction| instruction.k == MARK;
            assert!(program.iter().any(is_mark));
            for (at, instruction) in program.iter().enumerate() {
                let furthest = at + 1 + usize::from(instruction.jt.max(instruction.jf));
                assert!(furthest < program.len() || instruction.code == 6);
            }
        }
    }
}
