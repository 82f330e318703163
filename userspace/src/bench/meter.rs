//! What a run has used so far, read from its control group and from /proc.

use std::io;

use procfs::process::Process;

use super::results::Usage;
use crate::{cgroup::Cgroup, memory, tree::HostPid};

/// Reads what all that runs in a group has used. A process that ends meanwhile is left out, but
/// for its CPU time.
///
/// # Errors
/// If the CPU time of the group cannot be read.
pub fn usage(group: &Cgroup) -> io::Result<Usage> {
    let mut usage = Usage {
        cpu_ns: group.cpu_time()?.as_nanos() as u64,
        ..Usage::default()
    };
    for pid in group.processes() {
        add_process(&mut usage, pid);
    }
    Ok(usage)
}

fn add_process(usage: &mut Usage, pid: HostPid) -> Option<()> {
    let process = Process::new(pid.0).ok()?;
    let stat = process.stat().ok()?;
    // Those of the children that were waited for are in them; those of init's are not lost.
    usage.minor_faults += stat.minflt + stat.cminflt;
    usage.major_faults += stat.majflt + stat.cmajflt;
    if let Ok(io) = process.io() {
        usage.read_bytes += io.rchar;
        usage.storage_bytes += io.read_bytes;
    }
    let status = process.status().ok()?;
    usage.peak_rss_bytes += status.vmhwm.unwrap_or(0) * 1024;
    usage.pss_bytes += memory::of(pid)?.pss;
    Some(())
}
