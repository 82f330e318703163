//! Listening sockets: what they are called, and those of this host.

use std::{
    collections::HashMap,
    ffi::OsString,
    fmt, fs,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    os::{fd::AsFd, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use procfs::{
    net::{TcpNetEntry, TcpState},
    process::Process,
};
use rustix::{
    io::Errno,
    net::{SocketAddrUnix, getsockname},
};
use serde::{Deserialize, Serialize};

use crate::{sock_diag, tree::HostPid};

/// Where a server takes connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Listener {
    Tcp { address: SocketAddr },
    Unix { path: PathBuf },
}

impl Listener {
    /// Whether both cannot listen at the same time: the same path, or the same port with an
    /// address in common.
    pub fn clashes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp { address: a }, Self::Tcp { address: b }) => {
                a.port() == b.port()
                    && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
            }
            (a, b) => a == b,
        }
    }
}

impl Listener {
    /// Where a socket is; nothing if it is of another kind, or has no name.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn of(socket: impl AsFd) -> Result<Option<Self>, Errno> {
        let address = getsockname(socket)?;
        if let Ok(address) = SocketAddr::try_from(address.clone()) {
            return Ok(Some(Self::Tcp { address }));
        }
        let named = |unix: SocketAddrUnix| -> Option<Self> {
            let name = match unix.path_bytes() {
                Some(path) => path.to_vec(),
                None => [b"@", unix.abstract_name()?].concat(),
            };
            let path = OsString::from_vec(name).into();
            Some(Self::Unix { path })
        };
        Ok(SocketAddrUnix::try_from(address).ok().and_then(named))
    }

    /// The file of a Unix socket of a server that was started in `folder`.
    pub fn file(&self, folder: &Path) -> Option<PathBuf> {
        match self {
            Self::Unix { path } if !is_abstract(path) => Some(folder.join(path)),
            _ => None,
        }
    }
}

/// Replaces listeners, each by the second where it is the first of these.
pub fn rename(listeners: &mut [Listener], names: &[(Listener, Listener)]) {
    for listener in listeners {
        if let Some((_, after)) = names.iter().find(|(before, _)| before == listener) {
            *listener = after.clone();
        }
    }
}

/// Whether a path stands for a name in the abstract namespace; see unix(7).
pub fn is_abstract(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().starts_with(b"@")
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address } => write!(f, "tcp:{address}"),
            // As ss(8) shows one without a name.
            Self::Unix { path } if path.as_os_str().is_empty() => f.write_str("unix:*"),
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Whether something else listens where this would, or would not share it with a socket of the user
/// that is given: the kernel is asked by binding to it.
pub fn is_taken(address: SocketAddr, shared_by: Option<u32>) -> bool {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let bound =
        socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).and_then(|socket| {
            // As servers do: connections that linger in TIME_WAIT are no hindrance.
            sockopt::set_socket_reuseaddr(&socket, true)?;
            sockopt::set_socket_reuseport(&socket, shared_by.is_some())?;
            // Sockets share a port if they are of the same user.
            let user = shared_by.map(rustix::fs::Uid::from_raw);
            rustix::fs::fchown(&socket, user, None)?;
            bind(&socket, &address)
        });
    bound == Err(Errno::ADDRINUSE)
}

/// An address of version 4, if it stands in one of version 6 (as a socket for both has it).
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether an address is one of this host: the kernel is asked by binding to it.
pub fn is_own(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind((ip, 0)).is_ok()
}

/// The inodes of the listening sockets of the network namespace with which one clashes.
pub fn clashing(wanted: &Listener) -> Vec<u64> {
    // The kernel takes some milliseconds for the table of TCP.
    let found = match wanted {
        Listener::Tcp { .. } => listening_tcp(OWN).collect(),
        Listener::Unix { .. } => parse_unix(&unix_table(OWN)),
    };
    let clash = |(inode, listener): (u64, Listener)| listener.clashes_with(wanted).then_some(inode);
    found.into_iter().filter_map(clash).collect()
}

/// Every listening socket of the network namespace of a process, with its inode.
pub fn all_of(pid: HostPid) -> Vec<(u64, Listener)> {
    let mut found: Vec<_> = listening_tcp(pid).collect();
    found.extend(parse_unix(&unix_table(pid)));
    found
}

fn listening_tcp(pid: HostPid) -> impl Iterator<Item = (u64, Listener)> {
    let listening = tcp_sockets(pid).filter(|entry| entry.state == TcpState::Listen);
    listening.map(|entry| {
        let address = entry.local_address;
        (entry.inode, Listener::Tcp { address })
    })
}

/// A connected socket.
pub struct Connected {
    pub inode: u64,
    pub local: Listener,
    /// None if the other end of a Unix socket is closed, or not accepted yet.
    pub peer: Option<Listener>,
    /// Of the other end, which only Unix sockets tell.
    pub peer_inode: Option<u64>,
}

/// Every connected socket of the network namespace, by TCP or Unix.
pub fn connected() -> Vec<Connected> {
    connected_of(OWN)
}

/// The same of the network namespace of a process. The other ends of Unix sockets are known in our
/// own only.
pub fn connected_of(pid: HostPid) -> Vec<Connected> {
    // One in TIME_WAIT is nobody's any more.
    let is_connected = |state: &TcpState| {
        !matches!(
            state,
            TcpState::Listen | TcpState::Close | TcpState::TimeWait
        )
    };
    let mut found: Vec<_> = tcp_sockets(pid)
        .filter(|entry| is_connected(&entry.state))
        .map(|entry| Connected {
            inode: entry.inode,
            local: Listener::Tcp {
                address: entry.local_address,
            },
            peer: Some(Listener::Tcp {
                address: entry.remote_address,
            }),
            peer_inode: None,
        })
        .collect();
    let text = unix_table(pid);
    let peers = sock_diag::unix_peers().unwrap_or_default();
    let named = |path: &str| Listener::Unix { path: path.into() };
    let paths: HashMap<u64, &str> = unix_sockets(&text)
        .map(|socket| (socket.inode, socket.path))
        .collect();
    let unix = unix_sockets(&text).filter(|socket| !socket.listens && socket.connected);
    found.extend(unix.map(|socket| {
        let peer_inode = peers.get(&socket.inode).copied();
        Connected {
            inode: socket.inode,
            local: named(socket.path),
            peer: peer_inode.map(|inode| named(paths.get(&inode).unwrap_or(&""))),
            peer_inode,
        }
    }));
    found
}

/// Our own ends of the TCP connections that there are, those that wait for being accepted included.
pub fn established() -> Vec<SocketAddr> {
    let is_none = |state: &TcpState| {
        matches!(
            state,
            TcpState::Listen
                | TcpState::Close
                | TcpState::TimeWait
                | TcpState::SynSent
                | TcpState::SynRecv
                | TcpState::NewSynRecv
        )
    };
    let found = tcp_sockets(OWN).filter(|entry| !is_none(&entry.state));
    found.map(|entry| entry.local_address).collect()
}

/// How many connections a Unix socket has, those that wait for being accepted included.
pub fn connections_of(listener: &Listener) -> usize {
    let Listener::Unix { path } = listener else {
        return 0;
    };
    let text = unix_table(OWN);
    let is_connection = |socket: &UnixSocket<'_>| !socket.listens && Path::new(socket.path) == path;
    unix_sockets(&text).filter(is_connection).count()
}

/// This process, as /proc calls it: no process has the pid 0.
const OWN: HostPid = HostPid(0);

fn tcp_sockets(pid: HostPid) -> impl Iterator<Item = TcpNetEntry> {
    let process = match pid {
        OWN => Process::myself(),
        HostPid(pid) => Process::new(pid),
    };
    let read = |read: fn(&Process) -> procfs::ProcResult<Vec<TcpNetEntry>>| {
        process.as_ref().ok().and_then(|process| read(process).ok())
    };
    let (v4, v6) = (read(Process::tcp), read(Process::tcp6));
    v4.into_iter().chain(v6).flatten()
}

fn unix_table(pid: HostPid) -> String {
    let path = match pid {
        OWN => "/proc/self/net/unix".to_owned(),
        pid => format!("/proc/{pid}/net/unix"),
    };
    fs::read_to_string(path).unwrap_or_default()
}

/// A Unix socket of this host.
struct UnixSocket<'a> {
    inode: u64,
    listens: bool,
    connected: bool,
    /// Empty if it has none.
    path: &'a str,
}

/// The sockets in the text of `/proc/net/unix`; see proc_net(5).
fn unix_sockets(text: &str) -> impl Iterator<Item = UnixSocket<'_>> {
    // `__SO_ACCEPTCON` and `SS_CONNECTED` of include/linux/net.h.
    const ACCEPTING: u32 = 0x1_0000;
    const CONNECTED: &str = "03";
    text.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        let flags = u32::from_str_radix(words.nth(3)?, 16).ok()?;
        let state = words.nth(1)?;
        let inode = words.next()?.parse().ok()?;
        // The path is the rest of the line, spaces and all.
        let mut path = line;
        for _ in 0..7 {
            path = path.trim_start().split_once(' ').unwrap_or_default().1;
        }
        Some(UnixSocket {
            inode,
            listens: flags & ACCEPTING != 0,
            connected: state == CONNECTED,
            path,
        })
    })
}

/// The listening ones among them.
pub(crate) fn parse_unix(text: &str) -> Vec<(u64, Listener)> {
    let listening = unix_sockets(text).filter(|socket| socket.listens && !socket.path.is_empty());
    listening
        .map(|socket| {
            let path = socket.path.into();
            (socket.inode, Listener::Unix { path })
        })
        .collect()
}

/// Which of a server's listeners is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// TCP, on any address.
    Port(u16),
    Exactly(Listener),
}

/// The listener to ask: the one that is wanted, or the first.
pub fn choose<'a>(listeners: &'a [Listener], wanted: Option<&Wanted>) -> Option<&'a Listener> {
    let is_meant = |listener: &&Listener| wanted.is_none_or(|wanted| wanted.is(listener));
    listeners.iter().find(is_meant)
}

/// Parses `PORT`, `ADDRESS:PORT`, or the path of a Unix socket, as the server names it.
impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(port) = text.parse::<NonZero<u16>>() {
            return Ok(Self::Port(port.get()));
        }
        let bare = text.strip_prefix("tcp:").unwrap_or(text);
        if let Ok(address) = bare.parse::<SocketAddr>()
            && address.port() != 0
        {
            return Ok(Self::Exactly(Listener::Tcp { address }));
        }
        let path = text.strip_prefix("unix:");
        if let Some(path) = path.or((text.contains('/') || text.starts_with('@')).then_some(text)) {
            return Ok(Self::Exactly(Listener::Unix { path: path.into() }));
        }
        Err("not a port from 1 to 65535, an address with a port, or a path".to_owned())
    }
}

impl Wanted {
    /// As it is parsed.
    pub fn spec(&self) -> String {
        match self {
            Self::Port(port) => port.to_string(),
            Self::Exactly(listener) => listener.to_string(),
        }
    }

    /// Whether this listener is meant.
    pub fn is(&self, listener: &Listener) -> bool {
        match (self, listener) {
            (Self::Port(port), Listener::Tcp { address }) => address.port() == *port,
            (Self::Exactly(wanted), listener) => wanted == listener,
            (Self::Port(_), Listener::Unix { .. }) => false,
        }
    }
}

/// A listener of a server, and where it is to be instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// A port stands for the address that the listener has.
    pub new: Wanted,
    pub old: Wanted,
}

/// Parses `NEW:OLD`, each as [`Wanted`].
impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Addresses have colons of their own: the first place where both sides make sense.
        let parts = text.match_indices(':').find_map(|(place, _)| {
            let (new, old) = (text[..place].parse().ok()?, text[place + 1..].parse().ok()?);
            Some(Self { new, old })
        });
        let publish = parts
            .ok_or("not NEW:OLD, each a port from 1 to 65535, an address with a port, or a path")?;
        let is_unix = |wanted: &Wanted| matches!(wanted, Wanted::Exactly(Listener::Unix { .. }));
        if is_unix(&publish.new) != is_unix(&publish.old) {
            return Err("a Unix socket cannot become one of TCP, nor the other way round".into());
        }
        Ok(publish)
    }
}

impl Publish {
    /// Where a listener moves to, if it is the one that is meant.
    pub fn moves(&self, listener: &Listener) -> Option<Listener> {
        if !self.old.is(listener) {
            return None;
        }
        Some(match (&self.new, listener) {
            (Wanted::Port(port), Listener::Tcp { address }) => Listener::Tcp {
                address: SocketAddr::new(address.ip(), *port),
            },
            (Wanted::Exactly(new), _) => new.clone(),
            (Wanted::Port(_), Listener::Unix { .. }) => return None,
        })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.old, self.new)
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port}"),
            Self::Exactly(listener) => listener.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> Listener {
        Listener::Tcp {
            address: text.parse().unwrap(),
        }
    }

    #[test]
    fn a_wildcard_address_clashes_with_every_address_of_its_port() {
        assert!(tcp("0.0.0.0:80").clashes_with(&tcp("127.0.0.1:80")));
        assert!(tcp("[::]:80").clashes_with(&tcp("127.0.0.1:80")));
        assert!(!tcp("127.0.0.2:80").clashes_with(&tcp("127.0.0.1:80")));
        assert!(!tcp("0.0.0.0:81").clashes_with(&tcp("0.0.0.0:80")));
    }

    #[test]
    fn an_address_is_taken_as_long_as_something_listens() {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = socket.local_addr().unwrap();
        assert!(is_taken(address, None) && is_taken(address, Some(0)));
        drop(socket);
        assert!(!is_taken(address, None) && !is_taken(address, Some(0)));
    }

    #[test]
    fn a_listener_is_meant_by_port_address_or_path() {
        let wanted = |text: &str| text.parse::<Wanted>();
        assert_eq!(wanted("80"), Ok(Wanted::Port(80)));
        assert_eq!(wanted("[::1]:80"), Ok(Wanted::Exactly(tcp("[::1]:80"))));
        let path = PathBuf::from("/run/a.sock");
        assert_eq!(
            wanted("unix:/run/a.sock"),
            Ok(Wanted::Exactly(Listener::Unix { path }))
        );
        for bad in ["0", "70000", "localhost", "", "1.2.3.4", "1.2.3.4:0"] {
            assert!(wanted(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_listener_moves_to_a_port_an_address_or_a_path() {
        let moves = |text: &str, listener: &Listener| {
            text.parse::<Publish>()
                .map(|publish| publish.moves(listener))
        };
        let old = tcp("127.0.0.1:8080");
        for (text, new) in [
            ("8081:8080", "127.0.0.1:8081"),
            ("0.0.0.0:8081:8080", "0.0.0.0:8081"),
            ("8081:127.0.0.1:8080", "127.0.0.1:8081"),
            ("[::1]:80:127.0.0.1:8080", "[::1]:80"),
        ] {
            assert_eq!(moves(text, &old), Ok(Some(tcp(new))), "{text}");
        }
        assert_eq!(moves("8081:80", &old), Ok(None));
        let unix = |path: &str| Listener::Unix { path: path.into() };
        assert_eq!(
            moves("/b.sock:/a.sock", &unix("/a.sock")),
            Ok(Some(unix("/b.sock")))
        );
        for bad in [
            "8081",
            "8081:",
            "70000:80",
            "8081:/a.sock",
            "localhost:8080",
        ] {
            assert!(bad.parse::<Publish>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_listening_unix_sockets_are_found() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/a.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 4712 /run/a.sock\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 4713\n";
        let path = PathBuf::from("/run/a.sock");
        assert_eq!(parse_unix(text), [(4711, Listener::Unix { path })]);
    }
}
