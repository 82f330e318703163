//! Who is at the other end of a Unix socket. /proc does not tell; netlink does, see sock_diag(7).

use std::{collections::HashMap, io};

use bytemuck::{Pod, Zeroable, bytes_of, pod_read_unaligned};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Of include/uapi/linux/sock_diag.h and unix_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;

/// `struct nlmsghdr`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct unix_diag_req`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Request {
    family: u8,
    protocol: u8,
    pad: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie: [u32; 2],
}

/// `struct unix_diag_msg`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Answer {
    family: u8,
    kind: u8,
    state: u8,
    pad: u8,
    inode: u32,
    cookie: [u32; 2],
}

/// `struct nlattr`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Attribute {
    len: u16,
    kind: u16,
}

/// The Unix sockets of the network namespace whose other end some process holds: the inodes of
/// both. Datagram sockets are left out: CRIU connects them anew.
///
/// # Errors
/// Fails if the kernel has no `unix_diag`.
pub fn unix_peers() -> io::Result<HashMap<u64, u64>> {
    /// More than the kernel puts into one answer.
    const LARGEST: usize = 1 << 16;
    let protocol = Some(netlink::SOCK_DIAG);
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    let header = Header {
        len: (size_of::<Header>() + size_of::<Request>()) as u32,
        kind: SOCK_DIAG_BY_FAMILY,
        flags: (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16,
        ..Header::zeroed()
    };
    let request = Request {
        family: libc::AF_UNIX as u8,
        states: u32::MAX,
        show: UDIAG_SHOW_PEER,
        ..Request::zeroed()
    };
    let bytes = [bytes_of(&header), bytes_of(&request)].concat();
    send(&socket, &bytes, SendFlags::empty())?;
    let mut peers = HashMap::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        // The kernel answers at once: there is nothing to wait for.
        let (len, _) = recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT)?;
        if take(&buffer[..len], &mut peers)? {
            return Ok(peers);
        }
    }
}

/// Adds the connections of a datagram; returns whether it was the last.
pub(crate) fn take(datagram: &[u8], peers: &mut HashMap<u64, u64>) -> io::Result<bool> {
    for (header, body) in records(datagram, |header: &Header| header.len as usize) {
        match i32::from(header.kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
            _ => peers.extend(connection(body)),
        }
    }
    Ok(false)
}

/// Both ends in an answer, if there is another.
fn connection(body: &[u8]) -> Option<(u64, u64)> {
    let (answer, attributes) = body.split_at_checked(size_of::<Answer>())?;
    let answer: Answer = pod_read_unaligned(answer);
    if i32::from(answer.kind) == libc::SOCK_DGRAM {
        return None;
    }
    let mut attributes = records(attributes, |attribute: &Attribute| attribute.len.into());
    let (_, peer) = attributes.find(|(attribute, _)| attribute.kind == UNIX_DIAG_PEER)?;
    // 0 if it is in no process: closed, or not accepted yet.
    let peer = u32::from_ne_bytes(peer.try_into().ok()?);
    (peer != 0).then_some((answer.inode.into(), peer.into()))
}

/// Netlink's records, each a head that tells the length of the whole, and a body; see netlink(7).
fn records<T: Pod>(mut bytes: &[u8], len: fn(&T) -> usize) -> impl Iterator<Item = (T, &[u8])> {
    const ALIGNMENT: usize = 4;
    std::iter::from_fn(move || {
        let head = pod_read_unaligned(bytes.get(..size_of::<T>())?);
        let len = len(&head);
        let body = bytes.get(size_of::<T>()..len)?;
        bytes = bytes
            .get(len.next_multiple_of(ALIGNMENT)..)
            .unwrap_or_default();
        Some((head, body))
    })
}

#[cfg(test)]
mod tests {
    use std::os::{
        fd::AsRawFd,
        unix::net::{UnixDatagram, UnixStream},
    };

    use super::*;

    fn inode(socket: &impl AsRawFd) -> u64 {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let text = link.to_str().unwrap();
        let digits = text.trim_start_matches("socket:[").trim_end_matches(']');
        digits.parse().unwrap()
    }

    #[test]
    fn the_ends_of_a_stream_know_each_other() {
        let (a, b) = UnixStream::pair().unwrap();
        let (datagrams, _other) = UnixDatagram::pair().unwrap();
        let peers = unix_peers().unwrap();
        assert_eq!(peers.get(&inode(&a)), Some(&inode(&b)));
        assert_eq!(peers.get(&inode(&b)), Some(&inode(&a)));
        assert_eq!(peers.get(&inode(&datagrams)), None);
        drop(b);
        assert_eq!(unix_peers().unwrap().get(&inode(&a)), None);
    }
}
