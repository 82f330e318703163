//! What a process is, rather than what it has.

use std::{fs, os::unix::fs::MetadataExt as _};

use procfs::process::Process;

use super::{Code, Obstacle};
use crate::{
    criu::Version,
    tree::{self, HostPid, Member, NsPid},
};

/// In which the root must be where CRIU is: it is not restored in others.
const OF_CRIU: [&str; 2] = ["user", "mnt"];

/// In which all processes must be where the root is.
const OF_ROOT: [&str; 8] = [
    "user",
    "mnt",
    "net",
    "ipc",
    "uts",
    "cgroup",
    "time",
    "time_for_children",
];

/// `SECCOMP_MODE_FILTER` of linux/seccomp.h.
const FILTER: u32 = 2;

/// The first CRIU that knows shadow stacks (<https://github.com/checkpoint-restore/criu/pull/2484>).
const SHADOW_STACKS: Version = Version(4, 0, 0);

pub fn look_for(members: &[Member], criu: HostPid, version: Version) -> Vec<Obstacle> {
    let Some(root) = members.first() else {
        return vec![];
    };
    let mut found = Vec::new();
    let criu_is_filtered = seccomp_mode(criu) != Some(0);
    let shares_ipc = namespace(root.host, "ipc") == namespace(criu, "ipc");
    let depth = |pid| Some(status(pid)?.nspid?.len());
    for member in members {
        let pid = member.host;
        let mut add = |code, what: &str| found.push(Obstacle::new(code, pid, what));
        if tree::is_headless(pid) {
            add(
                Code::MainThreadEnded,
                "goes on although its main thread has ended",
            );
        }
        let others = other_namespaces(pid, root.host, criu);
        if !others.is_empty() {
            let what = format!("is in namespaces of its own: {}", others.join(", "));
            add(Code::Namespace, &what);
        }
        if depth(pid) > depth(root.host) {
            add(Code::Namespace, "is in a namespace of its own: pid");
        } else if member.session == NsPid(0) {
            add(
                Code::ForeignSession,
                "is in session 0, which was begun outside of its pid namespace",
            );
        }
        if let Some(tracer) = tracer(pid) {
            let what = format!("is traced by {}", tree::label(tracer));
            add(Code::Traced, &what);
        }
        if criu_is_filtered && seccomp_mode(pid) == Some(FILTER) {
            add(Code::SeccompFilter, "has a seccomp filter");
        }
        if shares_ipc && has_sysv_memory(pid) {
            add(Code::SharedMemory, "has shared memory of System V");
        }
        if version < SHADOW_STACKS && has_shadow_stack(&status_text(pid)) {
            add(Code::ShadowStack, "has a shadow stack");
        }
    }
    found
}

fn status(pid: HostPid) -> Option<procfs::process::Status> {
    Process::new(pid.0).ok()?.status().ok()
}

fn tracer(pid: HostPid) -> Option<HostPid> {
    let tracer = status(pid)?.tracerpid;
    (tracer != 0).then_some(HostPid(tracer))
}

fn seccomp_mode(pid: HostPid) -> Option<u32> {
    status(pid)?.seccomp
}

/// The inode of a namespace, which names it.
fn namespace(pid: HostPid, kind: &str) -> Option<u64> {
    let namespace = fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok()?;
    Some(namespace.ino())
}

/// The namespaces in which CRIU cannot dump or restore a process.
fn other_namespaces(pid: HostPid, root: HostPid, criu: HostPid) -> Vec<&'static str> {
    let of = |kind: &str| namespace(pid, kind);
    let (kinds, expected): (&[&str], HostPid) = match pid == root {
        true => (&OF_CRIU, criu),
        false => (&OF_ROOT, root),
    };
    let mut others: Vec<&str> = kinds
        .iter()
        .copied()
        .filter(|kind| of(kind).is_some() && of(kind) != namespace(expected, kind))
        .collect();
    if pid == root && of("time_for_children") != of("time") {
        others.push("time_for_children");
    }
    others
}

/// What /proc/PID/status says; nothing of a process that is gone.
fn status_text(pid: HostPid) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

/// Whether a process has a shadow stack, by its status (Documentation/arch/x86/shstk.rst of Linux; the
/// line is there since 6.6). What is only locked is not on.
fn has_shadow_stack(status: &str) -> bool {
    let mut lines = status.lines();
    let features = lines.find_map(|line| line.strip_prefix("x86_Thread_features:"));
    features.is_some_and(|features| features.split_whitespace().any(|name| name == "shstk"))
}

fn has_sysv_memory(pid: HostPid) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().any(|line| line.contains(" /SYSV"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a status, as arch/x86/kernel/cpu/proc.c of Linux writes it.
    fn status(on: &str, locked: &str) -> String {
        format!(
            "Name:\tserver\nSeccomp:\t0\nnonvoluntary_ctxt_switches:\t9\n\
             x86_Thread_features:\t{on}\nx86_Thread_features_locked:\t{locked}\n"
        )
    }

    #[test]
    fn shadow_stacks_that_are_on_are_seen() {
        assert!(has_shadow_stack(&status("shstk ", "shstk wrss ")));
        assert!(has_shadow_stack(&status("shstk wrss ", "")));
        // Off and locked, off, and what is called otherwise.
        assert!(!has_shadow_stack(&status("", "shstk wrss ")));
        assert!(!has_shadow_stack(&status("", "")));
        assert!(!has_shadow_stack(&status("wrss ", "")));
        // Of a kernel without them, and of a process that is gone.
        assert!(!has_shadow_stack("Name:\tshstk\nThreads:\t1\n"));
        assert!(!has_shadow_stack(&status_text(HostPid(0))));
    }
}
