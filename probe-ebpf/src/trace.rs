//! What a start-up profile is made of: the times of every thread, and what they were spent on.

use core::ops::AddAssign;

use bytemuck::{Pod, Zeroable};

/// The classes of time, by the numbers that user space gives them.
pub const CLASSES: usize = 13;
pub const CLASS_USER: u32 = 0;
pub const CLASS_KERNEL: u32 = 1;
pub const CLASS_FAULT: u32 = 2;
pub const CLASS_FILES: u32 = 3;
pub const CLASS_DISK: u32 = 4;
pub const CLASS_NETWORK: u32 = 5;
pub const CLASS_PEER: u32 = 6;
pub const CLASS_EVENTS: u32 = 7;
pub const CLASS_SLEEP: u32 = 8;
pub const CLASS_LOCK: u32 = 9;
pub const CLASS_CHILD: u32 = 10;
pub const CLASS_OTHER: u32 = 11;
pub const CLASS_RUNNABLE: u32 = 12;

/// Threads that are told apart at once; the time of further ones is not recorded.
pub const MAX_THREADS: u32 = 16_384;

/// The longest path or address of a [`NamedSpan`].
pub const NAME_LEN: usize = 256;

/// The longest answer of a [`AnswerSpan`]: what a datagram of DNS holds without extensions.
pub const ANSWER_LEN: usize = 512;

/// What a [`Span`] is about.
pub const SPAN_CALL: u32 = 1;
/// A page fault: `argument` is the address.
pub const SPAN_FAULT: u32 = 2;
/// A time off the processor.
pub const SPAN_OFF: u32 = 3;
/// A thread began: `argument` is the thread that made it, and its process in the upper half.
pub const SPAN_BEGIN: u32 = 4;
/// A thread ended.
pub const SPAN_END: u32 = 5;
/// A program was executed; what the thread did before counts no more if it is the first of all.
pub const SPAN_EXEC: u32 = 6;
/// A TCP socket, whose address is `argument`, was connected.
pub const SPAN_CONNECTED: u32 = 7;

/// The fault waited for storage.
pub const SPAN_MAJOR: u32 = 1;
/// The name was cut short.
pub const SPAN_CUT: u32 = 2;
/// The file is a regular one.
pub const SPAN_REGULAR: u32 = 4;
/// The thread did not wait: it was taken off the processor.
pub const SPAN_PREEMPTED: u32 = 8;

/// The socket is connected to a name server.
pub const SPAN_DNS: u32 = 16;

/// A time that a thread spent on one thing, which is over.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Span {
    /// One of `SPAN_*`.
    pub kind: u32,
    /// Bits.
    pub flags: u32,
    /// Process and thread id in the initial pid namespace.
    pub tgid: u32,
    pub tid: u32,
    /// `CLOCK_MONOTONIC` of the initial time namespace, in nanoseconds.
    pub start_ns: u64,
    pub end_ns: u64,
    /// Off the processor: when it was woken, or 0.
    pub woken_ns: u64,
    /// Off the processor: the thread that woke it.
    pub waker: u32,
    /// What it waited for, or did: one of `CLASS_*`.
    pub class: u32,
    /// The number of the system call that it is, or happened in; -1 if none.
    pub number: i32,
    /// The device of the file, as the kernel has it (`MKDEV`).
    pub device: u32,
    pub inode: u64,
    /// What the system call returned.
    pub result: i64,
    /// As the kind says; of connect(2) the address of the socket.
    pub argument: u64,
}

const _: () = assert!(size_of::<Span>() == 80);

/// A [`Span`] with a path, or the address of a peer as a `struct sockaddr`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct NamedSpan {
    pub span: Span,
    pub name_len: u64,
    pub name: [u8; NAME_LEN],
}

/// A [`Span`] of a system call that has read what a name server answered.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct AnswerSpan {
    pub span: Span,
    pub answer_len: u64,
    pub answer: [u8; ANSWER_LEN],
}

/// The state of a thread, the value of the map `THREADS` by thread id.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Thread {
    pub tgid: u32,
    /// The class of the time since `last_ns`.
    pub class: u32,
    pub start_ns: u64,
    pub last_ns: u64,
    /// The system call that it is in; -1 if none.
    pub number: i32,
    /// The classes of that, on and off the processor.
    pub call_class: u32,
    pub wait_class: u32,
    /// Whether it waits for a lock of the kernel.
    pub is_contended: u32,
    pub call_ns: u64,
    /// How much of the call it has been on and off the processor.
    pub call_on_ns: u64,
    pub call_off_ns: u64,
    pub arguments: [u64; 3],
    /// The time of `CLASS_LOCK` when the call began.
    pub lock_ns: u64,
    pub device: u32,
    pub flags: u32,
    /// Whether it has begun to end.
    pub is_ending: u64,
    pub inode: u64,
    /// When the page fault that it is in began; 0 if none.
    pub fault_ns: u64,
    /// How much of it has been off the processor.
    pub fault_off_ns: u64,
    /// The file that it brings in a page of; 0 if none.
    pub fault_inode: u64,
    pub fault_device: u64,
    pub fault_address: u64,
    /// Since when it is off the processor; 0 if it is on one.
    pub off_ns: u64,
    /// Written by whoever wakes it, all else by the thread itself.
    pub woken_ns: u64,
    pub waker: u64,
    pub times: [u64; CLASSES],
}

/// A thread that has ended: what [`SPAN_END`] tells.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct EndSpan {
    pub span: Span,
    pub times: [u64; CLASSES],
    /// Ends with NUL.
    pub name: [u8; 16],
}

/// The calls of a process, as a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct CallsKey {
    pub tgid: u32,
    pub number: i32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct CallsTotal {
    pub count: u64,
    pub errors: u64,
    pub total_ns: u64,
    pub on_ns: u64,
}

impl AddAssign for CallsTotal {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.errors += other.errors;
        self.total_ns += other.total_ns;
        self.on_ns += other.on_ns;
    }
}

/// A file, as a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FileKey {
    pub inode: u64,
    pub device: u32,
    /// Always 0.
    pub reserved: u32,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct FileTotal {
    pub opens: u64,
    pub reads: u64,
    pub bytes_read: u64,
    pub on_ns: u64,
    pub disk_ns: u64,
    pub pages_missed: u64,
}

impl AddAssign for FileTotal {
    fn add_assign(&mut self, other: Self) {
        self.opens += other.opens;
        self.reads += other.reads;
        self.bytes_read += other.bytes_read;
        self.on_ns += other.on_ns;
        self.disk_ns += other.disk_ns;
        self.pages_missed += other.pages_missed;
    }
}

/// The page faults of a process in a file, or in no file, as a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FaultsKey {
    pub tgid: u32,
    pub device: u32,
    pub inode: u64,
}

#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct FaultsTotal {
    pub count: u64,
    /// Those that waited for storage.
    pub major: u64,
    pub total_ns: u64,
}

impl AddAssign for FaultsTotal {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.major += other.major;
        self.total_ns += other.total_ns;
    }
}

/// Failed look-ups of a process, the value of the map `LOOKUPS` by process id.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct LookupsTotal {
    pub count: u64,
    pub total_ns: u64,
}

impl AddAssign for LookupsTotal {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.total_ns += other.total_ns;
    }
}
