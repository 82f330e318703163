//! What spans are about, in words: a system call with its file, peer or error.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
};

use probe_ebpf::trace::{self, Span};
use procfs::process::MMapPath;

use super::{
    names::Names,
    record::{Identity, Kept, Record},
};
use crate::watch::{Event, What};

/// Texts that are kept once each.
#[derive(Debug, Default)]
pub struct Texts {
    pub all: Vec<String>,
    known: HashMap<String, u32>,
}

impl Texts {
    pub fn add(&mut self, text: String) -> u32 {
        if let Some(&known) = self.known.get(&text) {
            return known;
        }
        let index = self.all.len() as u32;
        self.all.push(text.clone());
        self.known.insert(text, index);
        index
    }
}

/// Tells what is behind the numbers of spans.
pub struct Describer<'a> {
    record: &'a Record,
    names: Names,
    /// The peers of connected sockets.
    peers: HashMap<Identity, String>,
    /// The paths of files that the kernel itself opened: programs and their dynamic linkers.
    executed: HashMap<Identity, String>,
}

impl<'a> Describer<'a> {
    pub fn new(record: &'a Record, events: &[Event]) -> Self {
        let names = Names::of(record);
        let mut peers = HashMap::new();
        for Kept { name, span, .. } in &record.spans {
            if let (Some(name), true) = (name, is_connect(span))
                && let Some(peer) = peer(&record.names[*name as usize])
            {
                let peer = with_name(&peer, &names, span.start_ns);
                peers.insert((span.device, span.inode), peer);
            }
        }
        Self {
            record,
            names,
            peers,
            executed: executed(record, events),
        }
    }

    /// The names that peers were known by.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What a span is about; nothing if there is nothing to say.
    pub fn describe(&self, kept: &Kept) -> Option<String> {
        let span = &kept.span;
        match span.kind {
            trace::SPAN_FAULT => Some("page fault".to_owned()),
            trace::SPAN_CALL | trace::SPAN_OFF if span.number >= 0 => {
                let name = call_name(span.number);
                let mut text = match self.object(kept) {
                    Some(object) => format!("{name} {object}"),
                    None => name,
                };
                if let (trace::SPAN_CALL, Some(error)) = (span.kind, error_name(span.result)) {
                    text += &format!(" ({error})");
                }
                Some(text)
            }
            _ => None,
        }
    }

    /// The file or peer of a call.
    fn object(&self, kept: &Kept) -> Option<String> {
        let span = &kept.span;
        if let Some(name) = kept.name {
            let name = &self.record.names[name as usize];
            return match is_connect(span) {
                true => peer(name).map(|peer| with_name(&peer, &self.names, span.start_ns)),
                false if name.is_empty() => None,
                false => Some(String::from_utf8_lossy(name).into_owned()),
            };
        }
        let identity = (span.device, span.inode);
        self.path(identity)
            .or_else(|| self.peers.get(&identity).cloned())
    }

    /// The path of a file that was opened.
    pub fn path(&self, identity: Identity) -> Option<String> {
        let Some(&name) = self.record.paths.get(&identity) else {
            return self.executed.get(&identity).cloned();
        };
        let name = &self.record.names[name as usize];
        Some(String::from_utf8_lossy(name).into_owned())
    }
}

/// A device number as the kernel itself has it (`MKDEV` of include/linux/kdev_t.h).
fn kernel_device(major: u32, minor: u32) -> u32 {
    major << 20 | minor
}

/// The programs that were executed, and what processes that are still there have mapped.
fn executed(record: &Record, events: &[Event]) -> HashMap<Identity, String> {
    let mut paths = HashMap::new();
    for event in events {
        if let What::Exec { path } = &event.what
            && let Ok(file) = std::fs::metadata(path)
        {
            let device = file.dev();
            let device = kernel_device(libc::major(device), libc::minor(device));
            paths.insert((device, file.ino()), path.to_string_lossy().into_owned());
        }
    }
    let alive = record
        .alive()
        .map(|(_, thread)| record.threads[thread as usize].tgid);
    for tgid in alive.collect::<HashSet<_>>() {
        let maps = procfs::process::Process::new(tgid as i32).and_then(|process| process.maps());
        for map in maps.into_iter().flatten() {
            if let MMapPath::Path(path) = map.pathname {
                let device = kernel_device(map.dev.0 as u32, map.dev.1 as u32);
                let path = path.to_string_lossy().into_owned();
                paths.entry((device, map.inode)).or_insert(path);
            }
        }
    }
    paths
}

/// The name of a system call.
pub fn call_name(number: i32) -> String {
    match syscalls::Sysno::new(number as usize) {
        Some(call) => call.name().to_owned(),
        None => format!("system call {number}"),
    }
}

/// A peer with the name that it was known by, if it was.
fn with_name(peer: &str, names: &Names, at_ns: u64) -> String {
    let address = peer.parse().ok().map(|peer: SocketAddr| peer.ip());
    match address.and_then(|address| names.find(address, at_ns)) {
        Some((name, _)) => format!("{name} ({peer})"),
        None => peer.to_owned(),
    }
}

/// Whether the span is of connect(2).
pub fn is_connect(span: &Span) -> bool {
    span.kind == trace::SPAN_CALL && span.number == syscalls::Sysno::connect.id()
}

/// The name of the error that a call returned.
pub fn error_name(result: i64) -> Option<String> {
    /// Restarted by the kernel, of include/linux/errno.h: no error that a program sees.
    const RESTARTED: std::ops::RangeInclusive<i64> = 512..=516;
    match -result {
        error if RESTARTED.contains(&error) => None,
        error @ 1..4096 => Some(match nix::errno::Errno::from_raw(error as i32) {
            nix::errno::Errno::UnknownErrno => format!("error {error}"),
            known => format!("{known:?}"),
        }),
        _ => None,
    }
}

/// The address in a `struct sockaddr`, as a person writes it.
pub fn peer(address: &[u8]) -> Option<String> {
    let family = u16::from_ne_bytes(address.get(..2)?.try_into().ok()?);
    let port = || Some(u16::from_be_bytes(address.get(2..4)?.try_into().ok()?));
    let ip: IpAddr = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(address.get(4..8)?).ok()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(<[u8; 16]>::try_from(address.get(8..24)?).ok()?).into(),
        libc::AF_UNIX => {
            let path = address.get(2..)?;
            let name = match path.strip_prefix(b"\0") {
                Some(name) => [b"@", name].concat(),
                None => path.split(|&byte| byte == 0).next()?.to_vec(),
            };
            return Some(String::from_utf8_lossy(&name).into_owned());
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port()?).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_written_as_people_do() {
        assert_eq!(
            peer(&[2, 0, 0x15, 0x38, 10, 0, 0, 5, 0, 0, 0, 0]).unwrap(),
            "10.0.0.5:5432"
        );
        assert_eq!(peer(b"\x01\x00/run/db.sock\0").unwrap(), "/run/db.sock");
        assert_eq!(peer(b"\x01\x00\0name").unwrap(), "@name");
        assert_eq!(peer(&[2, 0, 1]), None);
        assert_eq!(peer(&[16, 0, 0, 0]), None);
    }

    #[test]
    fn errors_have_names_unless_the_kernel_restarts_the_call() {
        assert_eq!(error_name(-2).unwrap(), "ENOENT");
        assert_eq!(error_name(-512), None);
        assert_eq!(error_name(3), None);
        assert_eq!(call_name(-5), "system call -5");
    }
}
