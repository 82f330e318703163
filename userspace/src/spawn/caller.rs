//! A process whose system call was stopped: its memory, its descriptors, and its rights on files.

use std::{
    ffi::OsStr,
    fs,
    io::{self, IoSliceMut},
    os::{
        fd::{OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::{Gid, Pid, Uid, getgroups, setfsgid, setfsuid, setgroups},
};
use procfs::process::{Process, Status};
use rustix::{
    fs::Mode,
    process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open, umask},
};

/// Whose files they are that a thread makes, and what it may do with those of others.
pub struct Rights {
    user: Uid,
    group: Gid,
    groups: Vec<Gid>,
    umask: Mode,
}

impl Rights {
    /// Those that a thread has.
    ///
    /// # Errors
    /// What /proc says.
    pub fn of(tid: u32) -> io::Result<Self> {
        let status = status(tid)?;
        Ok(Self {
            user: Uid::from_raw(status.fuid),
            group: Gid::from_raw(status.fgid),
            groups: status.groups.into_iter().map(Gid::from_raw).collect(),
            umask: Mode::from_raw_mode(status.umask.unwrap_or(0o022)),
        })
    }

    /// Has this process, which is a child for that alone, have them.
    ///
    /// # Errors
    /// What setgroups(2) says.
    pub fn take(&self) -> io::Result<()> {
        if getgroups()? != self.groups {
            setgroups(&self.groups)?;
        }
        umask(self.umask);
        setfsgid(self.group);
        // With another than root, capabilities for files are not in force; see capabilities(7).
        setfsuid(self.user);
        Ok(())
    }
}

fn status(tid: u32) -> io::Result<Status> {
    let status = Process::new(tid as i32).and_then(|thread| thread.status());
    status.map_err(|_| io::ErrorKind::NotFound.into())
}

/// A path in the memory of a process, if it is no longer than one of a socket.
pub fn read_path(pid: u32, address: u64) -> Option<PathBuf> {
    let mut bytes = [0; 256];
    let read = read(pid, address, &mut bytes)?;
    let name = until_nul(&bytes[..read]);
    (name.len() < read).then(|| Path::new(OsStr::from_bytes(name)).to_path_buf())
}

pub fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&byte| byte == 0);
    &bytes[..end.unwrap_or(bytes.len())]
}

/// Reads memory of a process; less than asked for if it ends before.
pub fn read(pid: u32, address: u64, target: &mut [u8]) -> Option<usize> {
    const PAGE: usize = 4096;
    let base = usize::try_from(address).ok()?;
    // What is behind the page may not be there.
    let within = target.len().min(PAGE - base % PAGE);
    let len = target.len();
    let pieces = [
        RemoteIoVec { base, len: within },
        RemoteIoVec {
            base: base.checked_add(within)?,
            len: len - within,
        },
    ];
    let pid = Pid::from_raw(pid as i32);
    process_vm_readv(pid, &mut [IoSliceMut::new(target)], &pieces).ok()
}

/// Our own descriptor of a file that a process has open.
///
/// # Errors
/// What /proc and pidfd_getfd(2) say.
pub fn descriptor_of(tid: u32, number: RawFd) -> io::Result<OwnedFd> {
    // A notification is of a thread, and a pidfd of a process.
    let process = rustix::process::Pid::from_raw(status(tid)?.tgid);
    let process = pidfd_open(process.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
    Ok(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?)
}

/// Whether a descriptor of a process is closed by an exec.
///
/// # Errors
/// What /proc says.
pub fn is_closed_by_exec(pid: u32, number: RawFd) -> io::Result<bool> {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    Ok(flags.unwrap_or(0) & libc::O_CLOEXEC != 0)
}
