//! Compares start-ups before and after a change, each recorded once or several times.
//!
//! Pure functions. A figure is said to have changed only if it did so by more than the runs differ
//! among themselves; with a single run on a side that is not known, and [`Diff::noise`] says so.

mod figures;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use self::{figures::Figures, verdict::Samples};
use super::{Finding, Profile};
use crate::bench::statistics::Estimate;

/// What has changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    pub commands: Sides<Vec<String>>,
    pub runs: Sides<usize>,
    pub noise: Noise,
    /// In the order of [`Part`], those with nothing to compare left out.
    pub sections: Vec<Section>,
    /// In most runs before, and in none after but by exception.
    pub findings_gone: Vec<Finding>,
    pub findings_new: Vec<Finding>,
}

/// Something before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sides<T> {
    pub before: T,
    pub after: T,
}

/// How well one can tell a change from chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "noise", rename_all = "kebab-case")]
pub enum Noise {
    /// There is a single run on a side: every difference is told.
    Unknown,
    Known {
        /// The share of figures that look changed although nothing has.
        false_share: f64,
    },
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The times to each.
    Milestones,
    /// Its time, by class.
    CriticalPath,
    /// The time of all threads, by class.
    Threads,
    /// Of all processes, by name.
    Calls,
    /// By path.
    Files,
    /// By the name of the process.
    FailedLookups,
    /// By the name of the peer, or its address.
    Connections,
    /// By mapping.
    Faults,
    /// By name, and the order in which those of the same name were made.
    Processes,
}

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// That rows are ordered by.
    TimeNs,
    /// Of processes.
    CpuNs,
    Count,
    Bytes,
    PagesMissed,
    /// Page faults that waited for storage.
    MajorCount,
}

impl Quantity {
    pub fn is_time(self) -> bool {
        matches!(self, Self::TimeNs | Self::CpuNs)
    }
}

/// What was compared of a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    pub part: Part,
    /// Those that changed, the largest change of time first. Of the milestones all, as they come.
    pub rows: Vec<Row>,
    /// How many others there are.
    pub unchanged: usize,
    /// The sums of their median times, in nanoseconds.
    pub unchanged_ns: Sides<f64>,
}

/// Something that was compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    /// All of its figures, also those that did not change.
    pub figures: Vec<Change>,
}

/// A figure before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Change {
    pub quantity: Quantity,
    /// Absent if it was in no run.
    pub before: Option<Estimate>,
    pub after: Option<Estimate>,
    pub is_changed: bool,
}

impl Change {
    /// By how much the median is more than before.
    pub fn difference(&self) -> f64 {
        let value = |side: Option<Estimate>| side.map_or(0.0, |estimate| estimate.value);
        value(self.after) - value(self.before)
    }
}

/// Compares runs before with runs after, at least one each.
pub fn compare(before: &[Profile], after: &[Profile]) -> Diff {
    let runs = Sides {
        before: before.len(),
        after: after.len(),
    };
    let noise = verdict::noise(runs);
    let command = |profiles: &[Profile]| {
        let first = profiles.first();
        first.map_or_else(Vec::new, |profile| profile.command.clone())
    };
    let figures = Sides {
        before: before.iter().map(figures::of).collect::<Vec<_>>(),
        after: after.iter().map(figures::of).collect::<Vec<_>>(),
    };
    let mut keys = BTreeMap::<_, BTreeSet<_>>::new();
    for key in figures
        .before
        .iter()
        .chain(&figures.after)
        .flat_map(BTreeMap::keys)
    {
        keys.entry(key.0).or_default().insert(key.1.as_str());
    }
    let sections = keys
        .into_iter()
        .map(|(part, names)| section(&figures, noise, part, names))
        .collect();
    Diff {
        commands: Sides {
            before: command(before),
            after: command(after),
        },
        runs,
        noise,
        sections,
        findings_gone: only_in(before, after),
        findings_new: only_in(after, before),
    }
}

fn section(
    figures: &Sides<Vec<Figures>>,
    noise: Noise,
    part: Part,
    names: BTreeSet<&str>,
) -> Section {
    let mut section = Section {
        part,
        rows: Vec::new(),
        unchanged: 0,
        unchanged_ns: Sides {
            before: 0.0,
            after: 0.0,
        },
    };
    for name in names {
        let samples = figures::samples(figures, part, name);
        let verdicts: Vec<bool> = samples
            .iter()
            .map(|(quantity, samples)| samples.has_changed(*quantity, noise))
            .collect();
        // Only for what is listed are intervals made, which takes long.
        match part == Part::Milestones || verdicts.contains(&true) {
            true => section.rows.push(row(name, &samples, &verdicts)),
            false => {
                section.unchanged += 1;
                if let Some(time) = samples.get(&Quantity::TimeNs) {
                    section.unchanged_ns.before += time.median_before().unwrap_or(0.0);
                    section.unchanged_ns.after += time.median_after().unwrap_or(0.0);
                }
            }
        }
    }
    if part == Part::Milestones {
        let when = |row: &Row| {
            row.figures
                .first()
                .and_then(|f| Some(f.before.or(f.after)?.value))
        };
        section.rows.sort_by(|a, b| {
            let by_time = when(a).partial_cmp(&when(b));
            by_time.unwrap_or(std::cmp::Ordering::Equal)
        });
        return section;
    }
    let size = |row: &Row| {
        row.figures
            .iter()
            .map(|f| f.difference().abs())
            .collect::<Vec<_>>()
    };
    section.rows.sort_by(|a, b| {
        let by_size = size(b).partial_cmp(&size(a));
        by_size.unwrap_or(std::cmp::Ordering::Equal)
    });
    section
}

fn row(name: &str, samples: &BTreeMap<Quantity, Samples>, verdicts: &[bool]) -> Row {
    let change = |((&quantity, samples), &is_changed): ((&Quantity, &Samples), &bool)| Change {
        quantity,
        before: samples.estimate_before(),
        after: samples.estimate_after(),
        is_changed,
    };
    Row {
        name: name.to_owned(),
        figures: samples.iter().zip(verdicts).map(change).collect(),
    }
}

/// The findings of most of the runs here that are not of most of the runs there.
fn only_in(here: &[Profile], there: &[Profile]) -> Vec<Finding> {
    let share = |runs: &[Profile], kind: &str| {
        let has = |run: &&Profile| run.findings.iter().any(|f| kind_of(f) == kind);
        runs.iter().filter(has).count() as f64 / runs.len().max(1) as f64
    };
    let mut seen = BTreeSet::new();
    let mut found: Vec<Finding> = here
        .iter()
        .flat_map(|run| &run.findings)
        .filter(|finding| seen.insert(kind_of(finding)))
        .filter(|finding| {
            let kind = kind_of(finding);
            share(here, &kind) > 0.5 && share(there, &kind) <= 0.5
        })
        .cloned()
        .collect();
    found.sort_by_key(|finding| std::cmp::Reverse(finding.cost_ns));
    found
}

/// What a finding is about: its title without the numbers, which differ from run to run.
fn kind_of(finding: &Finding) -> String {
    let mut kind = String::new();
    let mut is_number = false;
    for c in finding.title.chars() {
        is_number = c.is_ascii_digit() || (is_number && matches!(c, '.' | ','));
        match is_number {
            true if kind.ends_with('#') => (),
            true => kind.push('#'),
            false => kind.push(c),
        }
    }
    kind
}
