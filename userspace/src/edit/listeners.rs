//! Moves listening sockets of an image to other addresses.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::Path,
};

use super::{
    EditError, FILES, file_entry,
    image::{Image, Kind},
    inet_sk_entry, sk_opts_entry, unix_sk_entry,
    wire::{Message, Value},
};
use crate::listener::Listener;

/// Makes a view of an image in an empty folder in which listeners have moved, each from its first
/// address to its second, and, if asked, share their ports with others by SO_REUSEPORT. What does
/// not differ is linked.
///
/// # Errors
/// See [`EditError`].
pub fn move_listeners(
    images: &Path,
    view: &Path,
    moves: &[(Listener, Listener)],
    reuse_port: bool,
) -> Result<(), EditError> {
    let read = |source| EditError::Read {
        path: images.into(),
        source,
    };
    for entry in fs::read_dir(images).map_err(read)? {
        let entry = entry.map_err(read)?;
        let target = view.join(entry.file_name());
        let made = match entry.file_name() == FILES {
            true => fs::copy(entry.path(), &target).map(drop),
            false => symlink(entry.path(), &target),
        };
        made.map_err(|source| EditError::Write {
            path: target,
            source,
        })?;
    }
    rename_listeners(view, moves, reuse_port)
}

/// Has listeners of an image be at other addresses, each at its second instead of its first, and, if
/// asked, share their ports with others by SO_REUSEPORT.
///
/// # Errors
/// See [`EditError`].
pub fn rename_listeners(
    images: &Path,
    moves: &[(Listener, Listener)],
    reuse_port: bool,
) -> Result<(), EditError> {
    let mut image = Image::read(&images.join(FILES), Kind::Files)?;
    for entry in &mut image.entries {
        entry.edit(file_entry::ISK, |socket| {
            let Some(address) = tcp_listener(socket) else {
                return;
            };
            let Some(new) = moved(moves, &Listener::Tcp { address }) else {
                return;
            };
            move_tcp(socket, new);
            if reuse_port {
                socket.edit(inet_sk_entry::OPTS, |options| {
                    options.set(sk_opts_entry::SO_REUSEPORT, [Value::Varint(1)]);
                });
            }
        });
        entry.edit(file_entry::USK, |socket| {
            let Some(listener) = unix_listener(socket) else {
                return;
            };
            if let Some(Listener::Unix { path }) = moved(moves, &listener) {
                let path = path.as_os_str().as_bytes();
                let name = match path.strip_prefix(b"@") {
                    Some(name) => [b"\0", name].concat(),
                    None => [path, b"\0"].concat(),
                };
                socket.set(unix_sk_entry::NAME, [Value::Bytes(name)]);
                socket.remove(&[unix_sk_entry::NAME_DIR]);
            }
        });
    }
    image.write()
}

fn moved<'a>(moves: &'a [(Listener, Listener)], old: &Listener) -> Option<&'a Listener> {
    let found = moves.iter().find(|(from, _)| from == old)?;
    Some(&found.1)
}

/// Whether a socket listens, or is to as soon as the tree goes on.
fn may_listen(state: Option<u64>) -> bool {
    matches!(state, Some(inet_sk_entry::LISTEN | inet_sk_entry::CLOSE))
}

/// The path of a socket, if it may listen.
pub(super) fn unix_listener(socket: &Message) -> Option<Listener> {
    if !may_listen(socket.number(unix_sk_entry::STATE)) {
        return None;
    }
    let name = socket.bytes(unix_sk_entry::NAME)?;
    let path = match name.strip_prefix(b"\0") {
        Some(name) => [b"@", name].concat(),
        None => name.strip_suffix(b"\0").unwrap_or(name).to_vec(),
    };
    let path = Path::new(std::ffi::OsStr::from_bytes(&path)).into();
    Some(Listener::Unix { path })
}

/// The address of a socket, if it may listen.
pub(super) fn tcp_listener(socket: &Message) -> Option<SocketAddr> {
    let is_tcp = socket.number(inet_sk_entry::PROTO) == Some(libc::IPPROTO_TCP as u64);
    if !is_tcp || !may_listen(socket.number(inet_sk_entry::STATE)) {
        return None;
    }
    // Words of the address as it stands in memory.
    let words = socket.numbers(inet_sk_entry::SRC_ADDR)?;
    let bytes: Vec<u8> = words
        .into_iter()
        .flat_map(|word| (word as u32).to_ne_bytes())
        .collect();
    let ip = match socket.number(inet_sk_entry::FAMILY)? as i32 {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    let port = socket.number(inet_sk_entry::SRC_PORT)?;
    Some(SocketAddr::new(ip, port as u16))
}

fn move_tcp(socket: &mut Message, new: &Listener) {
    let Listener::Tcp { address } = new else {
        return;
    };
    let (family, bytes) = match address.ip() {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let (words, _) = bytes.as_chunks::<4>();
    let word = |word: &[u8; 4]| Value::Varint(u32::from_ne_bytes(*word).into());
    socket.set(inet_sk_entry::SRC_ADDR, words.iter().map(word));
    // There is no other end, but it has the length of the family.
    socket.set(
        inet_sk_entry::DST_ADDR,
        words.iter().map(|_| Value::Varint(0)),
    );
    if family == libc::AF_INET {
        socket.remove(&[inet_sk_entry::V6ONLY]);
    }
    socket.remove(&[inet_sk_entry::IFNAME]);
    socket.replace_number(inet_sk_entry::FAMILY, family as u64);
    socket.replace_number(inet_sk_entry::SRC_PORT, address.port().into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_moves_to_another_address_and_family() {
        let mut socket = Message::default();
        socket.set(inet_sk_entry::FAMILY, [Value::Varint(2)]);
        socket.set(inet_sk_entry::PROTO, [Value::Varint(6)]);
        socket.set(inet_sk_entry::STATE, [Value::Varint(inet_sk_entry::LISTEN)]);
        socket.set(inet_sk_entry::SRC_PORT, [Value::Varint(80)]);
        let loopback = u32::from_ne_bytes([127, 0, 0, 1]);
        socket.set(inet_sk_entry::SRC_ADDR, [Value::Varint(loopback.into())]);
        assert_eq!(tcp_listener(&socket), "127.0.0.1:80".parse().ok());
        for text in ["[::1]:8080", "0.0.0.0:1", "[2001:db8::2]:443"] {
            let address = text.parse().unwrap();
            move_tcp(&mut socket, &Listener::Tcp { address });
            assert_eq!(tcp_listener(&socket), Some(address));
            let lengths = [inet_sk_entry::SRC_ADDR, inet_sk_entry::DST_ADDR]
                .map(|field| socket.numbers(field).unwrap().len());
            assert_eq!(lengths, [if address.is_ipv4() { 1 } else { 4 }; 2]);
        }
        // `TCP_ESTABLISHED`
        socket.replace_number(inet_sk_entry::STATE, 1);
        assert_eq!(tcp_listener(&socket), None);
        // Nor is a UDP socket a listener, though its state is that of one that is only bound.
        socket.replace_number(inet_sk_entry::STATE, inet_sk_entry::CLOSE);
        assert!(tcp_listener(&socket).is_some());
        socket.replace_number(inet_sk_entry::PROTO, 17);
        assert_eq!(tcp_listener(&socket), None);
    }
}
