//! The namespaces of a process that runs already, to be entered for a checkpoint of it.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use nix::sched::{CloneFlags, setns};

use super::SpawnError;
use crate::{
    sys,
    tree::{HostPid, Top},
};

/// Those in which a process of a sandbox can differ from the supervisor. That of pids is not among
/// them: it is entered by being forked into it.
const ENTERED: [&str; 3] = ["net", "time", "mnt"];

/// Those in which only the processes of containers differ.
const SHARED: [&str; 4] = ["user", "ipc", "uts", "cgroup"];

/// The namespaces of a process that differ from ours.
pub struct Namespaces {
    pid: Option<fs::File>,
    others: Vec<fs::File>,
}

impl Namespaces {
    /// Looks up those of a process.
    ///
    /// # Errors
    /// [`SpawnError::Container`] if it sees other files than we do, or has namespaces that are
    /// not entered; [`SpawnError::Enter`] if they cannot be read.
    pub fn of(pid: HostPid) -> Result<Self, SpawnError> {
        let fail = |source| SpawnError::Enter { pid, source };
        for kind in SHARED {
            if is_other(pid, kind).map_err(fail)? {
                return Err(SpawnError::Container { pid, what: kind });
            }
        }
        let root = |of: &str| {
            let root = fs::metadata(Path::new("/proc").join(of).join("root/."))?;
            Ok((root.dev(), root.ino()))
        };
        let theirs = root(&pid.to_string()).map_err(fail)?;
        if theirs != root("self").map_err(fail)? {
            return Err(SpawnError::Container { pid, what: "root" });
        }
        // Without a /proc of its own, its pids there would be those of others.
        if is_other(pid, "pid").map_err(fail)? && !is_other(pid, "mnt").map_err(fail)? {
            return Err(SpawnError::Container { pid, what: "pid" });
        }
        let open = |kind: &str| -> io::Result<Option<fs::File>> {
            match is_other(pid, kind)? {
                true => fs::File::open(format!("/proc/{pid}/ns/{kind}")).map(Some),
                false => Ok(None),
            }
        };
        let others = ENTERED.into_iter().map(open);
        let others: io::Result<Vec<_>> = others.collect();
        Ok(Self {
            pid: open("pid").map_err(fail)?,
            others: others.map_err(fail)?.into_iter().flatten().collect(),
        })
    }

    /// Lets the next child be born in the namespace of pids, until the result is dropped.
    pub(super) fn of_children(&self) -> io::Result<Option<Born>> {
        let Some(pid) = &self.pid else {
            return Ok(None);
        };
        let own = fs::File::open("/proc/self/ns/pid")?;
        setns(pid, CloneFlags::CLONE_NEWPID)?;
        Ok(Some(Born { own }))
    }

    /// Enters the others.
    pub(super) fn enter(&self) -> io::Result<()> {
        self.others
            .iter()
            .try_for_each(|namespace| setns(namespace, CloneFlags::empty()))
            .map_err(io::Error::from)
    }
}

/// A tree that runs already, to be visited for a checkpoint.
pub struct Visit {
    pub namespaces: Namespaces,
    /// The tree by the pids of its own namespace: when the visit ends, all of it goes on.
    pub top: Top,
}

/// Children are born in a new time namespace as long as this lives.
pub(super) struct Clocks {
    own: fs::File,
}

impl Clocks {
    pub(super) fn of_children() -> io::Result<Self> {
        let own = fs::File::open("/proc/self/ns/time")?;
        sys::unshare_time()?;
        Ok(Self { own })
    }
}

impl Drop for Clocks {
    fn drop(&mut self) {
        // The supervisor never left its own; that of its children is set with it.
        let _ = setns(&self.own, CloneFlags::empty());
    }
}

/// Children are born in another namespace of pids as long as this lives.
pub(super) struct Born {
    own: fs::File,
}

impl Drop for Born {
    fn drop(&mut self) {
        let _ = setns(&self.own, CloneFlags::CLONE_NEWPID);
    }
}

fn is_other(pid: HostPid, kind: &str) -> io::Result<bool> {
    let theirs = fs::read_link(format!("/proc/{pid}/ns/{kind}"))?;
    let ours = fs::read_link(Path::new("/proc/self/ns").join(kind))?;
    Ok(theirs != ours)
}
