//! What a thread does at each moment: exactly one of these.

use serde::{Deserialize, Serialize};

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Class {
    /// Runs code of its own.
    User,
    /// Runs in the kernel, for what has no class of its own.
    Kernel,
    /// Runs in the kernel to bring in memory that it touched.
    Fault,
    /// Runs in the kernel to look up, open or read files, which are in memory.
    Files,
    /// Waits for storage.
    Disk,
    /// Waits for a peer on the network.
    Network,
    /// Waits for another process at a pipe or Unix socket.
    Peer,
    /// Waits in poll(2), select(2) or epoll_wait(2) for any of several things.
    Events,
    /// Sleeps for a time it chose.
    Sleep,
    /// Waits for a lock: futex(2), flock(2), fcntl(2).
    Lock,
    /// Waits for a child process: wait4(2), vfork(2).
    Child,
    /// Waits for something else, or is stopped.
    Other,
    /// Could run, but no processor is given to it.
    Runnable,
}

impl Class {
    pub const COUNT: usize = 13;

    pub const ALL: [Self; Self::COUNT] = [
        Self::User,
        Self::Kernel,
        Self::Fault,
        Self::Files,
        Self::Disk,
        Self::Network,
        Self::Peer,
        Self::Events,
        Self::Sleep,
        Self::Lock,
        Self::Child,
        Self::Other,
        Self::Runnable,
    ];

    /// Whether a processor is at work for it.
    pub fn is_on_cpu(self) -> bool {
        matches!(self, Self::User | Self::Kernel | Self::Fault | Self::Files)
    }

    /// As a person reads it.
    pub fn title(self) -> &'static str {
        match self {
            Self::User => "own code",
            Self::Kernel => "kernel",
            Self::Fault => "page faults",
            Self::Files => "files in memory",
            Self::Disk => "storage",
            Self::Network => "network",
            Self::Peer => "other processes",
            Self::Events => "events",
            Self::Sleep => "sleeping",
            Self::Lock => "locks",
            Self::Child => "children",
            Self::Other => "other waits",
            Self::Runnable => "no processor free",
        }
    }
}

/// Nanoseconds of each class, in the order of [`Class::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times(pub [u64; Class::COUNT]);

impl Times {
    pub fn of(&self, class: Class) -> u64 {
        self.0[class as usize]
    }

    pub fn add(&mut self, class: Class, nanoseconds: u64) {
        self.0[class as usize] += nanoseconds;
    }

    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The time on processors.
    pub fn on_cpu(&self) -> u64 {
        let classes = Class::ALL.into_iter().filter(|class| class.is_on_cpu());
        classes.map(|class| self.of(class)).sum()
    }
}

impl std::iter::Sum for Times {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, times| {
            for class in Class::ALL {
                sum.add(class, times.of(class));
            }
            sum
        })
    }
}
