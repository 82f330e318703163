//! `warmimg proxy`: started by the gateway, never by a person.

use std::{
    io,
    os::fd::{OwnedFd, RawFd},
};

use rustix::net::{AddressFamily, sockopt};

use crate::{
    error::Error,
    proxy::{self, ProxyError},
    sys,
};

/// Where the gateway puts the control socket.
const CONTROL: RawFd = 3;

/// Runs the proxy to its end.
///
/// # Errors
/// See [`proxy::ProxyError`].
pub async fn run() -> Result<u8, Error> {
    let control = control().map_err(ProxyError::NoControl)?;
    proxy::run(control).await?;
    Ok(0)
}

fn control() -> io::Result<OwnedFd> {
    let control = rustix::io::fcntl_dupfd_cloexec(sys::permanent(CONTROL), 0)?;
    match sockopt::socket_domain(&control)? {
        AddressFamily::UNIX => Ok(control),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
