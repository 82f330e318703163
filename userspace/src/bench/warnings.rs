//! What a reader should know before trusting the figures, each with what to try.

use std::fmt;

use serde::Serialize;

use super::{
    Results,
    results::{Subject, Timing},
    statistics,
};

/// Fewer runs than this give intervals that are too narrow.
const FEW_RUNS: usize = 6;

/// A modified z-score beyond this is far off even for start-up times, whose distribution has a
/// long tail.
const FAR: f64 = 10.0;

/// A wider interval than this, as a share of the median on either side, says little.
const WIDE: f64 = 0.1;

/// More processors than this kept busy by others disturb.
const OTHERS: f64 = 0.1;

/// A larger share of stolen time than this disturbs.
const STOLEN: f64 = 0.03;

/// A coarser resolution than this share of a start disturbs.
const COARSE: f64 = 0.05;

/// A reason for doubt.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "warning", rename_all = "snake_case")]
pub enum Warning {
    FewRuns {
        runs: usize,
    },
    Outliers {
        subject: String,
        runs: Vec<usize>,
    },
    Wide {
        subject: String,
        relative_error: f64,
    },
    OtherLoad {
        cpus: f64,
    },
    Stolen {
        share: f64,
    },
    Coarse {
        subject: String,
        resolution_ms: f64,
    },
}

impl Warning {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::FewRuns { .. } => "measure more, with --runs",
            Self::Outliers { .. } => {
                "more runs make them count less; if it is the first, --warmup-runs fills caches"
            }
            Self::Wide { .. } => "measure more, with --runs, or on a quieter machine",
            Self::OtherLoad { .. } => "end other programs, or measure when they rest",
            Self::Stolen { .. } => "trust the ratios rather than the times, and measure more runs",
            Self::Coarse { .. } => "its times are right to that; keep other load away",
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewRuns { runs } => {
                write!(
                    f,
                    "{runs} runs are too few for intervals that can be relied upon"
                )
            }
            Self::Outliers { subject, runs } => {
                let noun = if runs.len() == 1 { "run" } else { "runs" };
                let numbers: Vec<_> = runs.iter().map(ToString::to_string).collect();
                let numbers = numbers.join(", ");
                write!(
                    f,
                    "{subject}: {noun} {numbers} took far longer or shorter than the others"
                )
            }
            Self::Wide {
                subject,
                relative_error,
            } => write!(
                f,
                "{subject}: the first response is known to ±{:.0} % only",
                relative_error * 100.0
            ),
            Self::OtherLoad { cpus } => {
                write!(f, "other programs kept {cpus:.1} processors busy meanwhile")
            }
            Self::Stolen { share } => write!(
                f,
                "the hypervisor gave {:.0} % of the time to other machines",
                share * 100.0
            ),
            Self::Coarse {
                subject,
                resolution_ms,
            } => write!(
                f,
                "{subject}: the client saw it listen to within {resolution_ms:.1} ms only"
            ),
        }
    }
}

/// Finds what is doubtful about results.
pub fn warnings(results: &Results) -> Vec<Warning> {
    let mut found = Vec::new();
    let runs = results.settings.runs;
    if runs < FEW_RUNS {
        found.push(Warning::FewRuns { runs });
    }
    for subject in &results.subjects {
        found.extend(of_subject(subject, runs));
    }
    let surroundings = &results.surroundings;
    if surroundings.other_cpus > OTHERS {
        found.push(Warning::OtherLoad {
            cpus: surroundings.other_cpus,
        });
    }
    if surroundings.stolen_share > STOLEN {
        found.push(Warning::Stolen {
            share: surroundings.stolen_share,
        });
    }
    found
}

fn of_subject(subject: &Subject, runs: usize) -> Vec<Warning> {
    let mut found = Vec::new();
    let name = subject.kind.to_string();
    let outliers = statistics::outliers(&subject.times(Timing::FirstResponse), FAR);
    // Of few samples, some always look far off.
    if runs >= FEW_RUNS && !outliers.is_empty() {
        found.push(Warning::Outliers {
            subject: name.clone(),
            runs: outliers.iter().map(|index| index + 1).collect(),
        });
    }
    let relative_error = subject.median(Timing::FirstResponse).relative_error();
    if relative_error > WIDE {
        found.push(Warning::Wide {
            subject: name.clone(),
            relative_error,
        });
    }
    let resolution_ms = subject.resolution();
    if resolution_ms > COARSE * subject.median(Timing::Listening).value {
        found.push(Warning::Coarse {
            subject: name,
            resolution_ms,
        });
    }
    found
}
