//! Processes as /proc shows them: the tree under an init, what each process is and waits for.
//!
//! A process may be gone at any moment; then it is simply not
//! in the answer.

use std::{collections::HashMap, fmt, fs, io, path::PathBuf};

use procfs::process::{FDTarget, Process};
use rustix::{io::Errno, thread::CapabilitySet};
use serde::{Deserialize, Serialize};

use crate::{
    listener::{self, Listener},
    sys,
};

/// A pid as this process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostPid(pub i32);

/// A pid within the namespace of a capture or an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NsPid(pub i32);

impl fmt::Display for HostPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NsPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One process of a frozen tree, as the manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// In the pid namespace of the image.
    pub pid: NsPid,
    pub parent: NsPid,
    /// The name, as of `/proc/PID/comm`.
    pub name: String,
    pub executable: PathBuf,
    pub threads: u64,
    pub uid: u32,
    pub gid: u32,
    /// Resident memory in bytes, shared pages counted in every process that has them.
    pub resident_bytes: u64,
}

/// A process found alive, by both its pids.
#[derive(Clone, Debug)]
pub struct Member {
    pub host: HostPid,
    pub info: ProcessInfo,
    /// The session leader's, in the same namespace; 0 if it is in none of it.
    pub session: NsPid,
    /// Real, effective, saved, and for files.
    pub uids: [u32; 4],
    pub gids: [u32; 4],
    /// The permitted ones.
    pub capabilities: CapabilitySet,
}

impl Member {
    /// Whether it has the ids of one user only.
    pub fn is_one_user(&self) -> bool {
        let same = |ids: &[u32; 4]| ids.iter().all(|id| *id == ids[0]);
        same(&self.uids) && same(&self.gids)
    }
}

/// Where a tree begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Top {
    /// Below this process, an init.
    Init(HostPid),
    /// With this process.
    Root(HostPid),
}

impl Top {
    /// The processes that run, parents before children.
    pub fn pids(self) -> Vec<HostPid> {
        match self {
            Self::Init(init) => descendants(init),
            Self::Root(root) => std::iter::once(root).chain(descendants(root)).collect(),
        }
    }
}

/// The children of a process.
pub fn children(pid: HostPid) -> Vec<HostPid> {
    let threads = threads(pid).into_iter();
    threads
        .flat_map(|thread| children_of_thread(pid, thread))
        .collect()
}

fn threads(pid: HostPid) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return vec![];
    };
    let names = tasks.flatten().map(|task| task.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect()
}

fn children_of_thread(pid: HostPid, thread: i32) -> Vec<HostPid> {
    let list = format!("/proc/{pid}/task/{thread}/children");
    let list = fs::read_to_string(list).unwrap_or_default();
    let pids = list.split_whitespace();
    pids.filter_map(|pid| pid.parse().ok())
        .map(HostPid)
        .collect()
}

/// Everything under a process, parents before children; zombies are left out.
pub fn descendants(root: HostPid) -> Vec<HostPid> {
    let mut found = Vec::new();
    let mut next = children(root);
    while let Some(pid) = next.pop() {
        if is_alive(pid) {
            found.push(pid);
        }
        next.extend(children(pid));
    }
    found
}

/// Sends a signal; nothing happens if the process is gone.
pub fn signal(pid: HostPid, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid.0) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Sends a signal to what an init has started; returns whether it is there.
pub fn signal_root(init: HostPid, number: i32) -> bool {
    let named = rustix::process::Signal::from_named_raw(number);
    match (children(init).first(), named) {
        (Some(&root), Some(named)) => {
            signal(root, named);
            true
        }
        _ => false,
    }
}

/// Lets all that an init has below it go on.
pub fn resume(init: HostPid) {
    for pid in descendants(init) {
        signal(pid, rustix::process::Signal::CONT);
    }
}

/// Whether a failed look says that the process or the descriptor is gone.
pub fn is_gone(error: &io::Error) -> bool {
    let error = Errno::from_io_error(error);
    matches!(error, Some(Errno::NOENT | Errno::SRCH | Errno::BADF))
}

fn is_alive(pid: HostPid) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X') || is_headless(pid)
}

/// Whether a process runs on without its main thread, which is shown as a zombie.
pub fn is_headless(pid: HostPid) -> bool {
    state(pid) == Some('Z') && threads(pid).len() > 1
}

fn state(pid: HostPid) -> Option<char> {
    Some(Process::new(pid.0).ok()?.stat().ok()?.state)
}

/// The pid in the innermost namespace of the process.
pub fn ns_pid(pid: HostPid) -> Option<NsPid> {
    let status = Process::new(pid.0).ok()?.status().ok()?;
    status.nspid?.last().copied().map(NsPid)
}

/// The child of an init that has this pid in its namespace.
pub fn find(init: HostPid, wanted: NsPid) -> Option<HostPid> {
    let found = children(init);
    found.into_iter().find(|&pid| ns_pid(pid) == Some(wanted))
}

/// Whether every thread of a process is stopped, be it by a tracer.
pub fn is_stopped(pid: HostPid) -> bool {
    let Ok(tasks) = Process::new(pid.0).and_then(|process| process.tasks()) else {
        return true;
    };
    tasks
        .flatten()
        .filter_map(|task| task.stat().ok())
        .all(|stat| matches!(stat.state, 'T' | 't' | 'Z' | 'X'))
}

/// A process of which a thread waits in vfork(2), and the child it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vfork {
    pub parent: HostPid,
    pub child: HostPid,
}

/// Which of the processes wait in vfork(2), or in a clone(2) that does the same.
pub fn vforks(pids: &[HostPid]) -> Vec<Vfork> {
    let waits = |&thread: &i32| {
        // The state first, which rules out nearly all.
        state(HostPid(thread)) == Some('D')
            && system_call_of(thread).is_some_and(|(number, _)| FORKS.contains(&number))
    };
    let mut found = Vec::new();
    for &parent in pids {
        for thread in threads(parent).into_iter().filter(waits) {
            let children = children_of_thread(parent, thread).into_iter();
            // Those of a plain fork have memory of their own.
            let children = children.filter(|child| sys::share_memory(thread, child.0));
            found.extend(children.map(|child| Vfork { parent, child }));
        }
    }
    found
}

/// The system calls that vfork(3) and posix_spawn(3) make.
const FORKS: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_clone,
    libc::SYS_clone3,
];

/// A process as a message names it: "name (pid N)".
pub fn label(pid: HostPid) -> String {
    let stat = Process::new(pid.0).and_then(|process| process.stat());
    let name = stat.map(|stat| stat.comm).unwrap_or_default();
    format!("{name} (pid {pid})")
}

/// Describes processes; those that are gone are left out.
pub fn describe(pids: &[HostPid]) -> Vec<Member> {
    pids.iter().filter_map(|&pid| describe_one(pid)).collect()
}

fn describe_one(host: HostPid) -> Option<Member> {
    let process = Process::new(host.0).ok()?;
    let status = process.status().ok()?;
    let parent = ns_pid(HostPid(status.ppid)).unwrap_or(NsPid(1));
    Some(Member {
        host,
        uids: [status.ruid, status.euid, status.suid, status.fuid],
        gids: [status.rgid, status.egid, status.sgid, status.fgid],
        capabilities: CapabilitySet::from_bits_retain(status.capprm),
        session: NsPid(*status.nssid.as_ref()?.last()?),
        info: ProcessInfo {
            pid: NsPid(*status.nspid?.last()?),
            parent,
            name: status.name,
            executable: process.exe().unwrap_or_default(),
            threads: status.threads,
            uid: status.euid,
            gid: status.egid,
            resident_bytes: status.vmrss.unwrap_or(0) * 1024,
        },
    })
}

/// A connection of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Of its socket.
    pub inode: u64,
    pub pid: HostPid,
    /// Of the process, as of `/proc/PID/comm`.
    pub process: String,
    pub local: Listener,
    /// None if the other end of a Unix socket is closed, or not accepted yet.
    pub peer: Option<Listener>,
}

impl Connection {
    pub fn is_tcp(&self) -> bool {
        matches!(self.local, Listener::Tcp { .. })
    }

    /// Whether it was accepted on one of these.
    pub fn is_inbound(&self, listeners: &[Listener]) -> bool {
        listeners
            .iter()
            .any(|listener| listener.clashes_with(&self.local))
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}): {}", self.process, self.pid, self.local)?;
        match &self.peer {
            Some(peer) => write!(f, " to {peer}"),
            None => Ok(()),
        }
    }
}

/// The inodes of the sockets that processes hold, each with one of its holders.
fn sockets(pids: &[HostPid]) -> HashMap<u64, HostPid> {
    let mut inodes = HashMap::new();
    for &pid in pids {
        let Ok(descriptors) = Process::new(pid.0).and_then(|process| process.fd()) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            if let FDTarget::Socket(inode) = descriptor.target {
                inodes.entry(inode).or_insert(pid);
            }
        }
    }
    inodes
}

/// The listening sockets that processes hold, each once.
pub fn listeners(pids: &[HostPid]) -> Vec<Listener> {
    let Some(&first) = pids.first() else {
        return vec![];
    };
    let inodes = sockets(pids);
    let mut found: Vec<Listener> = listener::all_of(first)
        .into_iter()
        .filter(|(inode, _)| inodes.contains_key(inode))
        .map(|(_, listener)| listener)
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The connections that processes have to others, and, by TCP, among themselves.
pub fn connections(pids: &[HostPid]) -> Vec<Connection> {
    let Some(&first) = pids.first() else {
        return vec![];
    };
    let inodes = sockets(pids);
    let name = |pid: HostPid| {
        let stat = Process::new(pid.0).and_then(|process| process.stat());
        stat.map(|stat| stat.comm).unwrap_or_default()
    };
    let is_held = |inode: &u64| inodes.contains_key(inode);
    listener::connected_of(first)
        .into_iter()
        .filter(|socket| !socket.peer_inode.as_ref().is_some_and(is_held))
        .filter_map(|socket| {
            let pid = *inodes.get(&socket.inode)?;
            Some(Connection {
                inode: socket.inode,
                pid,
                process: name(pid),
                local: socket.local,
                peer: socket.peer,
            })
        })
        .collect()
}

/// Which process on the host holds a listener, as "name (pid N)".
pub fn holder(wanted: &Listener) -> Option<String> {
    let inodes = listener::clashing(wanted);
    if inodes.is_empty() {
        return None;
    }
    for process in procfs::process::all_processes().ok()?.flatten() {
        let Ok(descriptors) = process.fd() else {
            continue;
        };
        let holds = descriptors
            .flatten()
            .any(|fd| matches!(fd.target, FDTarget::Socket(inode) if inodes.contains(&inode)));
        if holds {
            return Some(label(HostPid(process.pid)));
        }
    }
    None
}

/// The memory of processes that is no file's, in bytes.
pub fn anonymous_bytes(pids: &[HostPid]) -> u64 {
    let kib = |&pid: &HostPid| {
        let status = Process::new(pid.0).and_then(|process| process.status());
        status.ok()?.rssanon
    };
    pids.iter().filter_map(kib).sum::<u64>() * 1024
}

/// What each process waits for, as a line for people: the system call, and the file or socket
/// that its first argument names.
pub fn blocked_on(pids: &[HostPid]) -> Vec<String> {
    pids.iter()
        .filter_map(|&pid| {
            let process = Process::new(pid.0).ok()?;
            let stat = process.stat().ok()?;
            let doing = match stat.state {
                'R' => "running on the CPU".to_owned(),
                'T' => "stopped".to_owned(),
                _ => waiting_in(&process),
            };
            Some(format!("{} (pid {pid}): {doing}", stat.comm))
        })
        .collect()
}

fn waiting_in(process: &Process) -> String {
    let pid = process.pid;
    let call = system_call_of(pid);
    let known = call.and_then(|(number, first)| Some((system_call(number)?, first)));
    let Some(((name, has_fd), first)) = known else {
        let channel = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        return format!("waiting in the kernel at {channel}");
    };
    let target = Some(first)
        .filter(|_| has_fd)
        .and_then(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok())
        .map(|target| format!(" on {}", target.display()))
        .unwrap_or_default();
    format!("waiting in {name}(){target}")
}

/// The number of the system call that a thread waits in, and its first argument.
fn system_call_of(thread: i32) -> Option<(i64, u64)> {
    let line = fs::read_to_string(format!("/proc/{thread}/syscall")).ok()?;
    let mut words = line.split_whitespace();
    let number = words.next()?.parse().ok()?;
    let first = words.next()?.trim_start_matches("0x");
    Some((number, u64::from_str_radix(first, 16).ok()?))
}

/// The system calls that servers wait in, and whether the first argument is a descriptor.
fn system_call(number: i64) -> Option<(&'static str, bool)> {
    Some(match number {
        libc::SYS_read => ("read", true),
        libc::SYS_readv => ("readv", true),
        libc::SYS_write => ("write", true),
        libc::SYS_connect => ("connect", true),
        libc::SYS_accept => ("accept", true),
        libc::SYS_accept4 => ("accept4", true),
        libc::SYS_recvfrom => ("recvfrom", true),
        libc::SYS_recvmsg => ("recvmsg", true),
        libc::SYS_sendto => ("sendto", true),
        libc::SYS_sendmsg => ("sendmsg", true),
        libc::SYS_epoll_pwait => ("epoll_pwait", true),
        libc::SYS_epoll_pwait2 => ("epoll_pwait2", true),
        libc::SYS_flock => ("flock", true),
        libc::SYS_fcntl => ("fcntl", true),
        libc::SYS_fsync => ("fsync", true),
        libc::SYS_ppoll => ("ppoll", false),
        libc::SYS_pselect6 => ("pselect6", false),
        libc::SYS_futex => ("futex", false),
        libc::SYS_nanosleep => ("nanosleep", false),
        libc::SYS_clock_nanosleep => ("clock_nanosleep", false),
        libc::SYS_wait4 => ("wait4", false),
        libc::SYS_waitid => ("waitid", false),
        libc::SYS_rt_sigtimedwait => ("rt_sigtimedwait", false),
        libc::SYS_rt_sigsuspend => ("rt_sigsuspend", false),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll => ("poll", false),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_select => ("select", false),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait => ("epoll_wait", true),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_pause => ("pause", false),
        _ => return None,
    })
}
