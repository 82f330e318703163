//! Lets a restored server have a listening socket of its caller in place of the captured one.
//!
//! The socket becomes a regular file in the image, which CRIU takes from its caller by `inherit_fd`.

use std::{fs, io, os::unix::ffi::OsStrExt as _, path::Path};

use super::{
    EditError, FILES, fdinfo_entry, file_entry,
    image::{Image, Kind},
    inet_sk_entry,
    listeners::{tcp_listener, unix_listener},
    memory::inherited_file,
    sk_opts_entry, tcp_opts_entry, unix_sk_entry,
    wire::{Message, Value},
};
use crate::listener::Listener;

/// What a server has set on a listening socket. All but the first two is inherited by the
/// connections that it takes (tcp(7), socket(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketTraits {
    /// O_NONBLOCK, which is of the socket, whoever holds it.
    pub nonblocking: bool,
    /// As given to listen(2), at most.
    pub backlog: u32,
    pub keepalive: Option<Keepalive>,
    /// TCP_NODELAY
    pub nodelay: bool,
}

/// When the kernel looks whether the other end of a connection is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    pub probes: u32,
    /// Seconds until the first.
    pub idle: u32,
    /// Seconds between two.
    pub interval: u32,
}

/// CRIU's name of the socket with that number among those that are handed over.
pub fn handed_name(number: usize) -> String {
    format!("warmimg-listener-{number}")
}

/// The listener that a file of the image is.
fn listener(entry: &Message) -> Option<Listener> {
    let socket = |field| Message::parse(entry.bytes(field)?);
    let tcp = socket(file_entry::ISK).and_then(|socket| tcp_listener(&socket));
    let unix = || socket(file_entry::USK).and_then(|socket| unix_listener(&socket));
    let tcp = tcp.map(|address| Listener::Tcp { address });
    tcp.or_else(unix)
}

/// What the server has set on a listener; nothing if the image has no such listener.
///
/// # Errors
/// See [`EditError`].
pub fn socket_traits(images: &Path, wanted: &Listener) -> Result<Option<SocketTraits>, EditError> {
    let image = Image::read(&images.join(FILES), Kind::Files)?;
    let mut entries = image.entries.iter();
    let entry = entries.find(|entry| listener(entry).as_ref() == Some(wanted));
    Ok(entry.map(traits))
}

fn traits(entry: &Message) -> SocketTraits {
    let socket = |field| Message::parse(entry.bytes(field)?);
    let number = |message: &Option<Message>, field| {
        message
            .as_ref()
            .and_then(|message| message.number(field))
            .unwrap_or(0) as u32
    };
    let is_nonblocking = |flags: u32| flags & libc::O_NONBLOCK as u32 != 0;
    let (tcp, unix) = (socket(file_entry::ISK), socket(file_entry::USK));
    if tcp.is_none() {
        return SocketTraits {
            nonblocking: is_nonblocking(number(&unix, unix_sk_entry::FLAGS)),
            backlog: number(&unix, unix_sk_entry::BACKLOG),
            ..SocketTraits::default()
        };
    }
    let part = |field| Message::parse(tcp.as_ref()?.bytes(field)?);
    let (options, of_tcp) = (part(inet_sk_entry::OPTS), part(inet_sk_entry::TCP_OPTS));
    let keepalive = Keepalive {
        probes: number(&of_tcp, tcp_opts_entry::KEEPCNT),
        idle: number(&of_tcp, tcp_opts_entry::KEEPIDLE),
        interval: number(&of_tcp, tcp_opts_entry::KEEPINTVL),
    };
    let keeps_alive = number(&options, sk_opts_entry::SO_KEEPALIVE) == 1;
    SocketTraits {
        nonblocking: is_nonblocking(number(&tcp, inet_sk_entry::FLAGS)),
        backlog: number(&tcp, inet_sk_entry::BACKLOG),
        keepalive: keeps_alive.then_some(keepalive),
        nodelay: number(&of_tcp, tcp_opts_entry::NODELAY) == 1,
    }
}

/// Makes the listeners of a view of an image files that CRIU inherits, by the name of their number
/// in `handed`, from 1 on.
///
/// # Errors
/// See [`EditError`].
pub fn hand_over(view: &Path, handed: &[Listener]) -> Result<(), EditError> {
    let mut image = Image::read(&view.join(FILES), Kind::Files)?;
    let mut ids = vec![];
    for entry in &mut image.entries {
        let number =
            listener(entry).and_then(|found| handed.iter().position(|wanted| *wanted == found));
        if let (Some(number), Some(id)) = (number, entry.number(file_entry::ID)) {
            *entry = inherited_file(id, &handed_name(number + 1), libc::O_RDWR);
            ids.push(id);
        }
    }
    image.write()?;
    let read = |source| EditError::Read {
        path: view.into(),
        source,
    };
    for file in fs::read_dir(view).map_err(read)? {
        let path = file.map_err(read)?.path();
        let name = path.file_name().unwrap_or_default().as_bytes();
        if name.starts_with(b"fdinfo-") {
            describe_descriptors(&path, &ids)?;
        }
    }
    Ok(())
}

/// Has the descriptors of a process say that they are of regular files, where these files are.
fn describe_descriptors(path: &Path, ids: &[u64]) -> Result<(), EditError> {
    let mut image = Image::read(path, Kind::Fdinfo)?;
    let mut is_changed = false;
    for entry in &mut image.entries {
        let id = entry.number(fdinfo_entry::ID);
        if id.is_some_and(|id| ids.contains(&id)) {
            entry.set(fdinfo_entry::TYPE, [Value::Varint(file_entry::TYPE_REG)]);
            is_changed = true;
        }
    }
    if !is_changed {
        return Ok(());
    }
    // The view has links to the files of the stored image.
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(EditError::Write {
            path: path.into(),
            source,
        }),
        _ => image.write(),
    }
}
