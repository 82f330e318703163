//! Control groups: one that holds a run and measures it ([`Cgroup`]), and one by which an instance
//! is limited ([`Group`]).
//!
//! The name of a group tells its owner: pid and start time, as a pid alone can be used again. What
//! an owner left that was killed is so known, and removed by the next that makes a group beside.

mod files;
mod group;
mod hierarchy;
mod limits;
mod measured;

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

pub use self::{
    group::{CgroupError, Group, Request, Reservation},
    hierarchy::{Controller, NO_CONTROLLER_FIX, Place, Places, Version},
    limits::{Cpus, Limits, Memory, State},
    measured::{Cgroup, Parent},
};
use crate::tree::HostPid;

/// What the names of our groups begin with; the pid and start time of the owner follow.
const PREFIX: &str = "warmimg.";

/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The name of the group that a process owns.
fn name(owner: HostPid) -> String {
    let start = start_time(owner).unwrap_or(0);
    format!("{PREFIX}{owner}.{start}")
}

fn owner(name: &str) -> Option<(HostPid, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '.');
    let pid = HostPid(parts.next()?.parse().ok()?);
    Some((pid, parts.next()?.parse().ok()?))
}

/// When a process was started, in clock ticks since the boot.
fn start_time(pid: HostPid) -> Option<u64> {
    let process = procfs::process::Process::new(pid.0).ok()?;
    Some(process.stat().ok()?.starttime)
}

/// Removes the groups in `parent` whose owners are gone.
fn sweep(parent: &Path, remove: impl Fn(&Path)) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        let owner = file_name.to_str().and_then(owner);
        if owner.is_some_and(|(pid, start)| start_time(pid) != Some(start)) {
            remove(&entry.path());
        }
    }
}

/// The processes in a group, by the pids that the caller sees.
fn processes(group: &Path) -> Vec<HostPid> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let pids = text.lines().filter_map(|line| line.parse().ok());
    // Those of other pid namespaces are shown as 0.
    pids.filter(|&pid| pid != 0).map(HostPid).collect()
}

/// Kills what is in a group (of version 2), and removes it.
fn end(group: &Path) {
    let _ = fs::write(group.join("cgroup.kill"), "1");
    remove(group);
}

/// Removes a group once nothing runs in it any more.
fn remove(group: &Path) {
    let deadline = Instant::now() + KILL_LIMIT;
    while fs::remove_dir(group).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
        if Instant::now() > deadline {
            tracing::warn!("cannot remove {}: something runs in it", group.display());
            return;
        }
        let _ = nix::poll::poll(&mut [], 1_u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_known_by_pid_and_start_time() {
        assert_eq!(owner("warmimg.12.3456"), Some((HostPid(12), 3456)));
        assert_eq!(owner("warmimg.12.3456.a.b-1"), Some((HostPid(12), 3456)));
        assert_eq!(owner("user.slice"), None);
        let own = HostPid(std::process::id() as i32);
        assert_eq!(owner(&name(own)), start_time(own).map(|start| (own, start)));
    }
}
