//! Groups of version 2 to hold a process with all it starts: what it used, and its end.
//!
//! No controller is needed: CPU time is accounted and all processes can be killed at once in any
//! group. The hierarchy is mounted detached, for this process alone, so that it does not matter
//! where the host has it, or whether a container sees it read-only.
//! Source: Documentation/admin-guide/cgroup-v2.rst of the kernel.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::{end, name, processes, sweep};
use crate::tree::HostPid;

/// A place for groups: the caller's own group.
pub struct Parent {
    path: PathBuf,
    /// What is mounted nowhere is reached by its descriptor.
    _mount: OwnedFd,
}

/// A group; what is in it is killed, and the group removed, when this is dropped.
pub struct Cgroup {
    path: PathBuf,
    folder: OwnedFd,
}

impl Parent {
    /// Finds the caller's group, and removes what killed owners left in it.
    ///
    /// # Errors
    /// If the kernel has no control groups of version 2, or CAP_SYS_ADMIN is missing.
    pub fn open() -> io::Result<Self> {
        let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let mount = fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let own = own_group(&groups)
            .ok_or_else(|| io::Error::other("/proc/self/cgroup has no line for version 2"))?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        let parent = Self {
            path: root.join(own),
            _mount: mount,
        };
        sweep(&parent.path, end);
        Ok(parent)
    }

    /// Makes a group.
    ///
    /// # Errors
    /// What mkdir(2) and open(2) say.
    pub fn create(&self) -> io::Result<Cgroup> {
        let own = HostPid(std::process::id() as i32);
        let path = self.path.join(name(own));
        fs::create_dir(&path)?;
        let folder = fs::File::open(&path).map(OwnedFd::from);
        match folder {
            Ok(folder) => Ok(Cgroup { path, folder }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }
}

impl Cgroup {
    /// The processes in it, by the pids that the caller sees.
    pub fn processes(&self) -> Vec<HostPid> {
        processes(&self.path)
    }

    /// Whether anything still runs in it.
    pub fn is_populated(&self) -> bool {
        is_populated(&self.path)
    }

    /// The CPU time of all that ran in it, in user and kernel mode, ended processes too.
    ///
    /// # Errors
    /// If `cpu.stat` cannot be read.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let text = fs::read_to_string(self.path.join("cpu.stat"))?;
        usage(&text).ok_or_else(|| io::Error::other("cpu.stat has no usage_usec"))
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        end(&self.path);
    }
}

fn is_populated(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.events"))
        .is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

/// The path of the group of version 2, relative to the root of the hierarchy.
fn own_group(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.trim_start_matches('/'))
}

fn usage(text: &str) -> Option<Duration> {
    let us = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    us.trim().parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_version_2_is_found_among_the_others() {
        let text = "3:cpuset:/\n1:cpu:/x\n0::/user.slice/session-1.scope\n";
        assert_eq!(own_group(text), Some("user.slice/session-1.scope"));
        assert_eq!(own_group("0::/\n"), Some(""));
        assert_eq!(own_group("1:cpu:/\n"), None);
    }

    #[test]
    fn cpu_time_is_read_in_microseconds() {
        let text = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n";
        assert_eq!(usage(text), Some(Duration::from_micros(1500)));
    }
}
