//! Judges results: against stored ones, and against the least speed-up that is asked for.
//!
//! Compared is the ratio of a restore to the cold starts of the same rounds, so that it does not
//! matter how fast the machine is at the moment. Results of another machine can be compared with
//! as far as it is a like one: what a restore needs more of than a cold start, memory bandwidth
//! for one, must have the same share in both. And a cold start that got faster by itself makes
//! the restore, which did not, look slower.

use std::fmt;

use serde::Serialize;

use super::{
    Results,
    results::{Settings, Subject, SubjectKind, Timing},
    statistics::{Estimate, Pairs},
};

/// Why nothing can be judged.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("the stored results have nothing to compare with: they are of {}", list(.stored))]
    NothingInCommon { stored: Vec<String> },
    #[error("the stored results were measured {stored}, these {now}")]
    OtherSettings {
        stored: &'static str,
        now: &'static str,
    },
}

/// How often the interval of a change that is none leaves zero out: rarely, as several times of
/// each subject are judged at once.
const DOUBT: f64 = 0.01;

/// Fewer rounds than this, on either side, prove nothing.
const FEWEST: usize = 5;

fn list(names: &[String]) -> String {
    match names {
        [] => "nothing".to_owned(),
        names => names.join(", "),
    }
}

/// A time of a subject, judged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    pub subject: String,
    pub timing: Timing,
    /// What the time is called.
    pub label: String,
    pub verdict: Verdict,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Slower by more than is allowed, and not by chance.
    Slower { change: Estimate },
    /// Not shown to be slower than is allowed, but it could be: the interval goes beyond.
    Unclear { change: Estimate },
    /// Within what is allowed.
    Kept { change: Estimate },
    /// Faster, and not by chance.
    Faster { change: Estimate },
    /// There is nothing to compare with.
    NotStored,
    /// Less speed-up than is asked for.
    TooSlow { speed_up: Estimate, least: f64 },
    /// As much or more.
    FastEnough { speed_up: Estimate, least: f64 },
}

impl Verdict {
    /// Whether the gate stays shut.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Slower { .. } | Self::TooSlow { .. })
    }

    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Slower { .. } | Self::TooSlow { .. } => "FAILED",
            Self::Unclear { .. } | Self::NotStored => "unclear",
            Self::Kept { .. } | Self::Faster { .. } | Self::FastEnough { .. } => "ok",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            subject,
            label,
            verdict,
            ..
        } = self;
        write!(f, "{subject}, {label}: ")?;
        let percent = |share: f64| format!("{:+.1}", share * 100.0);
        let interval =
            |change: &Estimate| format!("{} … {} %", percent(change.low), percent(change.high));
        let share =
            |change: &Estimate| format!("{} % ({})", percent(change.value), interval(change));
        match verdict {
            Verdict::Slower { change } => write!(f, "slower by {}", share(change)),
            Verdict::Unclear { change } => {
                write!(f, "{}; more --runs would tell", share(change))
            }
            Verdict::NotStored => f.write_str("not in the stored results"),
            Verdict::Kept { change } => write!(f, "{}", share(change)),
            Verdict::Faster { change } => write!(f, "faster, {}", share(change)),
            Verdict::TooSlow { speed_up, least } => write!(
                f,
                "only {:.2}x ({:.2} … {:.2}), where {least}x is asked for",
                speed_up.value, speed_up.low, speed_up.high
            ),
            Verdict::FastEnough { speed_up, least } => write!(
                f,
                "{:.2}x ({:.2} … {:.2}), at least the {least}x asked for",
                speed_up.value, speed_up.low, speed_up.high
            ),
        }
    }
}

/// Checks that stored results can be compared with those of these subjects.
///
/// # Errors
/// See [`GateError`].
pub fn check<'a>(
    subjects: impl IntoIterator<Item = &'a SubjectKind>,
    settings: &Settings,
    stored: &Results,
) -> Result<(), GateError> {
    let is_stored = |kind: &SubjectKind| restored(stored).any(|subject| subject.kind == *kind);
    if stored.cold().is_none() || !subjects.into_iter().any(is_stored) {
        let names = stored
            .subjects
            .iter()
            .map(|subject| subject.kind.to_string());
        return Err(GateError::NothingInCommon {
            stored: names.collect(),
        });
    }
    let cache = |settings: &Settings| match settings.drop_caches {
        true => "without a page cache",
        false => "with a warm page cache",
    };
    let (stored, now) = (cache(&stored.settings), cache(settings));
    if stored != now {
        return Err(GateError::OtherSettings { stored, now });
    }
    Ok(())
}

/// Compares restores with stored ones. `allowed` is the share by which each may be slower.
pub fn compare(now: &Results, stored: &Results, allowed: f64) -> Vec<Finding> {
    let requests = now.settings.requests;
    let mut findings = Vec::new();
    for subject in restored(now) {
        let before = restored(stored).find(|other| other.kind == subject.kind);
        for timing in Timing::shown(requests) {
            if timing == Timing::LastResponse && requests != stored.settings.requests {
                continue;
            }
            let before = before.and_then(|before| times(stored, before, timing));
            let verdict = match times(now, subject, timing).zip(before) {
                Some((now, before)) => judge(&now, &before, allowed),
                None => Verdict::NotStored,
            };
            findings.push(Finding {
                subject: subject.kind.to_string(),
                timing,
                label: timing.label(requests),
                verdict,
            });
        }
    }
    findings
}

/// Compares the speed-up of each restore until its first response with the least that is asked.
pub fn require(now: &Results, least: f64) -> Vec<Finding> {
    let timing = Timing::FirstResponse;
    restored(now)
        .filter_map(|subject| {
            let speed_up = now.speed_up(subject, timing)?;
            Some(Finding {
                subject: subject.kind.to_string(),
                timing,
                label: timing.label(now.settings.requests),
                verdict: match speed_up.value < least {
                    true => Verdict::TooSlow { speed_up, least },
                    false => Verdict::FastEnough { speed_up, least },
                },
            })
        })
        .collect()
}

fn restored(results: &Results) -> impl Iterator<Item = &Subject> {
    let is_restored = |subject: &&Subject| matches!(subject.kind, SubjectKind::Restored { .. });
    results.subjects.iter().filter(is_restored)
}

struct Times {
    restored: Vec<f64>,
    cold: Vec<f64>,
}

impl Times {
    fn pairs(&self) -> Pairs<'_> {
        Pairs::new(&self.restored, &self.cold)
    }

    fn rounds(&self) -> usize {
        self.restored.len().min(self.cold.len())
    }
}

fn times(results: &Results, subject: &Subject, timing: Timing) -> Option<Times> {
    let times = Times {
        restored: subject.times(timing),
        cold: results.cold()?.times(timing),
    };
    (!times.restored.is_empty() && !times.cold.is_empty()).then_some(times)
}

/// A change is a regression if it is more than allowed and its interval leaves no doubt that it
/// is one at all. (That the whole interval lie beyond what is allowed would be too much to ask:
/// half of all changes a little above it would pass.)
fn judge(now: &Times, before: &Times, allowed: f64) -> Verdict {
    let change = now.pairs().change_since(before.pairs(), 1.0 - DOUBT);
    let is_proof = now.rounds().min(before.rounds()) >= FEWEST;
    if is_proof && change.value > allowed && change.low > 0.0 {
        Verdict::Slower { change }
    } else if is_proof && change.high < 0.0 {
        Verdict::Faster { change }
    } else if !is_proof || change.high > allowed {
        Verdict::Unclear { change }
    } else {
        Verdict::Kept { change }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::statistics::Random;

    /// Restores of the same cold starts, each slower by this.
    fn exact(rounds: usize, slower: f64) -> Times {
        Times {
            cold: vec![300.0; rounds],
            restored: vec![50.0 * slower; rounds],
        }
    }

    #[test]
    fn only_what_is_more_than_allowed_and_proven_is_a_regression() {
        let judged = |rounds, slower| judge(&exact(rounds, slower), &exact(10, 1.0), 0.1);
        assert!(matches!(judged(10, 1.11), Verdict::Slower { .. }));
        assert!(matches!(judged(10, 1.09), Verdict::Kept { .. }));
        assert!(matches!(judged(10, 0.9), Verdict::Faster { .. }));
        assert!(matches!(judged(4, 1.5), Verdict::Unclear { .. }));
        // Twice as slow in some rounds: perhaps by chance.
        let mut mixed = exact(10, 1.0);
        mixed.restored[..6].fill(100.0);
        assert!(matches!(
            judge(&mixed, &exact(10, 1.0), 0.1),
            Verdict::Unclear { .. }
        ));
    }

    /// Two measurements of the same server on a machine that is far from quiet: each time is off
    /// by a factor whose logarithm is normally distributed, with this standard deviation.
    fn times(random: &mut Random, deviation: f64, slower: f64) -> Times {
        let mut noisy = |time: f64| (0..10).map(|_| time * random.factor(deviation)).collect();
        Times {
            cold: noisy(300.0),
            restored: noisy(50.0 * slower),
        }
    }

    fn caught(deviation: f64, slower: f64) -> f64 {
        const TRIES: u32 = 200;
        let mut random = Random::new();
        let caught = (0..TRIES).filter(|_| {
            let stored = times(&mut random, deviation, 1.0);
            let now = times(&mut random, deviation, slower);
            judge(&now, &stored, 0.1).is_failure()
        });
        caught.count() as f64 / f64::from(TRIES)
    }

    #[test]
    fn no_change_is_reported_as_one_in_at_most_1_of_20_tries_however_noisy() {
        for deviation in [0.02, 0.05, 0.1, 0.2, 0.4] {
            let share = caught(deviation, 1.0);
            assert!(share <= 0.05, "{share} with a deviation of {deviation}");
        }
        assert_eq!(caught(0.02, 1.15), 1.0);
        assert!(caught(0.05, 1.3) > 0.95);
    }
}
