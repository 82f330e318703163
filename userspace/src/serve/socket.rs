//! The listening socket of a site, which the gateway owns and its instances share.
//!
//! Connections wait in it while the site sleeps. The flags and options of a socket belong to all
//! who have it: they are those that the server had set on its own.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            fs::FileTypeExt as _,
            net::{SocketAddr as UnixAddress, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, SocketFlags, SocketType, acceptfrom_with, bind, getsockname, listen,
        socket_with, sockopt,
    },
};

use super::{keeper::Kept, places::is_any_port};
use crate::{edit::SocketTraits, listener::Listener, sys};

/// How long nothing is tried without descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// A socket that listens.
#[derive(Debug)]
pub struct Socket {
    pub listener: Listener,
    pub descriptor: Arc<OwnedFd>,
    /// Its file; none if there is none, or if a service manager has the socket too: the file is his.
    file: Option<PathBuf>,
}

impl Socket {
    /// Listens at an address, with a socket as the server had it.
    ///
    /// # Errors
    /// `AddrInUse` if something listens there; what socket(2), bind(2) and listen(2) say.
    pub fn bind(listener: &Listener, traits: &SocketTraits) -> io::Result<Self> {
        let descriptor = match listener {
            Listener::Tcp { address } => bind_tcp(*address)?,
            Listener::Unix { path } => bind_unix(path)?,
        };
        let mut socket = Self::with(listener.clone(), descriptor, traits)?;
        if is_any_port(listener) {
            // The kernel has chosen one.
            socket.listener = Listener::Tcp {
                address: getsockname(&socket.descriptor)?.try_into()?,
            };
        }
        Ok(socket)
    }

    /// One that listens already, as the server had it.
    ///
    /// # Errors
    /// As of [`Self::with`].
    pub fn kept(kept: Kept, traits: &SocketTraits) -> io::Result<Self> {
        let mut socket = Self::with(kept.listener, kept.descriptor, traits)?;
        socket.file.take_if(|_| kept.is_passed);
        Ok(socket)
    }

    /// A socket that is to listen as the server had it.
    ///
    /// # Errors
    /// What listen(2), setsockopt(2) and ioctl(2) say.
    fn with(listener: Listener, descriptor: OwnedFd, traits: &SocketTraits) -> io::Result<Self> {
        if let Listener::Tcp { .. } = listener {
            set_tcp(&descriptor, traits)?;
        }
        listen(&descriptor, traits.backlog as i32)?;
        rustix::io::ioctl_fionbio(&descriptor, traits.nonblocking)?;
        let file = match &listener {
            Listener::Unix { path } if abstract_name(path).is_none() => Some(path.clone()),
            _ => None,
        };
        Ok(Self {
            listener,
            descriptor: Arc::new(descriptor),
            file,
        })
    }

    /// The same socket for another server, as that one had its own.
    ///
    /// # Errors
    /// What dup(2) says, and as of [`Self::with`].
    pub fn again(&self, traits: &SocketTraits) -> io::Result<Self> {
        let socket = Self::with(self.listener.clone(), self.descriptor.try_clone()?, traits)?;
        Ok(Self {
            file: self.file.clone(),
            ..socket
        })
    }

    /// Waits until a connection waits in it.
    pub async fn watch(&self) {
        // No longer than this: a server that serves must not wake the gateway.
        let watched = self.descriptor.try_clone().and_then(sys::readable);
        let seen = match &watched {
            Ok(watched) => watched.readable().await.map(drop),
            Err(_) => Err(io::ErrorKind::Other.into()),
        };
        if seen.is_err() {
            // Descriptors have run out. Others will be closed.
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether a connection waits in it.
    pub fn has_connection(&self) -> bool {
        let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut polled, Some(&now)) == Ok(1)
    }

    /// Ends the connections that wait in it. Nobody else may take one meanwhile.
    pub fn refuse_waiting(&self) {
        while self.has_connection() {
            let Ok((connection, _)) = acceptfrom_with(&self.descriptor, SocketFlags::CLOEXEC)
            else {
                break;
            };
            // The other end is told at once that nothing was done with what it has sent.
            let _ = sockopt::set_socket_linger(&connection, Some(Duration::ZERO));
        }
    }

    /// Removes the file of a Unix socket.
    pub fn remove(&self) {
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    Ok(socket)
}

/// Sets what connections inherit.
fn set_tcp(socket: &OwnedFd, traits: &SocketTraits) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, traits.nodelay)?;
    sockopt::set_socket_keepalive(socket, traits.keepalive.is_some())?;
    if let Some(keepalive) = traits.keepalive {
        let seconds = |number: u32| Duration::from_secs(number.into());
        sockopt::set_tcp_keepcnt(socket, keepalive.probes)?;
        sockopt::set_tcp_keepidle(socket, seconds(keepalive.idle))?;
        sockopt::set_tcp_keepintvl(socket, seconds(keepalive.interval))?;
    }
    Ok(())
}

/// The name of a socket that has no file.
fn abstract_name(path: &Path) -> Option<&[u8]> {
    path.as_os_str().as_bytes().strip_prefix(b"@")
}

fn bind_unix(path: &Path) -> io::Result<OwnedFd> {
    if let Some(name) = abstract_name(path) {
        let address = UnixAddress::from_abstract_name(name)?;
        return UnixListener::bind_addr(&address).map(OwnedFd::from);
    }
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    // What nobody listens on was left by one that was killed.
    if is_socket && UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path).map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAITS: SocketTraits = SocketTraits {
        nonblocking: true,
        backlog: 1,
        keepalive: None,
        nodelay: false,
    };

    #[test]
    fn the_file_of_a_socket_that_was_passed_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.sock");
        let kept = Kept {
            name: "server".into(),
            listener: Listener::Unix { path: path.clone() },
            descriptor: UnixListener::bind(&path).unwrap().into(),
            is_passed: true,
        };
        Socket::kept(kept, &TRAITS).unwrap().remove();
        assert!(path.exists());
    }
}
