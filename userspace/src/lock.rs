//! Locks on files: those of a captured server, and whether they can be had again.
//!
//! CRIU takes them by calls that wait until a lock is free, so it is looked before.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{FcntlArg, fcntl};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::tree::{self, HostPid, Member};

/// A lock on a file, or on a part of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileLock {
    pub path: PathBuf,
    #[serde(flatten)]
    pub lock: Lock,
}

/// What is locked, and how.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lock {
    pub kind: Kind,
    /// Nobody else may have a lock; otherwise, others may share it.
    pub exclusive: bool,
    /// The first and the last byte; none for the end of the file, wherever it is.
    pub first: u64,
    pub last: Option<u64>,
}

/// The kinds of locks, which do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Of flock(2).
    Flock,
    /// Of fcntl(2): of a process, or of an open file.
    Fcntl,
}

impl Lock {
    fn excludes(&self, other: &Self) -> bool {
        let reaches = |a: &Self, b: &Self| a.last.is_none_or(|last| last >= b.first);
        self.kind == other.kind
            && (self.exclusive || other.exclusive)
            && reaches(self, other)
            && reaches(other, self)
    }
}

/// The locks that processes have on files.
pub fn held_by(members: &[Member]) -> BTreeSet<FileLock> {
    let mut found = BTreeSet::new();
    for member in members {
        let process = format!("/proc/{}", member.host);
        let files = fs::read_dir(format!("{process}/fd"));
        for file in files.into_iter().flatten().flatten() {
            let name = file.file_name();
            let info = Path::new(&process).join("fdinfo").join(name);
            let info = fs::read_to_string(info).unwrap_or_default();
            let locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
            for (lock, ..) in locks.filter_map(parse) {
                if let Ok(path) = fs::read_link(file.path()) {
                    found.insert(FileLock { path, lock });
                }
            }
        }
    }
    found
}

/// The first of the locks that somebody else has, and who that is.
pub fn find_taken(locks: &BTreeSet<FileLock>) -> Option<(&FileLock, String)> {
    if locks.is_empty() {
        return None;
    }
    let wanted = locks.iter().find(|wanted| is_taken(wanted))?;
    Some((wanted, holder(wanted)))
}

/// Whether somebody else has a lock: the kernel is asked by trying it.
fn is_taken(wanted: &FileLock) -> bool {
    let Ok(file) = fs::File::open(&wanted.path) else {
        return false;
    };
    match wanted.lock.kind {
        Kind::Flock => {
            let operation = match wanted.lock.exclusive {
                true => FlockOperation::NonBlockingLockExclusive,
                false => FlockOperation::NonBlockingLockShared,
            };
            // Given back as the file is closed.
            flock(&file, operation) == Err(Errno::WOULDBLOCK)
        }
        Kind::Fcntl => {
            let Lock { first, last, .. } = wanted.lock;
            let mut asked = libc::flock {
                l_type: match wanted.lock.exclusive {
                    true => libc::F_WRLCK as i16,
                    false => libc::F_RDLCK as i16,
                },
                l_whence: libc::SEEK_SET as i16,
                l_start: first as i64,
                // 0 is the end of the file, wherever it is.
                l_len: last.map_or(0, |last| last as i64 - first as i64 + 1),
                l_pid: 0,
            };
            let answered = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut asked));
            answered.is_ok() && i32::from(asked.l_type) != libc::F_UNLCK
        }
    }
}

/// Who has a lock, as far as /proc/locks tells: on some file systems it does not.
fn holder(wanted: &FileLock) -> String {
    let held = fs::read_to_string("/proc/locks").unwrap_or_default();
    let inode = wanted.path.metadata().map(|file| file.ino()).ok();
    let mut held = held.lines().filter_map(parse);
    let found = held.find(|(lock, _, on)| Some(*on) == inode && lock.excludes(&wanted.lock));
    match found {
        // It may have ended, and left the lock to its children.
        Some((_, pid, _)) if Path::new(&format!("/proc/{pid}")).exists() => tree::label(pid),
        _ => "another process".to_owned(),
    }
}

/// A line of /proc/locks or /proc/PID/fdinfo: the lock, its holder and the inode of the file.
/// None if it is of another kind, or of one who waits for it.
pub(crate) fn parse(line: &str) -> Option<(Lock, HostPid, u64)> {
    let mut words = line.split_whitespace().skip(1);
    let kind = match words.next()? {
        "FLOCK" => Kind::Flock,
        "POSIX" | "OFDLCK" => Kind::Fcntl,
        _ => return None,
    };
    let exclusive = words.nth(1)? == "WRITE";
    let pid = HostPid(words.next()?.parse().ok()?);
    let inode = words.next()?.rsplit(':').next()?.parse().ok()?;
    let lock = Lock {
        kind,
        exclusive,
        first: words.next()?.parse().ok()?,
        last: words.next()?.parse().ok(),
    };
    Some((lock, pid, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_read_and_exclude_each_other() {
        let lock = |line| parse(line).unwrap().0;
        let whole = "1: FLOCK  ADVISORY  WRITE 18971 fe:00:10224034 0 EOF";
        assert_eq!(parse(whole).unwrap().1, HostPid(18971));
        assert_eq!(parse(whole).unwrap().2, 10224034);
        assert_eq!(parse("1: -> FLOCK  ADVISORY  WRITE 1 fe:00:1 0 EOF"), None);
        assert_eq!(parse("1: LEASE  ACTIVE    READ  1 fe:00:1 0 EOF"), None);
        let whole = lock(whole);
        assert!(whole.excludes(&whole));
        let tail = lock("2: POSIX  ADVISORY  WRITE 1 fe:00:1 10 EOF");
        let head = lock("3: OFDLCK ADVISORY  READ  -1 fe:00:1 0 9");
        let more = lock("4: POSIX  ADVISORY  READ  1 fe:00:1 0 10");
        assert!(!tail.excludes(&whole) && !tail.excludes(&head) && !head.excludes(&more));
        assert!(tail.excludes(&more) && more.excludes(&tail));
    }
}
