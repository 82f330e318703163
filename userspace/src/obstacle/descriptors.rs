//! What a process has open or mapped.

use std::{
    collections::BTreeSet,
    fs::{self, Metadata},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use procfs::process::Process;
use rustix::{
    fs::{major, statfs},
    net::{AddressFamily, SocketType, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use super::{Code, Obstacle};
use crate::{
    criu::GHOST_LIMIT,
    tree::{HostPid, Member},
};

/// `SECRETMEM_MAGIC` of linux/magic.h.
const SECRET_MEMORY: u64 = 0x5345_434d;

/// `MQUEUE_MAGIC` of ipc/mqueue.c.
const MESSAGE_QUEUES: u64 = 0x1980_0202;

/// `IPPROTO_MPTCP` of linux/in.h.
const MPTCP: u32 = 262;

/// Those that CRIU has parts for, besides `bpf-map`, for which not every CRIU has: that one is left
/// to it.
const KNOWN_FILES: [&str; 8] = [
    "[eventfd]",
    "[eventpoll]",
    "[fanotify]",
    "[signalfd]",
    "[timerfd]",
    "bpf-map",
    "inotify",
    "[pidfd]",
];

/// How far the clock of inodes may be behind: a tick at 100 Hz.
const TICK: Duration = Duration::from_millis(10);

/// The drivers of memory and terminals in linux/major.h.
const MEMORY: u32 = 1;
const TERMINALS: [u32; 2] = [4, 5];
const PSEUDO_TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

pub fn look_for(member: &Member, members: &[Member], exec_at: Option<SystemTime>) -> Vec<Obstacle> {
    let mut seen = BTreeSet::new();
    let pidfd = handle(member.host);
    let unread = netlink_with_data(member.host);
    let mut found = Vec::new();
    for file in files(member.host) {
        // One that is inherited, copied or mapped twice is told of once.
        if !seen.insert((file.link.clone(), file.metadata.dev(), file.metadata.ino())) {
            continue;
        }
        let verdict = match file.link.strip_prefix("socket:[") {
            Some(inode) => {
                let inode = inode.trim_end_matches(']').parse().unwrap_or(0);
                socket(&file, pidfd.as_ref()).or_else(|| {
                    unread.contains(&inode).then(|| {
                        let what = format!("has not read what the kernel sent it, {}", file.place);
                        (Code::SocketData, what)
                    })
                })
            }
            None => other(&file, member.host, members),
        };
        found.extend(verdict.map(|(code, what)| Obstacle {
            at_us: made_at(&file, exec_at),
            ..Obstacle::new(code, member.host, what)
        }));
    }
    found
}

/// A file that a process has open or mapped.
struct OpenFile {
    /// Its number, if it is open.
    fd: Option<i32>,
    /// How a message says where it is.
    place: String,
    path: PathBuf,
    link: String,
    metadata: Metadata,
}

fn files(pid: HostPid) -> Vec<OpenFile> {
    let process = format!("/proc/{pid}");
    let entries = ["fd", "map_files"].into_iter();
    let entries =
        entries.filter_map(|kind| Some((kind, fs::read_dir(format!("{process}/{kind}")).ok()?)));
    entries
        .flat_map(|(kind, entries)| entries.flatten().map(move |entry| (kind, entry)))
        .filter_map(|(kind, entry)| {
            let link = fs::read_link(entry.path()).ok()?.to_str()?.to_owned();
            let name = entry.file_name().into_string().ok()?;
            let fd = (kind == "fd").then(|| name.parse().ok()).flatten();
            Some(OpenFile {
                fd,
                place: match fd {
                    Some(fd) => format!("descriptor {fd}"),
                    None => "mapped".to_owned(),
                },
                // Of the open file itself, whatever its name.
                metadata: fs::metadata(entry.path()).ok()?,
                path: entry.path(),
                link,
            })
        })
        .collect()
}

/// When a file of the kernel's was made, if it has an inode of its own that tells.
fn made_at(file: &OpenFile, exec_at: Option<SystemTime>) -> Option<u64> {
    if !file.link.starts_with("anon_inode:") {
        return None;
    }
    let made = Duration::new(
        u64::try_from(file.metadata.ctime()).ok()?,
        u32::try_from(file.metadata.ctime_nsec()).ok()?,
    );
    let exec = exec_at?.duration_since(UNIX_EPOCH).ok()?;
    // Older, it is an inode that all of the kind share.
    let is_own = made + TICK >= exec;
    is_own.then(|| made.saturating_sub(exec).as_micros() as u64)
}

type Verdict = Option<(Code, String)>;

/// A descriptor through which those of a process can be copied.
fn handle(pid: HostPid) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid.0)?, PidfdFlags::empty()).ok()
}

/// As `dump_socket` and `can_dump_ipproto` of CRIU decide.
fn socket(file: &OpenFile, pidfd: Option<&OwnedFd>) -> Verdict {
    let copy = pidfd_getfd(pidfd?, file.fd?, PidfdGetfdFlags::empty()).ok()?;
    let family = sockopt::socket_domain(&copy).ok()?;
    let place = &file.place;
    match family {
        AddressFamily::UNIX | AddressFamily::PACKET | AddressFamily::NETLINK => None,
        AddressFamily::INET | AddressFamily::INET6 => {
            let kind = sockopt::socket_type(&copy).ok()?;
            let protocol = sockopt::socket_protocol(&copy).ok()?;
            let protocol = protocol.map_or(0, |protocol| protocol.as_raw().get());
            let is_known = [
                libc::IPPROTO_IP,
                libc::IPPROTO_TCP,
                libc::IPPROTO_UDP,
                libc::IPPROTO_UDPLITE,
                libc::IPPROTO_ICMP,
                libc::IPPROTO_ICMPV6,
            ]
            .contains(&(protocol as i32));
            match protocol {
                _ if kind == SocketType::RAW || is_known => None,
                MPTCP => Some((Code::Mptcp, format!("has a socket of MPTCP, {place}"))),
                protocol => {
                    let what = format!("has a socket of protocol {protocol}, {place}");
                    Some((Code::SocketFamily, what))
                }
            }
        }
        family => {
            let what = format!("has a socket of {}, {place}", family_name(family));
            Some((Code::SocketFamily, what))
        }
    }
}

fn family_name(family: AddressFamily) -> String {
    match i32::from(family.as_raw()) {
        libc::AF_ALG => "AF_ALG (cryptography of the kernel)".to_owned(),
        libc::AF_BLUETOOTH => "AF_BLUETOOTH".to_owned(),
        libc::AF_CAN => "AF_CAN".to_owned(),
        libc::AF_KEY => "AF_KEY".to_owned(),
        libc::AF_VSOCK => "AF_VSOCK".to_owned(),
        libc::AF_XDP => "AF_XDP".to_owned(),
        number => format!("family {number}"),
    }
}

/// The inodes of the netlink sockets that hold data, by /proc/PID/net/netlink.
fn netlink_with_data(pid: HostPid) -> BTreeSet<u64> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/netlink")).unwrap_or_default();
    let inode = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let held: u64 = columns.get(4)?.parse().ok()?;
        let inode = columns.get(9)?.parse().ok()?;
        (held > 0).then_some(inode)
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn other(file: &OpenFile, pid: HostPid, members: &[Member]) -> Verdict {
    let kind = file.metadata.file_type();
    if let Some(name) = file.link.strip_prefix("anon_inode:") {
        return anonymous(file, name, pid, members);
    }
    if kind.is_block_device() || (kind.is_char_device() && !is_known_device(&file.metadata)) {
        let what = format!("has the device {} open, {}", file.link, file.place);
        return Some((Code::Device, what));
    }
    match file_system(&file.path) {
        Some(SECRET_MEMORY) => {
            let what = format!("has memory that is hidden from all others, {}", file.place);
            Some((Code::SecretMemory, what))
        }
        Some(MESSAGE_QUEUES) => {
            let what = format!("has the message queue {} open, {}", file.link, file.place);
            Some((Code::MessageQueue, what))
        }
        _ => deleted(file),
    }
}

fn file_system(path: &Path) -> Option<u64> {
    Some(statfs(path).ok()?.f_type as u64)
}

fn is_known_device(file: &Metadata) -> bool {
    let driver = major(file.rdev());
    driver == MEMORY || TERMINALS.contains(&driver) || PSEUDO_TERMINALS.contains(&driver)
}

fn anonymous(file: &OpenFile, name: &str, pid: HostPid, members: &[Member]) -> Verdict {
    if name == "[pidfd]" {
        let target = foreign_target(pid, file.fd?, members)?;
        let what = format!("has a descriptor of process {target}, {}", file.place);
        return Some((Code::ForeignPidfd, what));
    }
    if KNOWN_FILES.contains(&name) {
        return None;
    }
    let code = match name {
        "[io_uring]" => Code::IoUring,
        "[userfaultfd]" => Code::Userfaultfd,
        "[perf_event]" => Code::PerfEvent,
        "seccomp notify" => Code::SeccompListener,
        "[landlock-ruleset]" => Code::LandlockRuleset,
        name if name.starts_with("bpf") => Code::Bpf,
        _ => Code::UnknownFile,
    };
    Some((code, format!("has {} open, {}", file.link, file.place)))
}

/// The process of a pidfd, if it runs and is not of the tree.
fn foreign_target(pid: HostPid, fd: i32, members: &[Member]) -> Option<HostPid> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    let target = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    let target = HostPid(target.trim().parse().ok()?);
    let is_member = |pid: HostPid| members.iter().any(|member| member.host == pid);
    // One that has ended is none; a zombie is its parent's.
    let stat = Process::new(target.0).ok()?.stat().ok()?;
    (target.0 > 0 && !is_member(target) && !is_member(HostPid(stat.ppid))).then_some(target)
}

/// A deleted file that no image can carry.
fn deleted(file: &OpenFile) -> Verdict {
    let path = file.link.strip_suffix(" (deleted)")?;
    if !is_in_folder(Path::new(path), &file.metadata) {
        return None;
    }
    let bytes = file.metadata.blocks() * 512;
    if file.metadata.nlink() > 0 {
        // CRIU gives it a name again, which the first restore takes away from the next.
        let what = format!("uses {path}, which is deleted but has another name left");
        return Some((Code::DeletedLinked, what));
    }
    (bytes > u64::from(GHOST_LIMIT)).then(|| {
        let what = format!(
            "uses {path}, which is deleted and has {} MiB: an image carries up to {}",
            bytes >> 20,
            GHOST_LIMIT >> 20
        );
        (Code::DeletedTooBig, what)
    })
}

/// Whether it was a file in a folder: memory that is shared shows as a deleted file, too.
fn is_in_folder(path: &Path, file: &Metadata) -> bool {
    let folder = path.parent().and_then(|folder| folder.metadata().ok());
    file.is_file() && folder.is_some_and(|folder| folder.dev() == file.dev())
}
