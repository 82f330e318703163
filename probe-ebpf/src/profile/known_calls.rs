//! What system calls are about, by their numbers: the class of their time, and what they name.

use probe_ebpf::trace::{
    CLASS_CHILD, CLASS_DISK, CLASS_EVENTS, CLASS_FILES, CLASS_KERNEL, CLASS_LOCK, CLASS_NETWORK,
    CLASS_OTHER, CLASS_SLEEP,
};

/// What the arguments of a call name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Names {
    Nothing,
    /// The first argument is a descriptor, which decides on the classes.
    Descriptor,
    /// An argument is a path.
    Path(usize),
    /// As `Path`, and a descriptor of it is returned.
    Opened(usize),
    /// The first argument is a socket, the second the address of a peer.
    Peer,
    /// Waits for a count of things, which is the argument; for none it only sleeps.
    Several(usize),
}

/// A system call.
#[derive(Clone, Copy)]
pub struct Known {
    /// The class on the processor.
    pub class: u32,
    /// The class while it waits.
    pub wait: u32,
    pub names: Names,
    /// Whether it returns how many bytes it has read.
    pub reads: bool,
}

const fn known(class: u32, wait: u32, names: Names) -> Known {
    Known {
        class,
        wait,
        names,
        reads: false,
    }
}

const READS: Known = Known {
    reads: true,
    ..known(CLASS_KERNEL, CLASS_OTHER, Names::Descriptor)
};
const DESCRIPTOR: Known = known(CLASS_KERNEL, CLASS_OTHER, Names::Descriptor);
const FIRST_PATH: Known = known(CLASS_FILES, CLASS_DISK, Names::Path(0));
const SECOND_PATH: Known = known(CLASS_FILES, CLASS_DISK, Names::Path(1));
const FILES: Known = known(CLASS_FILES, CLASS_DISK, Names::Nothing);
const LOCK: Known = known(CLASS_KERNEL, CLASS_LOCK, Names::Nothing);
const SLEEP: Known = known(CLASS_KERNEL, CLASS_SLEEP, Names::Nothing);
const CHILD: Known = known(CLASS_KERNEL, CLASS_CHILD, Names::Nothing);
const EVENTS: Known = known(CLASS_KERNEL, CLASS_EVENTS, Names::Nothing);
const OTHER: Known = known(CLASS_KERNEL, CLASS_OTHER, Names::Nothing);
const PEER: Known = known(CLASS_KERNEL, CLASS_NETWORK, Names::Peer);

/// By the number in arch/x86/entry/syscalls/syscall_64.tbl.
#[cfg(bpf_target_arch = "x86_64")]
pub fn of(number: i32) -> Known {
    match number {
        // read, pread64, readv, preadv, preadv2, recvfrom, recvmsg, recvmmsg
        0 | 17 | 19 | 295 | 327 | 45 | 47 | 299 => READS,
        // write, pwrite64, writev, pwritev, pwritev2, sendto, sendmsg, sendmmsg, fstat, lseek,
        // accept, accept4
        1 | 18 | 20 | 296 | 328 | 44 | 46 | 307 | 5 | 8 | 43 | 288 => DESCRIPTOR,
        // open, creat
        2 | 85 => known(CLASS_FILES, CLASS_DISK, Names::Opened(0)),
        // openat, openat2
        257 | 437 => known(CLASS_FILES, CLASS_DISK, Names::Opened(1)),
        // stat, lstat, access, execve, truncate, chdir, rename, mkdir, rmdir, link, unlink, symlink,
        // readlink, chmod, chown, lchown, statfs
        4 | 6 | 21 | 59 | 76 | 80 | 82..=84 | 86..=90 | 92 | 94 | 137 => FIRST_PATH,
        // mkdirat, newfstatat, unlinkat, renameat, readlinkat, faccessat, execveat, renameat2, statx,
        // faccessat2
        258 | 262..=264 | 267 | 269 | 322 | 316 | 332 | 439 => SECOND_PATH,
        // fsync, fdatasync, getdents, getdents64, sync, readahead, fallocate, sync_file_range
        74 | 75 | 78 | 217 | 162 | 187 | 285 | 277 => FILES,
        // futex, futex_waitv, futex_wait, flock, fcntl
        202 | 449 | 455 | 73 | 72 => LOCK,
        // nanosleep, clock_nanosleep
        35 | 230 => SLEEP,
        // wait4, waitid, clone, fork, vfork, clone3
        61 | 247 | 56..=58 | 435 => CHILD,
        // poll, ppoll
        7 | 271 => known(CLASS_KERNEL, CLASS_EVENTS, Names::Several(1)),
        // select, pselect6
        23 | 270 => known(CLASS_KERNEL, CLASS_EVENTS, Names::Several(0)),
        // epoll_wait, epoll_pwait, epoll_pwait2, io_uring_enter, io_getevents
        232 | 281 | 441 | 426 | 208 => EVENTS,
        // connect
        42 => PEER,
        _ => OTHER,
    }
}

/// By the number in include/uapi/asm-generic/unistd.h.
#[cfg(bpf_target_arch = "aarch64")]
pub fn of(number: i32) -> Known {
    match number {
        // read, pread64, readv, preadv, preadv2, recvfrom, recvmsg, recvmmsg
        63 | 67 | 65 | 69 | 286 | 207 | 212 | 243 => READS,
        // write, pwrite64, writev, pwritev, pwritev2, sendto, sendmsg, sendmmsg, fstat, lseek,
        // accept, accept4
        64 | 68 | 66 | 70 | 287 | 206 | 211 | 269 | 80 | 62 | 202 | 242 => DESCRIPTOR,
        // openat, openat2
        56 | 437 => known(CLASS_FILES, CLASS_DISK, Names::Opened(1)),
        // statfs, truncate, chdir, execve
        43 | 45 | 49 | 221 => FIRST_PATH,
        // mkdirat, unlinkat, renameat, faccessat, readlinkat, newfstatat, renameat2, execveat, statx,
        // faccessat2
        34 | 35 | 38 | 48 | 78 | 79 | 276 | 281 | 291 | 439 => SECOND_PATH,
        // getdents64, sync, fsync, fdatasync, sync_file_range, readahead, fallocate
        61 | 81..=84 | 213 | 47 => FILES,
        // futex, futex_waitv, futex_wait, flock, fcntl
        98 | 449 | 455 | 32 | 25 => LOCK,
        // nanosleep, clock_nanosleep
        101 | 115 => SLEEP,
        // wait4, waitid, clone, clone3
        260 | 95 | 220 | 435 => CHILD,
        // ppoll
        73 => known(CLASS_KERNEL, CLASS_EVENTS, Names::Several(1)),
        // pselect6
        72 => known(CLASS_KERNEL, CLASS_EVENTS, Names::Several(0)),
        // epoll_pwait, epoll_pwait2, io_uring_enter, io_getevents
        22 | 441 | 426 | 4 => EVENTS,
        // connect
        203 => PEER,
        _ => OTHER,
    }
}
