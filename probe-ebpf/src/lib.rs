//! What the kernel side and user space say to each other: the only home of these types.
//!
//! Everything here is `#[repr(C)]`, plain data and without implicit padding (checked when
//! compiling), so that both sides read the same bytes.
#![no_std]

pub mod serve;
pub mod trace;

use bytemuck::{Pod, Zeroable};

/// The longest text an [`Event`] carries: a Unix socket path with its final NUL (`sun_path` of
/// unix(7)), or the first bytes of an executable's path.
pub const TEXT_LEN: usize = 108;

/// Processes that can be followed at once.
pub const MAX_PROCESSES: u32 = 32_768;

/// Listening sockets remembered per epoll instance.
pub const SOCKETS_PER_EPOLL: usize = 8;

/// One thing that a followed process did.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC` of the initial time namespace, in nanoseconds.
    pub time_ns: u64,
    /// One of the `KIND_*` numbers.
    pub kind: u32,
    /// Bits of `FLAG_*`.
    pub flags: u32,
    /// Process id (thread group) in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// The child of a fork; the wait status (as of wait(2)) of an exit; otherwise 0.
    pub value: u32,
    /// The file descriptor in question, or -1.
    pub fd: i32,
    /// `AF_*` of the socket, or 0.
    pub family: u16,
    /// The local TCP port in host byte order, or 0.
    pub port: u16,
    /// Bytes used in `text`.
    pub text_len: u32,
    /// Local IPv4 (4 bytes) or IPv6 address (16 bytes) in network byte order, Unix socket path
    /// (abstract ones begin with NUL), or the path of what was executed.
    pub text: [u8; TEXT_LEN],
    /// Keeps the size a multiple of 8; always 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Event>() == 152);

/// A process forked: `value` is the child.
pub const KIND_FORK: u32 = 1;
/// A process executed a program: `text` is its path.
pub const KIND_EXEC: u32 = 2;
/// The last thread of a process is gone: `value` is the wait status.
pub const KIND_EXIT: u32 = 3;
/// A socket was bound.
pub const KIND_BIND: u32 = 4;
/// A socket went to the listening state.
pub const KIND_LISTEN: u32 = 5;
/// accept(2) or accept4(2) was entered on a listening socket.
pub const KIND_ACCEPT: u32 = 6;
/// A wait for readiness (epoll, poll, select) that a listening socket is part of was entered.
pub const KIND_WAIT: u32 = 7;
/// A process is about to fork.
pub const KIND_FORKING: u32 = 8;

/// `text` was cut short.
pub const FLAG_TRUNCATED: u32 = 1;
/// The task was stopped here: this is the capture point.
pub const FLAG_STOPPED: u32 = 2;

/// Where to stop the tree (the global `STOP_AT` of the probe).
pub const STOP_NEVER: u32 = 0;
/// Stop when a socket first listens.
pub const STOP_AT_LISTEN: u32 = 1;
/// Stop when a process first waits for a connection.
pub const STOP_AT_READY: u32 = 2;
/// Stop at the first accept(2) family call.
pub const STOP_AT_ACCEPT: u32 = 3;
/// Stop before a process first forks after a socket listened.
pub const STOP_AT_FORK: u32 = 4;

/// The listener that counts (the global `WANTED` of the probe); any if all is 0.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Wanted {
    /// `AF_*`; 0 for TCP on any address.
    pub family: u16,
    /// The TCP port in host byte order.
    pub port: u16,
    /// Bytes used in `text`.
    pub text_len: u32,
    /// As in [`Event`].
    pub text: [u8; TEXT_LEN],
}

/// Byte offsets of the kernel's structure members that the probe reads, found in the running
/// kernel's BTF and handed over as the global `OFFSETS` when the probe is loaded.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct KernelOffsets {
    pub task_tgid: u32,
    pub task_files: u32,
    pub task_signal: u32,
    pub task_exit_code: u32,
    pub signal_live: u32,
    pub files_fdt: u32,
    pub fdtable_fd: u32,
    pub fdtable_max_fds: u32,
    pub file_private_data: u32,
    pub file_inode: u32,
    pub inode_mode: u32,
    pub socket_sk: u32,
    pub sock_family: u32,
    pub sock_state: u32,
    pub sock_num: u32,
    pub sock_rcv_saddr: u32,
    pub sock_v6_rcv_saddr: u32,
    pub unix_sock_addr: u32,
    pub unix_address_len: u32,
    pub unix_address_name: u32,
    pub binprm_filename: u32,
    pub task_pid: u32,
    pub inode_ino: u32,
    pub inode_sb: u32,
    pub sb_dev: u32,
    pub task_fs: u32,
    pub fs_pwd_dentry: u32,
    pub dentry_inode: u32,
    pub folio_flags: u32,
    pub folio_flags_1: u32,
    pub folio_mapping: u32,
    pub mapping_host: u32,
    pub task_pagefault_disabled: u32,
    pub sock_dport: u32,
}

/// The members behind [`KernelOffsets`], in its order: structure, then the path of the member.
pub const KERNEL_MEMBERS: [(&str, &str); 34] = [
    ("task_struct", "tgid"),
    ("task_struct", "files"),
    ("task_struct", "signal"),
    ("task_struct", "exit_code"),
    ("signal_struct", "live"),
    ("files_struct", "fdt"),
    ("fdtable", "fd"),
    ("fdtable", "max_fds"),
    ("file", "private_data"),
    ("file", "f_inode"),
    ("inode", "i_mode"),
    ("socket", "sk"),
    ("sock", "__sk_common.skc_family"),
    ("sock", "__sk_common.skc_state"),
    ("sock", "__sk_common.skc_num"),
    ("sock", "__sk_common.skc_rcv_saddr"),
    ("sock", "__sk_common.skc_v6_rcv_saddr"),
    ("unix_sock", "addr"),
    ("unix_address", "len"),
    ("unix_address", "name"),
    ("linux_binprm", "filename"),
    ("task_struct", "pid"),
    ("inode", "i_ino"),
    ("inode", "i_sb"),
    ("super_block", "s_dev"),
    ("task_struct", "fs"),
    ("fs_struct", "pwd.dentry"),
    ("dentry", "d_inode"),
    ("folio", "flags"),
    ("folio", "_flags_1"),
    ("folio", "mapping"),
    ("address_space", "host"),
    ("task_struct", "pagefault_disabled"),
    ("sock", "__sk_common.skc_dport"),
];

/// How many of them the probe needs if it does not record a profile: older kernels lack some of the
/// others.
pub const MEMBERS_WITHOUT_PROFILE: usize = 28;

const _: () = assert!(size_of::<KernelOffsets>() == 4 * KERNEL_MEMBERS.len());

/// A followed process opened a regular file or a folder, for the first time to read or to write.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Opened {
    /// Which file it is. The device is as the kernel has it (`MKDEV`).
    pub inode: u64,
    pub device: u32,
    /// Process id (thread group) in the initial pid namespace.
    pub tgid: u32,
    /// The descriptor of the folder that a relative path begins at, or [`AT_FDCWD`], and which
    /// folder that is.
    pub folder: i32,
    pub folder_device: u32,
    pub folder_inode: u64,
    /// Bits of `OPENED_*`.
    pub flags: u32,
    /// Bytes used in `path`.
    pub path_len: u32,
    /// The path as the process gave it.
    pub path: [u8; trace::NAME_LEN],
}

const _: () = assert!(size_of::<Opened>() == 40 + trace::NAME_LEN);

/// Of openat(2): relative paths begin at the working directory.
pub const AT_FDCWD: i32 = -100;

/// It can be written to.
pub const OPENED_TO_WRITE: u32 = 1;
/// `path` was cut short.
pub const OPENED_CUT: u32 = 2;
/// It is a folder.
pub const OPENED_FOLDER: u32 = 4;

/// The system calls on memory that a guard is notified of, and that must not fail when a signal
/// interrupts them while they wait for it: process_madvise(2), madvise(2), mlock(2), mlock2(2),
/// mlockall(2), mremap(2), mseal(2) of x86-64. See also [`REGISTER_CALL`].
pub const GUARDED_CALLS: [u32; 7] = [440, 28, 149, 325, 151, 25, 462];

/// ioctl(2), if its second argument is [`REGISTER_REQUEST`].
pub const REGISTER_CALL: u32 = 16;

/// `UFFDIO_REGISTER` of linux/userfaultfd.h.
pub const REGISTER_REQUEST: u32 = 0xc020_aa00;

/// The bit of x32 in the number of a system call; it tells the same calls.
pub const X32: u32 = 0x4000_0000;

/// The pid namespace whose tasks are looked at: the only value of the map `NAMESPACE`. Of stat(2) of
/// its /proc/PID/ns/pid, with the device as the kernel has it (`MKDEV`).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Namespace {
    pub device: u64,
    pub inode: u64,
}

/// A guarded call was interrupted by a signal whose handler lets no call begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Interruption {
    /// Thread id in the namespace.
    pub tid: u32,
    /// 1 if it will stop before it executes any of the handler, by SIGSTOP; else 0.
    pub is_stopped: u32,
    /// The number of the system call, with the bit of x32.
    pub call: u64,
    /// The address behind its instruction.
    pub behind: u64,
    pub stack_pointer: u64,
    pub arguments: [u64; 6],
}

const _: () = assert!(size_of::<Interruption>() == 80);
