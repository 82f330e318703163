//! Limits as people write them, and as the files of both versions of control groups hold them.
//!
//! Sources: Documentation/admin-guide/cgroup-v2.rst (`cpu.max`, `memory.max`) and
//! Documentation/scheduler/sched-bwc.rst, admin-guide/cgroup-v1/memory.rst of the kernel.

use std::{fmt, str::FromStr};

/// In each period of this length, a group may use its quota; the kernel's own default.
pub const PERIOD_US: u64 = 100_000;

/// How much of the processors may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// Microseconds of processor time per period; none for no limit.
    quota_us: Option<u64>,
}

/// How much memory may be used, in bytes; none for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory(pub Option<u64>);

/// What to set; what is none stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpus: Option<Cpus>,
    pub memory: Option<Memory>,
}

impl Limits {
    /// What to set so that these hold and none of those before does.
    pub fn instead_of(self, before: Self) -> Self {
        Self {
            cpus: self.cpus.or(before.cpus.and(Some(Cpus::MAX))),
            memory: self.memory.or(before.memory.and(Some(Memory(None)))),
        }
    }
}

/// What is set, and what is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub cpus: Cpus,
    pub memory: Memory,
    /// In bytes, with the page cache; none if nobody counts it.
    pub memory_used: Option<u64>,
}

impl State {
    /// That of an instance without a group of its own.
    pub const UNLIMITED: Self = Self {
        cpus: Cpus::MAX,
        memory: Memory(None),
        memory_used: None,
    };
}

impl Cpus {
    pub const MAX: Self = Self { quota_us: None };

    /// The number of processors; none for no limit.
    pub fn number(self) -> Option<f64> {
        let quota = self.quota_us?;
        Some(quota as f64 / PERIOD_US as f64)
    }

    /// The text for `cpu.max` of version 2.
    pub fn to_v2(self) -> String {
        match self.quota_us {
            Some(quota) => format!("{quota} {PERIOD_US}"),
            None => format!("max {PERIOD_US}"),
        }
    }

    /// The text for `cpu.cfs_quota_us` of version 1.
    pub fn to_v1(self) -> String {
        self.quota_us
            .map_or_else(|| "-1".to_owned(), |quota| quota.to_string())
    }

    /// From `cpu.max` of version 2.
    pub fn from_v2(text: &str) -> Option<Self> {
        let (quota, period) = text.trim().split_once(' ')?;
        Self::from_v1(if quota == "max" { "-1" } else { quota }, period)
    }

    /// From `cpu.cfs_quota_us` and `cpu.cfs_period_us` of version 1.
    pub fn from_v1(quota: &str, period: &str) -> Option<Self> {
        let quota: i64 = quota.trim().parse().ok()?;
        let period: u64 = period.trim().parse().ok()?;
        let in_ours = |quota: u64| quota.saturating_mul(PERIOD_US).checked_div(period);
        Some(Self {
            quota_us: match u64::try_from(quota) {
                Ok(quota) => Some(in_ours(quota)?),
                Err(_) => None,
            },
        })
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        /// The kernel takes no quota below 1 ms.
        const LEAST: f64 = 0.01;
        const MOST: f64 = 10_000.0;
        if text == "max" {
            return Ok(Self::MAX);
        }
        let number: f64 = text
            .parse()
            .map_err(|_| "not a number of processors, as 0.5, or max".to_owned())?;
        if !(LEAST..=MOST).contains(&number) {
            return Err(format!("must be from {LEAST} to {MOST}, or max"));
        }
        Ok(Self {
            quota_us: Some((number * PERIOD_US as f64).round() as u64),
        })
    }
}

impl Memory {
    /// The text for `memory.max` of version 2.
    pub fn to_v2(self) -> String {
        self.0
            .map_or_else(|| "max".to_owned(), |bytes| bytes.to_string())
    }

    /// The text for `memory.limit_in_bytes` of version 1.
    pub fn to_v1(self) -> String {
        self.0
            .map_or_else(|| "-1".to_owned(), |bytes| bytes.to_string())
    }

    /// From the file of either version.
    pub fn parse(text: &str) -> Option<Self> {
        /// Version 1 shows no limit as the highest number of pages.
        const ALL: u64 = 1 << 62;
        match text.trim() {
            "max" => Some(Self(None)),
            text => Some(Self(text.parse().ok().map(Some)?.filter(|&n| n < ALL))),
        }
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self(None));
        }
        let wrong = || "not a size, as 512M (K, M, G, or bytes), or max".to_owned();
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let factor = match &text[digits.len()..] {
            "" => 1,
            "K" | "k" => 1 << 10,
            "M" | "m" => 1 << 20,
            "G" | "g" => 1 << 30,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        match number.checked_mul(factor) {
            Some(0) => Err("must be more than 0".to_owned()),
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(Self(Some(bytes))),
            _ => Err("too large".to_owned()),
        }
    }
}

/// As it can be given to `--memory`.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
        let Some(bytes) = self.0 else {
            return f.write_str("max");
        };
        match UNITS.iter().find(|(unit, _)| bytes.is_multiple_of(*unit)) {
            Some((unit, suffix)) => write!(f, "{}{suffix}", bytes / unit),
            None => write!(f, "{bytes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(text: &str) -> Cpus {
        text.parse().unwrap()
    }

    #[test]
    fn a_limit_that_is_no_longer_there_is_lifted() {
        let (half, some) = (Some(cpus("0.5")), Some(Memory(Some(1 << 20))));
        let limits = |cpus, memory| Limits { cpus, memory };
        let instead = |now: Limits| now.instead_of(limits(half, some));
        let (no_cpus, no_memory) = (Some(Cpus::MAX), Some(Memory(None)));
        assert_eq!(instead(limits(half, None)), limits(half, no_memory));
        assert_eq!(instead(limits(None, some)), limits(no_cpus, some));
        assert_eq!(instead(Limits::default()), limits(no_cpus, no_memory));
        // What was never limited stays as it is.
        let now = limits(half, None).instead_of(Limits::default());
        assert_eq!(now, limits(half, None));
    }

    #[test]
    fn processors_are_a_positive_number_or_max() {
        assert_eq!(cpus("0.5").to_v2(), "50000 100000");
        assert_eq!(
            (cpus("2").to_v1(), cpus("max").to_v1()),
            ("200000".into(), "-1".into())
        );
        assert_eq!(
            (cpus("0.01").number(), cpus("max").number()),
            (Some(0.01), None)
        );
        for bad in ["0", "-1", "0.001", "x", "nan", "inf", "1e9", "", "0,5"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_kernel_shows_of_processors_is_read() {
        assert_eq!(Cpus::from_v2("max 100000\n"), Some(Cpus::MAX));
        assert_eq!(Cpus::from_v2("25000 50000\n"), Some(cpus("0.5")));
        assert_eq!(Cpus::from_v1("-1\n", "100000\n"), Some(Cpus::MAX));
        assert_eq!(Cpus::from_v1("20000\n", "100000\n"), Some(cpus("0.2")));
        assert_eq!(
            (Cpus::from_v2("max"), Cpus::from_v1("1", "0")),
            (None, None)
        );
    }

    #[test]
    fn sizes_are_in_powers_of_1024() {
        for (text, bytes) in [("1", 1), ("4K", 4096), ("512M", 512 << 20), ("2g", 2 << 30)] {
            let memory: Memory = text.parse().unwrap();
            assert_eq!(memory, Memory(Some(bytes)));
            assert_eq!(memory.to_string(), text.to_uppercase());
            assert_eq!(Memory::parse(&memory.to_v1()), Some(memory));
            assert_eq!(Memory::parse(&memory.to_v2()), Some(memory));
        }
        for bad in [
            "1Q",
            "",
            "M",
            "0",
            "0G",
            "-1",
            "1.5G",
            "512 M",
            "99999999999G",
            "1MM",
        ] {
            assert!(bad.parse::<Memory>().is_err(), "{bad}");
        }
    }

    #[test]
    fn no_limit_on_memory_is_read_from_both_versions() {
        let none: Memory = "max".parse().unwrap();
        assert_eq!((none.to_v1(), none.to_v2()), ("-1".into(), "max".into()));
        assert_eq!(Memory::parse("max\n"), Some(none));
        assert_eq!(Memory::parse("9223372036854771712\n"), Some(none));
        assert_eq!(Memory::parse("x"), None);
    }
}
