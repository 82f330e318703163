//! Follows a process tree with eBPF and tells when it reached its capture point.
//!
//! The only module that knows aya. The probe is attached as long as the [`Watch`] lives.

pub mod btf;
pub mod connections;
pub mod interruptions;
pub(crate) mod opens;
pub mod recording;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, RingBuf},
    programs::{BtfTracePoint, ProgramError},
};
use aya_log::EbpfLogger;
use probe_ebpf as probe;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

pub use self::{
    opens::{FileId, Opened, Opens},
    recording::Recording,
};
use crate::{
    listener::{Listener, Wanted},
    sys,
    tree::HostPid,
};

/// The probe, built from `probe-ebpf` by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe"));

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The programs of the probe and the raw tracepoints they attach to.
const PROGRAMS: [(&str, &str); 4] = [
    ("process_fork", "sched_process_fork"),
    ("process_exec", "sched_process_exec"),
    ("process_exit", "sched_process_exit"),
    TCP_STATE,
];

const TCP_STATE: (&str, &str) = ("tcp_state", "inet_sock_set_state");

/// Another, whose place is taken by one that also records.
const SYSTEM_CALL: (&str, &str) = ("system_call", "sys_enter");

/// Why the tree cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("cannot read the kernel's type information, {BTF_PATH}")]
    NoBtf(#[source] io::Error),
    #[error("cannot use the kernel's type information, {BTF_PATH}")]
    Btf(#[from] btf::BtfError),
    #[error("cannot parse the kernel's type information")]
    AyaBtf(#[from] aya::BtfError),
    #[error("the kernel does not load the eBPF probe")]
    Load(#[from] aya::EbpfError),
    #[error("the kernel refuses the eBPF program for the tracepoint {tracepoint}")]
    Program {
        tracepoint: &'static str,
        source: Box<ProgramError>,
    },
    #[error("cannot use a map of the eBPF probe")]
    Map(#[from] MapError),
    #[error("the eBPF probe lacks {0}")]
    Incomplete(&'static str),
    #[error("cannot wait for events of the eBPF probe")]
    Wait(#[source] io::Error),
    #[error("cannot tell which network namespace this is")]
    Network(#[source] io::Error),
    #[error("cannot tell which processors are online")]
    Processors(#[source] io::Error),
}

/// When the tree is frozen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapturePoint {
    /// When a process first waits for a connection on a listening socket: accept, or epoll, poll
    /// or select with the listener in the set
    #[default]
    Ready,
    /// When a socket first listens
    Listen,
    /// As listen, with the image rewound to just before: the restored process itself performs
    /// listen(2)
    PreListen,
    /// At the first accept(2) family call
    Accept,
    /// When a process first forks after a socket has listened: before a pre-forking server makes
    /// its workers
    Fork,
    /// When the requests of --warmup have been answered and their connections are gone
    Warm,
    /// While it ran, by `warmimg checkpoint`
    #[value(skip)]
    Checkpoint,
}

impl CapturePoint {
    /// Whether the server can run on here, and be told things, before it is frozen.
    pub fn can_run_on(self) -> bool {
        matches!(self, Self::Ready | Self::Warm)
    }

    fn stop_at(self) -> u32 {
        match self {
            Self::Ready => probe::STOP_AT_READY,
            Self::Listen | Self::PreListen => probe::STOP_AT_LISTEN,
            Self::Accept => probe::STOP_AT_ACCEPT,
            Self::Fork => probe::STOP_AT_FORK,
            Self::Warm | Self::Checkpoint => probe::STOP_NEVER,
        }
    }
}

impl std::fmt::Display for CapturePoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Listen => "listen",
            Self::PreListen => "pre-listen",
            Self::Accept => "accept",
            Self::Fork => "fork",
            Self::Warm => "warm",
            Self::Checkpoint => "checkpoint",
        })
    }
}

/// Something that a process of the tree did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds of the monotonic clock.
    pub time_ns: u64,
    pub pid: HostPid,
    pub what: What,
    /// The process was stopped here: this is the capture point.
    pub stopped: bool,
    /// A text in it is longer than the probe records.
    pub truncated: bool,
}

/// What an [`Event`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It is about to fork.
    Forking,
    Fork {
        child: HostPid,
    },
    Exec {
        path: PathBuf,
    },
    Exit {
        status: i32,
    },
    Bind {
        at: Option<Listener>,
    },
    Listen {
        at: Option<Listener>,
    },
    Accept {
        at: Option<Listener>,
    },
    Wait {
        at: Option<Listener>,
    },
}

/// The attached probe.
pub struct Watch {
    ebpf: Ebpf,
    btf: aya::Btf,
    events: AsyncFd<RingBuf<MapData>>,
    /// Absent when the probe was built without any log statement.
    log: Option<AsyncFd<EbpfLogger<&'static dyn log::Log>>>,
}

impl Watch {
    /// Loads the probe, set to stop the tree at `point` if there is one, and attaches it. Of
    /// listeners that are named, only that one counts.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn attach(
        point: Option<CapturePoint>,
        listener: Option<&Wanted>,
    ) -> Result<Self, WatchError> {
        Self::load(point, listener, false)
    }

    /// As [`Watch::attach`]; what goes on is recorded as well.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn attach_recording(
        point: Option<CapturePoint>,
        listener: Option<&Wanted>,
    ) -> Result<(Self, Recording), WatchError> {
        let mut watch = Self::load(point, listener, true)?;
        let recording = Recording::attach(&mut watch.ebpf, &watch.btf)?;
        Ok((watch, recording))
    }

    /// Tells from now on which files the tree opens, once.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn opens(&mut self) -> Result<Opens, WatchError> {
        Opens::attach(&mut self.ebpf, &self.btf)
    }

    /// Goes on following the tree, without telling what it does with sockets.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn look_away(&mut self) -> Result<(), WatchError> {
        let of_start_up = [TCP_STATE, SYSTEM_CALL].into_iter();
        for (name, tracepoint) in of_start_up.chain(recording::PROGRAMS) {
            let program = program(&mut self.ebpf, name, tracepoint)?;
            match program.unload() {
                Err(ProgramError::NotLoaded) => {}
                unloaded => unloaded.map_err(refused(tracepoint))?,
            }
        }
        Ok(())
    }

    fn load(
        point: Option<CapturePoint>,
        listener: Option<&Wanted>,
        records: bool,
    ) -> Result<Self, WatchError> {
        let data = fs::read(BTF_PATH).map_err(WatchError::NoBtf)?;
        let members = match records {
            true => probe::KERNEL_MEMBERS.len(),
            false => probe::MEMBERS_WITHOUT_PROFILE,
        };
        let offsets = kernel_offsets(&data, members)?;
        let btf = aya::Btf::parse(&data, aya::Endianness::default())?;
        let stop_at = point.map_or(probe::STOP_NEVER, CapturePoint::stop_at);
        let wanted = listener.map_or_else(bytemuck::Zeroable::zeroed, wanted);
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(&btf))
            .override_global("WANTED", bytemuck::bytes_of(&wanted), true)
            .override_global("OFFSETS", &offsets[..], true)
            .override_global("STOP_AT", &stop_at, true);
        if !records {
            for map in recording::MAPS {
                loader.map_max_entries(map, 1);
            }
            loader.map_max_entries(recording::SPANS, 1 << 12);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let log = match EbpfLogger::init(&mut ebpf) {
            Ok(log) => Some(sys::readable(log).map_err(WatchError::Wait)?),
            Err(_) => None,
        };
        let system_call = (!records).then_some(SYSTEM_CALL);
        for (name, tracepoint) in PROGRAMS.into_iter().chain(system_call) {
            attach(&mut ebpf, &btf, name, tracepoint)?;
        }
        let map = ebpf
            .take_map("EVENTS")
            .ok_or(WatchError::Incomplete("EVENTS"))?;
        let events = sys::readable(RingBuf::try_from(map)?).map_err(WatchError::Wait)?;
        drop(loader);
        Ok(Self {
            ebpf,
            btf,
            events,
            log,
        })
    }

    /// Follows a process and all it will fork.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn follow(&mut self, pid: HostPid) -> Result<(), WatchError> {
        let map = self
            .ebpf
            .map_mut("TREE")
            .ok_or(WatchError::Incomplete("TREE"))?;
        HashMap::<_, u32, u32>::try_from(map)?.insert(pid.0 as u32, 1, 0)?;
        Ok(())
    }

    /// Waits for the next event. Can be cancelled without losing one.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn next(&mut self) -> Result<Event, WatchError> {
        loop {
            if let Some(log) = &mut self.log {
                log.get_mut().flush();
            }
            while let Some(item) = self.events.get_mut().next() {
                if let Some(event) = parse(&item) {
                    return Ok(event);
                }
            }
            let mut guard = self.events.readable_mut().await.map_err(WatchError::Wait)?;
            guard.clear_ready();
        }
    }

    /// How many events and map entries found no room in the kernel.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn dropped(&self) -> Result<u64, WatchError> {
        let map = self
            .ebpf
            .map("DROPPED")
            .ok_or(WatchError::Incomplete("DROPPED"))?;
        Ok(Array::<_, u64>::try_from(map)?.get(&0, 0)?)
    }
}

/// What of the running kernel the probe needs, to record a profile too if it `records`, and does not find;
/// empty if it will attach.
///
/// # Errors
/// [`WatchError::NoBtf`] or [`WatchError::Btf`].
pub fn missing_tracepoints(records: bool) -> Result<Vec<String>, WatchError> {
    let data = fs::read(BTF_PATH).map_err(WatchError::NoBtf)?;
    let members = match records {
        true => probe::KERNEL_MEMBERS.len(),
        false => probe::MEMBERS_WITHOUT_PROFILE,
    };
    kernel_offsets(&data, members)?;
    let btf = btf::Btf::parse(&data)?;
    let recording = recording::PROGRAMS.iter().filter(|_| records);
    let names = PROGRAMS.iter().chain([&SYSTEM_CALL, &opens::PROGRAM]);
    let names = names.chain(recording);
    Ok(names
        .map(|(_, tracepoint)| (*tracepoint).to_owned())
        .filter(|tracepoint| !btf.has_tracepoint(tracepoint))
        .collect())
}

/// A listener as the probe knows it.
fn wanted(listener: &Wanted) -> probe::Wanted {
    let mut wanted: probe::Wanted = bytemuck::Zeroable::zeroed();
    let text = match listener {
        Wanted::Port(port) => {
            wanted.port = *port;
            vec![]
        }
        Wanted::Exactly(Listener::Tcp { address }) => {
            wanted.port = address.port();
            match address.ip() {
                IpAddr::V4(ip) => {
                    wanted.family = libc::AF_INET as u16;
                    ip.octets().to_vec()
                }
                IpAddr::V6(ip) => {
                    wanted.family = libc::AF_INET6 as u16;
                    ip.octets().to_vec()
                }
            }
        }
        Wanted::Exactly(Listener::Unix { path }) => {
            wanted.family = libc::AF_UNIX as u16;
            match path.as_os_str().as_bytes().strip_prefix(b"@") {
                Some(name) => [b"\0", name].concat(),
                None => path.as_os_str().as_bytes().to_vec(),
            }
        }
    };
    // A longer path is none that a socket can have.
    let len = text.len().min(probe::TEXT_LEN);
    wanted.text[..len].copy_from_slice(&text[..len]);
    wanted.text_len = len as u32;
    wanted
}

/// The offsets of the first `count` members; the others stay 0.
fn kernel_offsets(
    btf: &[u8],
    count: usize,
) -> Result<[u32; probe::KERNEL_MEMBERS.len()], btf::BtfError> {
    let btf = btf::Btf::parse(btf)?;
    let mut offsets = [0; probe::KERNEL_MEMBERS.len()];
    let members = probe::KERNEL_MEMBERS.iter().take(count);
    for (offset, (structure, member)) in offsets.iter_mut().zip(members) {
        *offset = btf.offset(structure, member)?;
    }
    Ok(offsets)
}

fn attach(
    ebpf: &mut Ebpf,
    btf: &aya::Btf,
    name: &'static str,
    tracepoint: &'static str,
) -> Result<(), WatchError> {
    let program = program(ebpf, name, tracepoint)?;
    program
        .load(tracepoint, btf)
        .and_then(|()| program.attach())
        .map_err(refused(tracepoint))?;
    Ok(())
}

fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    tracepoint: &'static str,
) -> Result<&'a mut BtfTracePoint, WatchError> {
    let program = ebpf.program_mut(name).ok_or(WatchError::Incomplete(name))?;
    program.try_into().map_err(refused(tracepoint))
}

fn refused(tracepoint: &'static str) -> impl Fn(ProgramError) -> WatchError {
    move |source| WatchError::Program {
        tracepoint,
        source: Box::new(source),
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Option<Event> {
    let raw: probe::Event = bytemuck::try_pod_read_unaligned(bytes).ok()?;
    let text = raw.text.get(..raw.text_len as usize)?;
    let at = socket(&raw, text);
    let what = match raw.kind {
        probe::KIND_FORK => What::Fork {
            child: HostPid(raw.value as i32),
        },
        probe::KIND_FORKING => What::Forking,
        probe::KIND_EXEC => What::Exec {
            path: std::ffi::OsStr::from_bytes(text).into(),
        },
        probe::KIND_EXIT => What::Exit {
            status: raw.value as i32,
        },
        probe::KIND_BIND => What::Bind { at },
        probe::KIND_LISTEN => What::Listen { at },
        probe::KIND_ACCEPT => What::Accept { at },
        probe::KIND_WAIT => What::Wait { at },
        _ => return None,
    };
    Some(Event {
        time_ns: raw.time_ns,
        pid: HostPid(raw.tgid as i32),
        what,
        stopped: raw.flags & probe::FLAG_STOPPED != 0,
        truncated: raw.flags & probe::FLAG_TRUNCATED != 0,
    })
}

fn socket(raw: &probe::Event, text: &[u8]) -> Option<Listener> {
    let address = match i32::from(raw.family) {
        libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(text).ok()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(<[u8; 16]>::try_from(text).ok()?).into(),
        libc::AF_UNIX => {
            // A path ends at a NUL; an abstract name begins with one, which is written as `@`.
            let name = match text.strip_prefix(b"\0") {
                Some(name) => [b"@", name].concat(),
                None => text.split(|&byte| byte == 0).next()?.to_vec(),
            };
            return Some(Listener::Unix {
                path: std::ffi::OsStr::from_bytes(&name).into(),
            });
        }
        _ => return None,
    };
    Some(Listener::Tcp {
        address: SocketAddr::new(address, raw.port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(kind: u32, family: i32, port: u16, text: &[u8]) -> probe::Event {
        let mut event: probe::Event = bytemuck::Zeroable::zeroed();
        event.kind = kind;
        event.family = family as u16;
        event.port = port;
        event.text_len = text.len() as u32;
        event.text[..text.len()].copy_from_slice(text);
        event
    }

    #[test]
    fn sockets_are_named_by_address_or_path() {
        let parsed = |event: probe::Event| parse(bytemuck::bytes_of(&event)).unwrap().what;
        let tcp = raw(probe::KIND_LISTEN, libc::AF_INET, 80, &[127, 0, 0, 1]);
        let at = Listener::Tcp {
            address: "127.0.0.1:80".parse().unwrap(),
        };
        assert_eq!(parsed(tcp), What::Listen { at: Some(at) });

        let unix = raw(probe::KIND_BIND, libc::AF_UNIX, 0, b"/run/a.sock\0");
        assert_eq!(
            parsed(unix),
            What::Bind {
                at: Some(Listener::Unix {
                    path: "/run/a.sock".into()
                })
            }
        );

        let hidden = raw(probe::KIND_BIND, libc::AF_UNIX, 0, b"\0name");
        assert_eq!(
            parsed(hidden),
            What::Bind {
                at: Some(Listener::Unix {
                    path: "@name".into()
                })
            }
        );
    }

    #[test]
    fn events_that_are_none_are_left_out() {
        assert_eq!(parse(b"short"), None);
        assert_eq!(parse(bytemuck::bytes_of(&raw(99, 0, 0, b""))), None);
    }
}
