//! Keeps the listening sockets open while no gateway runs: connections wait until the next one takes them
//! over, be it after an upgrade or a crash.
//!
//! The keeper is a fork of the gateway that does nothing but hold the sockets. Which it has is in
//! a file; that it still runs is told by its lock on that file.

use std::{
    fs, io, mem,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{
        Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal,
    },
};
use serde::{Deserialize, Serialize};

use super::{places::is_any_port, socket::Socket};
use crate::{listener::Listener, private, store::is_free, sys};

const RECORD: &str = "keeper.json";
/// The number of the first socket in the keeper, behind the lock.
const FIRST: i32 = 4;

#[derive(Serialize, Deserialize)]
struct Record {
    pid: i32,
    /// What the sockets are for, and where they listen, in the order of their numbers.
    sockets: Vec<(String, Listener)>,
}

/// A socket that listens already: of a gateway that is gone, or passed by a service manager.
pub struct Kept {
    /// What it is for.
    pub name: String,
    pub listener: Listener,
    pub descriptor: OwnedFd,
    /// The service manager has it too.
    pub is_passed: bool,
}

impl Kept {
    /// Takes the one that listens there; else that of this name, if it may listen elsewhere.
    pub fn take(all: &mut Vec<Self>, listener: &Listener, name: Option<&str>) -> Option<Self> {
        let equal = all.iter().position(|kept| kept.listener == *listener);
        let is_named = |kept: &Self| {
            let is_alike = mem::discriminant(&kept.listener) == mem::discriminant(listener);
            let is_free = is_any_port(listener) || kept.is_passed;
            is_alike && is_free && Some(&*kept.name) == name
        };
        let found = equal.or_else(|| all.iter().position(is_named));
        found.map(|place| all.remove(place))
    }
}

/// A process that holds sockets. It ends when this is dropped, unless it is [left](Keeper::leave).
pub struct Keeper {
    pidfd: OwnedFd,
    pid: i32,
    path: PathBuf,
}

impl Keeper {
    /// Has a new process hold these sockets.
    ///
    /// # Errors
    /// What clone3(2) and the file system say.
    pub fn start(folder: &Path, sockets: &[(String, Rc<Socket>)]) -> io::Result<Self> {
        let path = folder.join(RECORD);
        // A new file: the lock on the old one is that of the keeper before.
        let aside = folder.join(".keeper.json");
        private::write(&aside, b"")?;
        let lock = fs::OpenOptions::new().write(true).open(&aside)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let sockets_fds = sockets
            .iter()
            .map(|(_, socket)| socket.descriptor.as_raw_fd());
        let descriptors: Vec<_> = [lock.as_raw_fd()].into_iter().chain(sockets_fds).collect();
        let (pid, pidfd) = match sys::fork(sys::ForkOptions::default())? {
            sys::Fork::Child => hold(&descriptors),
            sys::Fork::Parent { pid, pidfd } => (pid, pidfd),
        };
        let keeper = Self {
            pidfd,
            pid,
            path: path.clone(),
        };
        let record = Record {
            pid,
            sockets: sockets
                .iter()
                .map(|(name, socket)| (name.clone(), socket.listener.clone()))
                .collect(),
        };
        private::write(&aside, &serde_json::to_vec(&record)?)?;
        fs::rename(&aside, &path)?;
        Ok(keeper)
    }

    /// Takes over the sockets of a gateway that is gone, and ends its keeper.
    pub fn take_over(folder: &Path) -> Vec<Kept> {
        let path = folder.join(RECORD);
        let Some(record) = read(&path) else {
            return vec![];
        };
        let Some(pid) = Pid::from_raw(record.pid) else {
            return vec![];
        };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return vec![];
        };
        // Opened, then checked: if the lock is still held, the pid was the keeper's.
        if is_free(&path) {
            return vec![];
        }
        let sockets = record.sockets.into_iter().zip(FIRST..);
        let sockets = sockets.filter_map(|((name, listener), number)| {
            let descriptor = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty());
            Some(Kept {
                name,
                listener,
                descriptor: descriptor.ok()?,
                is_passed: false,
            })
        });
        let sockets: Vec<_> = sockets.collect();
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        let _ = fs::remove_file(&path);
        sockets
    }

    /// Lets it go on without this gateway.
    pub fn leave(self) {
        mem::forget(self);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
        let pid = nix::unistd::Pid::from_raw(self.pid);
        while nix::sys::wait::waitpid(pid, None) == Err(nix::Error::EINTR) {}
        // Another keeper may have taken its place.
        if read(&self.path).is_some_and(|record| record.pid == self.pid) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn read(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The keeper itself.
fn hold(descriptors: &[i32]) -> ! {
    let _ = rustix::thread::set_name(c"warmimg-keeper");
    let _ = nix::unistd::setsid();
    if sys::keep_only(descriptors).is_ok() {
        let signals = nix::sys::signal::SigSet::all();
        let _ = signals.thread_block();
        // For ever, or until it is killed.
        while signals.wait() != Ok(nix::sys::signal::Signal::SIGTERM) {}
    }
    sys::exit_now(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> Listener {
        let address = text.parse().unwrap();
        Listener::Tcp { address }
    }

    fn passed(sockets: &[(&str, &str)]) -> Vec<Kept> {
        let socket = |(name, listener): &(&str, &str)| Kept {
            name: (*name).to_owned(),
            listener: tcp(listener),
            descriptor: fs::File::open("/dev/null").unwrap().into(),
            is_passed: true,
        };
        sockets.iter().map(socket).collect()
    }

    #[test]
    fn a_socket_is_known_by_its_place_before_its_name() {
        let mut all = passed(&[
            ("shop", "[::]:443"),
            ("shop", "[::]:80"),
            ("blog", "[::]:81"),
        ]);
        let unix = Listener::Unix {
            path: "/run/blog.sock".into(),
        };
        let mut place = |listener: &Listener, name| {
            let kept = Kept::take(&mut all, listener, name);
            kept.map(|kept| kept.listener)
        };
        assert_eq!(place(&tcp("127.0.0.1:80"), None), None);
        assert_eq!(place(&tcp("[::]:80"), Some("shop")), Some(tcp("[::]:80")));
        assert_eq!(place(&unix, Some("blog")), None);
        assert_eq!(place(&tcp("[::]:8081"), Some("blog")), Some(tcp("[::]:81")));
        assert_eq!(place(&tcp("[::]:443"), None), Some(tcp("[::]:443")));
        assert_eq!(place(&tcp("[::]:443"), Some("shop")), None);
    }

    #[test]
    fn what_was_kept_goes_on_elsewhere_only_if_any_port_will_do() {
        let mut all = passed(&[("shop", "127.0.0.1:4711")]);
        all[0].is_passed = false;
        assert!(Kept::take(&mut all, &tcp("127.0.0.1:80"), Some("shop")).is_none());
        assert!(Kept::take(&mut all, &tcp("127.0.0.1:0"), Some("shop")).is_some());
    }
}
