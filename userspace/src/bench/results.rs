//! What a measurement gave: every raw sample, and what a reader needs to judge and repeat it.
//!
//! Invariant: a file that an earlier version wrote can be read as long as its schema is known.

use std::{fmt, fs, io, path::Path, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Options,
    statistics::{Estimate, Pairs, estimate_median, median},
    surroundings::processors,
};
use crate::{
    host::Host, restore::Parts, store::now_ms, target::ExpectedStatus, watch::CapturePoint,
};

/// The version of this format. Raised when a reader of the older one would go wrong.
pub const SCHEMA: u32 = 1;

/// Why stored results cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} does not hold results of `warmimg bench`", .path.display())]
    Form {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{} has schema {found}; this warmimg reads up to {SCHEMA}", .path.display())]
    Newer { path: PathBuf, found: u32 },
}

/// The results of a `warmimg bench`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Always `bench`.
    #[serde(rename = "type")]
    pub kind: String,
    pub schema: u32,
    /// The version of warmimg.
    pub warmimg: String,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The command whose start-up was measured.
    pub command: Vec<String>,
    /// What was asked.
    pub target: String,
    pub settings: Settings,
    pub machine: Machine,
    pub surroundings: Surroundings,
    /// The cold start first.
    pub subjects: Vec<Subject>,
}

/// How it was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Measured runs of each subject.
    pub runs: usize,
    /// Runs of each before those, which are not counted.
    pub warmup_runs: usize,
    /// Requests of each run, one after the other.
    pub requests: usize,
    /// The page cache was dropped before each run.
    pub drop_caches: bool,
    pub status: ExpectedStatus,
}

/// Where it was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `PRETTY_NAME` of os-release(5).
    pub system: String,
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub architecture: String,
    /// The model of the first one.
    pub processor: String,
    /// Those online.
    pub processors: usize,
    pub memory_bytes: u64,
    pub criu: String,
}

/// What else the machine did meanwhile, and how well the client saw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Surroundings {
    /// Of one minute, at the beginning.
    pub load_average: f64,
    /// Processors kept busy by others, on average.
    pub other_cpus: f64,
    /// The share of time that a hypervisor gave to other machines.
    pub stolen_share: f64,
    /// CPU time that the client used while it waited for first responses, as a share of that
    /// time.
    pub client_cpu_share: f64,
}

/// One way to start the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    #[serde(flatten)]
    pub kind: SubjectKind,
    /// What was run, the program's name first.
    pub command: Vec<String>,
    pub image: Option<Image>,
    /// In the order of the rounds.
    pub samples: Vec<Sample>,
}

/// Which way that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "subject", rename_all = "kebab-case")]
pub enum SubjectKind {
    /// The command itself.
    Cold,
    /// `warmimg restore` of an image that was captured at this point.
    Restored { point: CapturePoint },
    /// `criu restore` of an image that was captured at this point.
    Criu { point: CapturePoint },
    /// Another command, under this name.
    Baseline { name: String },
}

impl fmt::Display for SubjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cold => f.write_str("cold start"),
            Self::Restored { point } => write!(f, "restored at {point}"),
            Self::Criu { point } => write!(f, "criu restore at {point}"),
            Self::Baseline { name } => f.write_str(name),
        }
    }
}

/// The image that was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub digest: String,
    pub bytes: u64,
}

/// What one run gave. Times are from the start of the process, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Until a connection was taken.
    pub listening_ns: u64,
    /// Until the first byte of the first response.
    pub first_byte_ns: u64,
    /// Until the whole of it.
    pub first_response_ns: u64,
    /// Until the whole of the last response, less the time in which memory was read after the
    /// first; the server went on meanwhile.
    pub last_response_ns: u64,
    /// By how much earlier, at most, the first connection might have been made.
    pub resolution_ns: u64,
    #[serde(flatten)]
    pub usage: Usage,
    /// Where the time of a restore went; none of any other subject, nor in files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Parts>,
}

/// What all processes of a run together had used when the first response was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// In user and kernel mode.
    pub cpu_ns: u64,
    /// The sum of the largest resident sets that the processes had had.
    pub peak_rss_bytes: u64,
    /// Proportional set size: pages shared by several processes count in parts.
    pub pss_bytes: u64,
    /// Page faults without and with reading from storage.
    pub minor_faults: u64,
    pub major_faults: u64,
    /// Given by read(2) and the like, from the page cache too; not what was mapped.
    pub read_bytes: u64,
    /// Fetched from storage.
    pub storage_bytes: u64,
}

/// A time that every run gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    Listening,
    FirstByte,
    FirstResponse,
    LastResponse,
}

impl Timing {
    /// All, in the order in which they come to pass.
    pub const ALL: [Self; 4] = [
        Self::Listening,
        Self::FirstByte,
        Self::FirstResponse,
        Self::LastResponse,
    ];

    /// Those that differ: with a single request, the last response is the first.
    pub fn shown(requests: usize) -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(move |&timing| timing != Self::LastResponse || requests > 1)
    }

    /// What it is called, after `requests` requests.
    pub fn label(self, requests: usize) -> String {
        match self {
            Self::Listening => "listening".to_owned(),
            Self::FirstByte => "first byte".to_owned(),
            Self::FirstResponse => "first response".to_owned(),
            Self::LastResponse => format!("response {requests}"),
        }
    }

    fn of(self, sample: &Sample) -> u64 {
        match self {
            Self::Listening => sample.listening_ns,
            Self::FirstByte => sample.first_byte_ns,
            Self::FirstResponse => sample.first_response_ns,
            Self::LastResponse => sample.last_response_ns,
        }
    }
}

impl Subject {
    /// A time of every run, in milliseconds.
    pub fn times(&self, timing: Timing) -> Vec<f64> {
        let ms = |sample| timing.of(sample) as f64 / 1e6;
        self.samples.iter().map(ms).collect()
    }

    /// The median of a time, in milliseconds.
    pub fn median(&self, timing: Timing) -> Estimate {
        estimate_median(&self.times(timing))
    }

    /// The median of how much earlier, at most, the client might have seen it listen, in
    /// milliseconds.
    pub fn resolution(&self) -> f64 {
        let ms = |sample: &Sample| sample.resolution_ns as f64 / 1e6;
        median(&self.samples.iter().map(ms).collect::<Vec<_>>())
    }

    /// The medians of the parts of its restores, in microseconds, with what they are called; the
    /// whole comes last. Empty if nothing is known of them.
    pub fn median_parts(&self) -> Vec<(&'static str, f64)> {
        let known = self.samples.iter().filter_map(|sample| sample.timings);
        let rows = known.map(|parts| {
            let whole = ("in all", Some(parts.total_us));
            parts.rows().into_iter().chain([whole]).collect::<Vec<_>>()
        });
        let rows: Vec<_> = rows.collect();
        let names = rows.first().into_iter().flatten().map(|(name, _)| *name);
        let medians = names.enumerate().filter_map(|(place, name)| {
            let times = rows.iter().filter_map(|row| row[place].1);
            let times: Vec<f64> = times.map(|us| us as f64).collect();
            (!times.is_empty()).then(|| (name, median(&times)))
        });
        medians.collect()
    }

    /// The median of something used.
    pub fn median_usage(&self, part: fn(&Usage) -> u64) -> f64 {
        let values: Vec<f64> = self
            .samples
            .iter()
            .map(|sample| part(&sample.usage) as f64)
            .collect();
        median(&values)
    }
}

impl Results {
    pub(super) fn new(
        options: &Options,
        subjects: Vec<Subject>,
        surroundings: Surroundings,
    ) -> io::Result<Self> {
        Ok(Self {
            kind: "bench".to_owned(),
            schema: SCHEMA,
            warmimg: env!("CARGO_PKG_VERSION").to_owned(),
            created_ms: now_ms(),
            command: options.command.clone(),
            target: options.target.to_string(),
            settings: options.settings.clone(),
            machine: Machine::read(options.criu.to_string())?,
            surroundings,
            subjects,
        })
    }

    /// Reads stored results.
    ///
    /// # Errors
    /// See [`ResultsError`].
    pub fn read(path: &Path) -> Result<Self, ResultsError> {
        let bytes = fs::read(path).map_err(|source| ResultsError::Read {
            path: path.to_path_buf(),
            source,
        })?;
        Self::parse(path, &bytes)
    }

    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ResultsError> {
        #[derive(Deserialize)]
        struct Versioned {
            schema: u32,
        }
        let bad = |source| ResultsError::Form {
            path: path.to_path_buf(),
            source,
        };
        let Versioned { schema } = serde_json::from_slice(bytes).map_err(bad)?;
        if schema > SCHEMA {
            return Err(ResultsError::Newer {
                path: path.to_path_buf(),
                found: schema,
            });
        }
        serde_json::from_slice(bytes).map_err(bad)
    }

    /// The cold start, which all others are compared with.
    pub fn cold(&self) -> Option<&Subject> {
        self.subjects
            .iter()
            .find(|subject| subject.kind == SubjectKind::Cold)
    }

    /// How many times faster than the cold start a subject is; none for the cold start itself.
    pub fn speed_up(&self, subject: &Subject, timing: Timing) -> Option<Estimate> {
        let cold = self.cold()?;
        if subject.kind == SubjectKind::Cold {
            return None;
        }
        let (cold, other) = (cold.times(timing), subject.times(timing));
        Some(Pairs::new(&cold, &other).ratio())
    }
}

impl Machine {
    fn read(criu: String) -> io::Result<Self> {
        let host = Host::read()?;
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib =
            value(&meminfo, "MemTotal", ':').and_then(|text| text.split(' ').next()?.parse().ok());
        Ok(Self {
            system: value(&release, "PRETTY_NAME", '=')
                .unwrap_or("Linux")
                .to_owned(),
            kernel: host.kernel,
            architecture: host.architecture,
            processor: value(&cpuinfo, "model name", ':')
                .unwrap_or("unknown")
                .to_owned(),
            processors: processors(),
            memory_bytes: kib.unwrap_or(0_u64) * 1024,
            criu,
        })
    }
}

/// The value of a name in lines of names and values.
fn value<'a>(text: &'a str, name: &str, separator: char) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(separator)?;
        (found.trim() == name).then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_name() {
        let release = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(
            value(release, "PRETTY_NAME", '='),
            Some("Debian GNU/Linux 12 (bookworm)")
        );
        assert_eq!(
            value("model name\t: A: B\n", "model name", ':'),
            Some("A: B")
        );
        assert_eq!(value("", "x", '='), None);
    }
}
