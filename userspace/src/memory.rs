//! What processes have of the machine's memory, by `/proc/PID/smaps_rollup`.
//!
//! A process that ends meanwhile is simply not counted.

use std::{fs, iter::Sum, ops::Add};

use serde::{Deserialize, Serialize};

use crate::tree::HostPid;

/// Memory of one process or of several together, in bytes. See proc_pid_smaps(5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident: a page counts in every process that has it.
    #[serde(rename = "rss_bytes")]
    pub rss: u64,
    /// Proportional: a page that several processes have counts in parts, one for each.
    #[serde(rename = "pss_bytes")]
    pub pss: u64,
    /// What is resident and not private: pages that another process has too, of the same tree or
    /// any other.
    #[serde(rename = "shared_bytes")]
    pub shared: u64,
}

impl Add for Memory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            rss: self.rss + other.rss,
            pss: self.pss + other.pss,
            shared: self.shared + other.shared,
        }
    }
}

impl Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Self::add)
    }
}

/// What a process has; none if it is gone, or has no memory of its own any more.
pub fn of(pid: HostPid) -> Option<Memory> {
    parse(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

/// Reads the text of `smaps_rollup`.
pub(crate) fn parse(text: &str) -> Option<Memory> {
    let bytes = |name: &str| -> Option<u64> {
        let value = |line: &str| {
            let value = line.strip_prefix(name)?.strip_prefix(':')?;
            let kib = value.trim().strip_suffix(" kB")?.trim().parse::<u64>();
            kib.ok()
        };
        text.lines()
            .find_map(value)
            .map(|kib| kib.saturating_mul(1024))
    };
    let rss = bytes("Rss")?;
    let private = bytes("Private_Clean")? + bytes("Private_Dirty")?;
    Some(Memory {
        rss,
        pss: bytes("Pss")?,
        shared: rss.saturating_sub(private),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
561a06488000-7fff714f9000 ---p 00000000 00:00 0                          [rollup]
Rss:                1744 kB
Pss:                 425 kB
Pss_Dirty:           116 kB
Pss_Anon:            116 kB
Pss_File:            309 kB
Pss_Shmem:             0 kB
Shared_Clean:       1564 kB
Shared_Dirty:          0 kB
Private_Clean:        64 kB
Private_Dirty:       116 kB
Referenced:         1744 kB
";

    #[test]
    fn what_is_not_private_is_shared() {
        let memory = parse(TEXT).unwrap();
        let kib = |memory: Memory| [memory.rss, memory.pss, memory.shared].map(|n| n / 1024);
        assert_eq!(kib(memory), [1744, 425, 1564]);
        let twice: Memory = [memory, memory].into_iter().sum();
        assert_eq!(kib(twice), [3488, 850, 3128]);
        // As the kernel shows a process that has just ended.
        assert_eq!(parse(""), None);
        assert_eq!(parse("Rss: 1744 kB\n"), None);
    }
}
