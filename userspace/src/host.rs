//! Facts about this host, read where they stand; what they mean is decided elsewhere.

use std::{
    fs,
    io::{self, Read as _},
    time::Duration,
};

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::tree::HostPid;

/// The host that an image was captured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub architecture: String,
    /// In bytes.
    pub page_size: usize,
    /// The `flags` of the first processor in /proc/cpuinfo.
    pub cpu_features: Vec<String>,
    /// Changes with every boot.
    pub boot_id: String,
}

impl Host {
    /// Reads the facts.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn read() -> io::Result<Self> {
        let name = rustix::system::uname();
        Ok(Self {
            kernel: name.release().to_string_lossy().into_owned(),
            architecture: name.machine().to_string_lossy().into_owned(),
            page_size: rustix::param::page_size(),
            cpu_features: cpu_features(&first_processor()?),
            boot_id: boot_id()?,
        })
    }
}

/// What else of its host a server may have made something of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    pub hostname: String,
    /// Processors that a process may run on.
    pub processors: usize,
    pub memory_bytes: u64,
}

impl Surroundings {
    /// Reads them.
    ///
    /// # Errors
    /// If the kernel does not tell the processors.
    pub fn read() -> io::Result<Self> {
        let memory = rustix::system::sysinfo();
        let processors = rustix::thread::sched_getaffinity(None)?.count();
        Ok(Self {
            hostname: rustix::system::uname().nodename().to_string_lossy().into(),
            processors: processors as usize,
            memory_bytes: memory.totalram.saturating_mul(memory.mem_unit.into()),
        })
    }
}

/// The beginning of /proc/cpuinfo, which has the first processor: with many of them, all of it takes
/// the kernel milliseconds.
fn first_processor() -> io::Result<String> {
    const ENOUGH: u64 = 8 << 10;
    let mut bytes = Vec::new();
    let file = fs::File::open("/proc/cpuinfo")?;
    file.take(ENOUGH).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Identifies this boot.
///
/// # Errors
/// If /proc cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// `uname -r` as numbers: major and minor.
pub fn kernel_version() -> (u32, u32) {
    parse_version(&rustix::system::uname().release().to_string_lossy())
}

/// The first two numbers of a version.
pub fn parse_version(text: &str) -> (u32, u32) {
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn cpu_features(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find_map(|line| {
        line.strip_prefix("flags")
            .or_else(|| line.strip_prefix("Features"))
    });
    let words = line
        .and_then(|line| line.split_once(':'))
        .map_or("", |(_, words)| words);
    words.split_whitespace().map(str::to_owned).collect()
}

/// The effective capabilities of this process.
pub fn capabilities() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

/// Whether this process is in the pid namespace of the machine itself, whose pids the kernel
/// shows to eBPF programs.
pub fn is_initial_pid_namespace() -> bool {
    // `PROC_PID_INIT_INO` of include/linux/proc_ns.h.
    const INITIAL: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == INITIAL)
}

/// The monotonic and boot-time clocks, as the processes of this time namespace see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    pub monotonic_ns: u64,
    pub boottime_ns: u64,
}

impl Clocks {
    pub fn now() -> Self {
        use rustix::time::{ClockId, clock_gettime};
        let ns = |clock| {
            let time = clock_gettime(clock);
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_nanos() as u64
        };
        Self {
            monotonic_ns: ns(ClockId::Monotonic),
            boottime_ns: ns(ClockId::Boottime),
        }
    }
}

impl Clocks {
    /// What the clocks of a process show now, which may be in another time namespace.
    ///
    /// # Errors
    /// If its `/proc/PID/timens_offsets` cannot be read.
    pub fn of(pid: HostPid) -> io::Result<Self> {
        let path = format!("/proc/{pid}/timens_offsets");
        // A kernel without time namespaces has no such file.
        let offsets = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        Ok(Self::now().beyond(&offsets))
    }

    /// Adds the offsets in the text of `/proc/PID/timens_offsets`; see time_namespaces(7).
    fn beyond(self, offsets: &str) -> Self {
        let offset = |clock: &str| {
            let line = offsets.lines().find(|line| line.starts_with(clock));
            let mut numbers = line?.split_whitespace().skip(1).map(str::parse::<i64>);
            let (s, ns) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
            Some(s * 1_000_000_000 + ns)
        };
        let add = |ns: u64, clock| ns.saturating_add_signed(offset(clock).unwrap_or(0));
        Self {
            monotonic_ns: add(self.monotonic_ns, "monotonic"),
            boottime_ns: add(self.boottime_ns, "boottime"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_of_a_time_namespace_differ_by_its_offsets() {
        let clocks = Clocks {
            monotonic_ns: 10_000_000_000,
            boottime_ns: 20_000_000_000,
        };
        let there = clocks.beyond("monotonic        -3  500000000\nboottime 2 1\n");
        assert_eq!(there.monotonic_ns, 7_500_000_000);
        assert_eq!(there.boottime_ns, 22_000_000_001);
        assert_eq!(clocks.beyond(""), clocks);
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(parse_version("6.18.44-fc"), (6, 18));
        assert_eq!(parse_version("5.10"), (5, 10));
        assert_eq!(parse_version(""), (0, 0));
    }

    #[test]
    fn cpu_features_are_the_words_of_the_flags_line() {
        assert_eq!(
            cpu_features("model : x\nflags\t\t: fpu sse2\n"),
            ["fpu", "sse2"]
        );
    }
}
