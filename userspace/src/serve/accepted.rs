//! Whether an instance has accepted a connection: a look at its own sockets, and no others.
//!
//! /proc/net/tcp has a line for each connection of the host, ended ones in TIME_WAIT included. To read
//! it takes the more time the busier the host is, while the instance stands still and all sites wait.

use std::{
    ffi::OsString,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStringExt as _,
    },
};

use procfs::process::{FDTarget, Process};
use rustix::{
    io::Errno,
    net::{SocketAddrUnix, getpeername, getsockname},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::{listener::Listener, tree::HostPid};

/// Whether a process that stands still has a connection that was made to a listener. One that cannot be
/// looked at may have one.
pub fn has_accepted(pid: HostPid, listener: &Listener) -> bool {
    let Some(own) = Pid::from_raw(pid.0) else {
        return false;
    };
    let pidfd = match pidfd_open(own, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(error) => return error != Errno::SRCH,
    };
    let Ok(descriptors) = Process::new(pid.0).and_then(|process| process.fd()) else {
        return false;
    };
    let sockets = descriptors
        .flatten()
        .filter(|descriptor| matches!(descriptor.target, FDTarget::Socket(_)));
    sockets
        .map(|socket| local(pidfd.as_fd(), socket.fd))
        .any(|local| match local {
            Ok(local) => local.is_some_and(|local| listener.clashes_with(&local)),
            Err(error) => !matches!(error, Errno::SRCH | Errno::BADF),
        })
}

/// The own end of a connection; `None` of a socket that has no other end.
fn local(pidfd: BorrowedFd, number: i32) -> Result<Option<Listener>, Errno> {
    let socket = pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())?;
    if getpeername(&socket).is_err() {
        return Ok(None);
    }
    let address = getsockname(&socket)?;
    if let Ok(address) = address.clone().try_into() {
        return Ok(Some(Listener::Tcp { address }));
    }
    Ok(SocketAddrUnix::try_from(address).ok().and_then(|unix| {
        let name = match unix.path_bytes() {
            Some(path) => path.to_vec(),
            None => [b"@", unix.abstract_name()?].concat(),
        };
        let path = OsString::from_vec(name).into();
        Some(Listener::Unix { path })
    }))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::{
            linux::net::SocketAddrExt as _,
            unix::net::{SocketAddr, UnixListener, UnixStream},
        },
    };

    use super::*;

    #[test]
    fn only_what_was_accepted_is_found() {
        let own = HostPid(std::process::id() as i32);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let listener = Listener::Tcp { address };
        assert!(!has_accepted(own, &listener));
        let client = TcpStream::connect(address).unwrap();
        // It waits in the listener.
        assert!(!has_accepted(own, &listener));
        let accepted = tcp.accept().unwrap();
        assert!(has_accepted(own, &listener));
        drop(accepted);
        assert!(!has_accepted(own, &listener));
        drop(client);

        let name = format!("warmimg-accepted-{own}");
        let unix = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixListener::bind_addr(&unix).unwrap();
        let path = format!("@{name}").into();
        let listener = Listener::Unix { path };
        let _client = UnixStream::connect_addr(&unix).unwrap();
        assert!(!has_accepted(own, &listener));
        let _accepted = socket.accept().unwrap();
        assert!(has_accepted(own, &listener));
    }
}
