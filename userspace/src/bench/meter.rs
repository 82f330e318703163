//! What a run has used so far, read from its control group and from /proc.

use std::{fs, io};

use procfs::process::Process;

use super::results::Usage;
use crate::{cgroup::Cgroup, tree::HostPid};

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
    usage.pss_bytes += pss_bytes(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?);
    Some(())
}

/// The proportional set size in the text of `smaps_rollup`.
fn pss_bytes(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proportional_set_size_is_in_kibibytes() {
        let text =
            "55d0-7ffc ---p 0 00:00 0  [rollup]\nRss:   1548 kB\nPss:    123 kB\nPss_Dirty: 9 kB\n";
        assert_eq!(pss_bytes(text), 123 * 1024);
        assert_eq!(pss_bytes(""), 0);
    }
}
