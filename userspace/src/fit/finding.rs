//! What a check finds, and what it means.

use std::{collections::BTreeSet, fmt};

use clap::{ValueEnum, builder::PossibleValue};
use serde::Serialize;
use serde_json::{Value, json};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The restore, or the restored server, can fail.
    Breaks,
    /// The server may go on with what is no longer so.
    Stale,
}

/// What a finding is, in a word that stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    Architecture,
    PageSize,
    CpuFeatures,
    Kernel,
    Criu,
    UsedMissing,
    UsedChanged,
    ReadMissing,
    ReadChanged,
    NameResolution,
    TimeZone,
    Hostname,
    Environment,
    User,
    Processors,
    Memory,
}

impl Code {
    pub const ALL: [Self; 16] = [
        Self::Architecture,
        Self::PageSize,
        Self::CpuFeatures,
        Self::Kernel,
        Self::Criu,
        Self::UsedMissing,
        Self::UsedChanged,
        Self::ReadMissing,
        Self::ReadChanged,
        Self::NameResolution,
        Self::TimeZone,
        Self::Hostname,
        Self::Environment,
        Self::User,
        Self::Processors,
        Self::Memory,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Architecture => "architecture",
            Self::PageSize => "page-size",
            Self::CpuFeatures => "cpu-features",
            Self::Kernel => "kernel",
            Self::Criu => "criu",
            Self::UsedMissing => "used-missing",
            Self::UsedChanged => "used-changed",
            Self::ReadMissing => "read-missing",
            Self::ReadChanged => "read-changed",
            Self::NameResolution => "name-resolution",
            Self::TimeZone => "time-zone",
            Self::Hostname => "hostname",
            Self::Environment => "environment",
            Self::User => "user",
            Self::Processors => "processors",
            Self::Memory => "memory",
        }
    }

    pub fn severity(self) -> Severity {
        match self {
            Self::Architecture
            | Self::PageSize
            | Self::CpuFeatures
            | Self::Kernel
            | Self::Criu
            | Self::UsedMissing
            | Self::UsedChanged => Severity::Breaks,
            _ => Severity::Stale,
        }
    }

    /// Whether a restore can be tried all the same.
    pub fn can_be_allowed(self) -> bool {
        !matches!(
            self,
            Self::Architecture | Self::PageSize | Self::UsedMissing
        )
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Self::Architecture => "it is an image of programs for other processors",
            Self::PageSize => "its memory is in pages of another size",
            Self::CpuFeatures => {
                "its processes may execute instructions that are not there, as the C library chose \
                 functions by what the processor had"
            }
            Self::Kernel => {
                "its processes may use system calls that are not there, which they have seen to work"
            }
            Self::Criu => "an older CRIU misreads images of a newer one",
            Self::UsedMissing => "its processes hold the file: CRIU cannot restore them without it",
            Self::UsedChanged => {
                "its processes hold the file: they would go on with parts of both, and may crash"
            }
            Self::ReadMissing | Self::ReadChanged => {
                "the server goes on with what it read before it was captured"
            }
            Self::NameResolution => "the server may go on resolving names as before",
            Self::TimeZone => "the server may go on with the old time zone",
            Self::Hostname => "the server may go on with the old name of the host",
            Self::Environment => "the server goes on with the variables that it was captured with",
            Self::User => "the server goes on as the user of that number",
            Self::Processors => "pools of threads or processes may be sized for the old number",
            Self::Memory => "heaps and caches may be sized for the old amount",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that is not as it was at the capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub code: Code,
    /// The file, variable or feature.
    pub about: String,
    pub expected: String,
    pub found: String,
}

impl Finding {
    pub fn new(
        code: Code,
        about: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            code,
            about: about.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "code": self.code.name(),
            "severity": self.code.severity(),
            "about": self.about,
            "expected": self.expected,
            "found": self.found,
            "meaning": self.code.meaning(),
            "can_be_allowed": self.code.can_be_allowed(),
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: {} instead of {}",
            self.code, self.about, self.found, self.expected
        )
    }
}

/// What a restore is to go on with: a kind of finding, or all that can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allow {
    All,
    Code(Code),
}

impl ValueEnum for Allow {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: std::sync::LazyLock<Vec<Allow>> = std::sync::LazyLock::new(|| {
            let codes = Code::ALL.into_iter().filter(|code| code.can_be_allowed());
            std::iter::once(Allow::All)
                .chain(codes.map(Allow::Code))
                .collect()
        });
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::All => "all",
            Self::Code(code) => code.name(),
        }))
    }
}

/// What a restore is to go on with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed(BTreeSet<Code>);

impl Allowed {
    pub fn contains(&self, code: Code) -> bool {
        self.0.contains(&code)
    }
}

impl FromIterator<Allow> for Allowed {
    fn from_iter<T: IntoIterator<Item = Allow>>(allowed: T) -> Self {
        let codes = allowed.into_iter().flat_map(|allow| match allow {
            Allow::All => Code::ALL.to_vec(),
            Allow::Code(code) => vec![code],
        });
        Self(codes.filter(|code| code.can_be_allowed()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_all_there_and_told_apart() {
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        let meanings = Code::ALL.iter().map(|code| code.meaning());
        assert!(meanings.into_iter().all(|meaning| meaning.len() > 20));
    }

    #[test]
    fn only_what_could_work_can_be_allowed() {
        let all: Allowed = [Allow::All].into_iter().collect();
        for code in [Code::Architecture, Code::PageSize, Code::UsedMissing] {
            assert!(!all.contains(code), "{code}");
            assert!(Allow::from_str(code.name(), false).is_err(), "{code}");
        }
        assert!(all.contains(Code::UsedChanged) && all.contains(Code::ReadMissing));
        let one = Allow::from_str("kernel", false).unwrap();
        assert_eq!(one, Allow::Code(Code::Kernel));
        let one: Allowed = [one].into_iter().collect();
        assert!(one.contains(Code::Kernel) && !one.contains(Code::Criu));
    }
}
