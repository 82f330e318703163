//! The kinds of obstacles, and what is known of each.

use std::fmt;

/// What kind of obstacle it is, in a word that stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    EstablishedConnection,
    SeveralUsers,
    MainThreadEnded,
    ForeignSession,
    DeletedLinked,
    DeletedTooBig,
    IoUring,
    Mptcp,
    SocketFamily,
    SocketData,
    Device,
    Userfaultfd,
    PerfEvent,
    Bpf,
    SeccompListener,
    SeccompFilter,
    LandlockRuleset,
    ForeignPidfd,
    SecretMemory,
    SharedMemory,
    MessageQueue,
    UnknownFile,
    Namespace,
    Traced,
    ShadowStack,
}

impl Code {
    #[cfg(test)]
    pub const ALL: [Self; 25] = [
        Self::EstablishedConnection,
        Self::SeveralUsers,
        Self::MainThreadEnded,
        Self::ForeignSession,
        Self::DeletedLinked,
        Self::DeletedTooBig,
        Self::IoUring,
        Self::Mptcp,
        Self::SocketFamily,
        Self::SocketData,
        Self::Device,
        Self::Userfaultfd,
        Self::PerfEvent,
        Self::Bpf,
        Self::SeccompListener,
        Self::SeccompFilter,
        Self::LandlockRuleset,
        Self::ForeignPidfd,
        Self::SecretMemory,
        Self::SharedMemory,
        Self::MessageQueue,
        Self::UnknownFile,
        Self::Namespace,
        Self::Traced,
        Self::ShadowStack,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::EstablishedConnection => "established-connection",
            Self::SeveralUsers => "several-users",
            Self::MainThreadEnded => "main-thread-ended",
            Self::ForeignSession => "foreign-session",
            Self::DeletedLinked => "deleted-linked",
            Self::DeletedTooBig => "deleted-too-big",
            Self::IoUring => "io-uring",
            Self::Mptcp => "mptcp",
            Self::SocketFamily => "socket-family",
            Self::SocketData => "socket-data",
            Self::Device => "device",
            Self::Userfaultfd => "userfaultfd",
            Self::PerfEvent => "perf-event",
            Self::Bpf => "bpf",
            Self::SeccompListener => "seccomp-listener",
            Self::SeccompFilter => "seccomp-filter",
            Self::LandlockRuleset => "landlock-ruleset",
            Self::ForeignPidfd => "foreign-pidfd",
            Self::SecretMemory => "secret-memory",
            Self::SharedMemory => "shared-memory",
            Self::MessageQueue => "message-queue",
            Self::UnknownFile => "unknown-file",
            Self::Namespace => "namespace",
            Self::Traced => "traced",
            Self::ShadowStack => "shadow-stack",
        }
    }

    /// The system call that makes such a thing, if it is one.
    pub fn call(self) -> Option<&'static str> {
        Some(match self {
            Self::EstablishedConnection => "connect",
            Self::SeveralUsers => "setuid",
            Self::IoUring => "io_uring_setup",
            Self::Mptcp | Self::SocketFamily | Self::SocketData => "socket",
            Self::Device => "open",
            Self::Userfaultfd => "userfaultfd",
            Self::PerfEvent => "perf_event_open",
            Self::Bpf => "bpf",
            Self::SeccompListener | Self::SeccompFilter => "seccomp",
            Self::LandlockRuleset => "landlock_create_ruleset",
            Self::ForeignPidfd => "pidfd_open",
            Self::SecretMemory => "memfd_secret",
            Self::SharedMemory => "shmat",
            Self::MessageQueue => "mq_open",
            Self::Namespace => "unshare or clone",
            Self::Traced => "ptrace",
            Self::ShadowStack => "arch_prctl",
            Self::DeletedLinked | Self::DeletedTooBig => "unlink",
            Self::MainThreadEnded | Self::ForeignSession | Self::UnknownFile => return None,
        })
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Self::EstablishedConnection => {
                "the other end does not know of the copies, and cannot speak with several"
            }
            Self::SeveralUsers => {
                "without CAP_SYS_RESOURCE, CRIU can dump the processes of one user only"
            }
            Self::MainThreadEnded => "CRIU takes such a process for ended, with all of its threads",
            Self::ForeignSession => "no restore could put it into that session",
            Self::DeletedLinked => {
                "the first restore would take the other name away from the second"
            }
            Self::DeletedTooBig => "an image would have to carry the file",
            Self::IoUring => "what is in the rings of the kernel cannot be read by CRIU",
            Self::Mptcp => "CRIU knows TCP, and not TCP over several paths",
            Self::SocketFamily => {
                "CRIU knows TCP, UDP, raw IP, Unix, packet and netlink sockets alone"
            }
            Self::SocketData => "the kernel holds data in a socket that CRIU cannot take out of it",
            Self::Device => "the state that a driver keeps for it cannot be read",
            Self::Userfaultfd => "the kernel does not tell what it handles",
            Self::PerfEvent => "the kernel does not tell what it counts",
            Self::Bpf => "the kernel keeps programs and maps of BPF for CRIU as little as for us",
            Self::SeccompListener => "another process may wait for it to decide",
            Self::SeccompFilter => {
                "warmimg itself runs under a filter, and CRIU with it: the kernel does not let it \
                 suspend those of others"
            }
            Self::LandlockRuleset => "the kernel does not tell what is in it",
            Self::ForeignPidfd => "it refers to a process that will not be there",
            Self::SecretMemory => "nobody else can read it, neither can CRIU",
            Self::SharedMemory => {
                "a segment of System V is in the IPC namespace of the host, where copies would \
                 clash"
            }
            Self::MessageQueue => "it is on a file system that CRIU does not see",
            Self::UnknownFile => "CRIU does not know files of that kind",
            Self::Namespace => "CRIU can restore a tree only in namespaces that are all the same",
            Self::Traced => "a process can have one tracer, and CRIU has to be it",
            Self::ShadowStack => {
                "CRIU knows shadow stacks from 4.0 on: one that is older would break the process"
            }
        }
    }

    /// What to do.
    pub fn fix(self) -> &'static str {
        match self {
            Self::EstablishedConnection => {
                "if the server connects again by itself, --tcp-close restores it closed; \
                 --before-freeze can tell it to close it; --tcp-established keeps it for a single \
                 restore"
            }
            Self::SeveralUsers => {
                "run the server under one user (--user, and a port from 1024 on), or give warmimg \
                 CAP_SYS_RESOURCE"
            }
            Self::MainThreadEnded => "let the main thread wait for the others instead of ending",
            Self::ForeignSession => "start it in a session of its own: setsid COMMAND",
            Self::DeletedLinked | Self::DeletedTooBig => {
                "let the server keep the file's name while it uses it, or choose a point with --at \
                 at which it does not"
            }
            Self::IoUring => {
                "turn it off in the server (Node.js and libuv: UV_USE_IO_URING=0; nginx and others \
                 have a setting), or for all: sysctl kernel.io_uring_disabled=2"
            }
            Self::Mptcp => "let it use plain TCP (Go: GODEBUG=multipathtcp=0)",
            Self::SocketFamily => {
                "turn off what uses it, or choose an earlier point with --at at which it is not \
                 open yet"
            }
            Self::SocketData => {
                "choose another point with --at, at which the server has read or sent it"
            }
            Self::Device => {
                "turn off what uses the device, or let the server open it after the restore \
                 (--after-restore), or choose an earlier point with --at"
            }
            Self::Userfaultfd => "turn off what uses it: a collector of garbage, or live migration",
            Self::PerfEvent => "turn off the profiler in the server",
            Self::Bpf => "turn off what uses BPF, or load it after the restore (--after-restore)",
            Self::SeccompListener => "start the server without the sandbox that supervises it",
            Self::SeccompFilter => {
                "run warmimg without a filter (docker run --security-opt seccomp=unconfined); \
                 filters of the server itself are captured"
            }
            Self::LandlockRuleset => "let the server close the ruleset once it is in force",
            Self::ForeignPidfd => {
                "start the server by itself, without a descriptor of its parent; choose another \
                 point with --at"
            }
            Self::SecretMemory => "turn off memory that is hidden (memfd_secret) in the server",
            Self::SharedMemory => {
                "let the server use mmap or POSIX shared memory (PostgreSQL: \
                 shared_memory_type=mmap), or run it in an IPC namespace of its own: unshare --ipc \
                 COMMAND"
            }
            Self::MessageQueue => "use a Unix socket instead, or open the queue after the restore",
            Self::UnknownFile => "choose another point with --at, at which it is not open",
            Self::Namespace => {
                "turn off the sandbox that makes namespaces (Chromium: --no-sandbox), or run \
                 warmimg in the container"
            }
            Self::Traced => "detach the debugger, strace or profiler, and try again",
            Self::ShadowStack => {
                "use CRIU 4.0 or newer (--criu, `cargo xtask setup`), or start the server without them: \
                 GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"
            }
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = Code::ALL.into_iter().map(Code::name).collect();
        assert_eq!(names.len(), Code::ALL.len());
        let is_word = |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        assert!(names.iter().all(is_word));
    }
}
