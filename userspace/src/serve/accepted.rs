//! Whether an instance has accepted a connection: a look at its own sockets, and no others.
//!
//! /proc/net/tcp has a line for each connection of the host, ended ones in TIME_WAIT included. To read
//! it takes the more time the busier the host is, while the instance stands still and all sites wait.

use std::{
    fs::{self, DirEntry},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
};

use rustix::{
    io::Errno,
    net::getpeername,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::{
    listener::Listener,
    tree::{HostPid, is_gone},
};

/// Whether a process that stands still has a connection that was made to a listener. One that cannot be
/// looked at may have one.
pub fn has_accepted(pid: HostPid, listener: &Listener) -> bool {
    look(pid, listener).unwrap_or_else(|error| !is_gone(&error))
}

fn look(pid: HostPid, listener: &Listener) -> io::Result<bool> {
    let process = Pid::from_raw(pid.0).ok_or(Errno::SRCH)?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let mut descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?;
    Ok(descriptors.any(|descriptor| {
        let is_meant = descriptor.and_then(|found| is_of(listener, process.as_fd(), &found));
        is_meant.unwrap_or_else(|error| !is_gone(&error))
    }))
}

/// Whether one of the descriptors of a process is a connection that was made to a listener.
fn is_of(listener: &Listener, process: BorrowedFd, descriptor: &DirEntry) -> io::Result<bool> {
    let target = fs::read_link(descriptor.path())?;
    let number = descriptor.file_name().to_string_lossy().parse();
    let (true, Ok(number)) = (
        target.as_os_str().as_bytes().starts_with(b"socket:"),
        number,
    ) else {
        return Ok(false);
    };
    let socket = pidfd_getfd(process, number, PidfdGetfdFlags::empty())?;
    // A listening socket has no other end.
    if getpeername(&socket).is_err() {
        return Ok(false);
    }
    let own = Listener::of(&socket)?;
    Ok(own.is_some_and(|own| listener.clashes_with(&own)))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::{
            linux::net::SocketAddrExt as _,
            unix::net::{SocketAddr, UnixListener, UnixStream},
        },
        process::Command,
        thread,
    };

    use nix::unistd::Uid;

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

    #[test]
    fn a_process_that_cannot_be_looked_at_may_have_one() {
        let mut process = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = HostPid(process.id() as i32);
        let address = "127.0.0.1:80".parse().unwrap();
        let listener = Listener::Tcp { address };
        assert!(!has_accepted(pid, &listener));
        // As one without rights, which is a matter of the thread alone.
        let as_nobody = || {
            nix::unistd::setfsuid(Uid::from_raw(65534));
            fs::read_dir(format!("/proc/{pid}/fd")).is_err() == has_accepted(pid, &listener)
        };
        let answered = thread::scope(|scope| scope.spawn(as_nobody).join());
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(answered.unwrap());
        assert!(!has_accepted(pid, &listener));
    }
}
