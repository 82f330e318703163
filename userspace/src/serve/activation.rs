//! Listening sockets that a service manager has opened and passes on, as sd_listen_fds(3) describes.
//!
//! They are taken for where they listen, or else for what they are called; and closed by an exec.

use std::{io, os::fd::AsFd};

use rustix::net::{SocketType, sockopt};

use super::keeper::Kept;
use crate::{listener::Listener, sys};

/// What was passed to this process.
pub struct Passed {
    pub sockets: Vec<Kept>,
    /// The names of those that do not listen, which nothing is done with.
    pub unfit: Vec<String>,
}

/// Takes what was passed to this process; nothing if it was for another. Once only.
///
/// # Errors
/// If LISTEN_PID, LISTEN_FDS or LISTEN_FDNAMES are not what they should be.
pub fn passed() -> io::Result<Passed> {
    let (mut sockets, mut unfit) = (vec![], vec![]);
    // Names for another process are none for these.
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(Passed { sockets, unfit });
    }
    for (number, name) in sd_notify::listen_fds_with_names()? {
        let passed = sys::permanent(number);
        match listener(passed) {
            Some(listener) => sockets.push(Kept {
                name,
                listener,
                descriptor: sys::own_listener(number),
                is_passed: true,
            }),
            None => unfit.push(name),
        }
    }
    Ok(Passed { sockets, unfit })
}

/// Where a socket listens, if it does.
fn listener(socket: impl AsFd) -> Option<Listener> {
    let listens = sockopt::socket_acceptconn(&socket).ok()?;
    let is_stream = sockopt::socket_type(&socket).ok()? == SocketType::STREAM;
    if !listens || !is_stream {
        return None;
    }
    Listener::of(socket).ok()?
}

#[cfg(test)]
mod tests {
    use std::{net, os::unix};

    use super::*;

    #[test]
    fn sockets_are_known_by_where_they_listen() {
        let tcp = net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = tcp.local_addr().unwrap();
        assert_eq!(listener(&tcp), Some(Listener::Tcp { address }));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let unix = unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(listener(&unix), Some(Listener::Unix { path: path.clone() }));
        let connection = unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(listener(&connection), None);
        let datagrams = net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        assert_eq!(listener(&datagrams), None);
    }
}
