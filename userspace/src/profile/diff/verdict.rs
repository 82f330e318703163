//! Whether a figure has changed: the interval of the ratio of the medians leaves out 1, or, where
//! there are zeros and so no ratio, the intervals of the medians have nothing in common.

use std::cmp::Ordering;

use super::{Noise, Quantity, Sides};
use crate::bench::statistics::{CONFIDENCE, Estimate, Pairs, estimate_median, median};

/// A change of time of less, in nanoseconds, is worth no line. Most files and calls take less.
const LEAST_NS: f64 = 50_000.0;

/// Where the values of the two sides are as mixed as this says, nothing is resampled, which takes
/// milliseconds for each of thousands of files. It is less than what two runs on each side, all of
/// one above all of the other, have: 1.55.
const LEAST_RANK_SCORE: f64 = 1.5;

/// What an interval of [`CONFIDENCE`] leaves, however many runs there are.
const FALSE_SHARE: f64 = 0.05;

/// A figure in each run; none of a run that cannot have it.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    pub before: Vec<f64>,
    pub after: Vec<f64>,
    /// Whether any run has it.
    pub is_there: IsThere,
}

/// On each side.
#[derive(Clone, Copy, Debug, Default)]
pub struct IsThere {
    pub before: bool,
    pub after: bool,
}

impl Samples {
    pub fn median_before(&self) -> Option<f64> {
        self.is_there.before.then(|| median(&self.before))
    }

    pub fn median_after(&self) -> Option<f64> {
        self.is_there.after.then(|| median(&self.after))
    }

    pub fn estimate_before(&self) -> Option<Estimate> {
        self.is_there.before.then(|| estimate(&self.before))
    }

    pub fn estimate_after(&self) -> Option<Estimate> {
        self.is_there.after.then(|| estimate(&self.after))
    }

    /// Whether it changed by more than chance, as far as that is known.
    pub fn has_changed(&self, quantity: Quantity, noise: Noise) -> bool {
        let (before, after) = (self.median_before(), self.median_after());
        let difference = (after.unwrap_or(0.0) - before.unwrap_or(0.0)).abs();
        let least = if quantity.is_time() { LEAST_NS } else { 0.5 };
        // Most figures end here, without thousands of resamples.
        if difference < least {
            return false;
        }
        if noise == Noise::Unknown || self.before.is_empty() || self.after.is_empty() {
            return true;
        }
        // Of a figure that most runs do not have, as a milestone, less is known than of the runs.
        if self.before.len() < 2 || self.after.len() < 2 {
            return false;
        }
        if is_constant(&self.before) && is_constant(&self.after) {
            return true;
        }
        if self.rank_score().abs() < LEAST_RANK_SCORE {
            return false;
        }
        let mut all = self.before.iter().chain(&self.after);
        match all.all(|value| *value > 0.0) {
            true => excludes(self.relative_change(), 0.0),
            false => {
                let before = estimate(&self.before);
                let after = estimate(&self.after);
                before.high < after.low || after.high < before.low
            }
        }
    }

    /// How far the order of the runs is from one that chance makes, in standard deviations (Mann and
    /// Whitney, "On a test of whether one of two random variables is stochastically larger than the
    /// other", 1947).
    pub(super) fn rank_score(&self) -> f64 {
        let rank = |a: &f64, b: &f64| match a.total_cmp(b) {
            Ordering::Less => 1.0,
            Ordering::Equal => 0.5,
            Ordering::Greater => 0.0,
        };
        let of_one = |a: &f64| self.after.iter().map(|b| rank(a, b)).sum::<f64>();
        let larger: f64 = self.before.iter().map(of_one).sum();
        let (n, m) = (self.before.len() as f64, self.after.len() as f64);
        (larger - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
    }

    /// The runs of the two sides were not made in turn; so they are no pairs, and each side is
    /// resampled by itself.
    fn relative_change(&self) -> Estimate {
        let ones = vec![1.0; self.before.len().max(self.after.len())];
        let after = Pairs::new(&self.after, &ones);
        after.change_since(Pairs::new(&self.before, &ones), CONFIDENCE)
    }
}

/// The median with its interval. Counts and bytes are often the same in each run, and then there is
/// nothing to resample.
fn estimate(samples: &[f64]) -> Estimate {
    match samples {
        [value, ..] if is_constant(samples) => Estimate {
            value: *value,
            low: *value,
            high: *value,
        },
        _ => estimate_median(samples),
    }
}

fn is_constant(samples: &[f64]) -> bool {
    samples.windows(2).all(|pair| pair[0] == pair[1])
}

fn excludes(interval: Estimate, value: f64) -> bool {
    interval.low > value || interval.high < value
}

/// What can be known from so many runs. By chance alone, all values of one side are above all of
/// the other as often as one of the orders in which the runs can stand says: 2 / C(n + m, n). No
/// interval can do better than that.
pub fn noise(runs: Sides<usize>) -> Noise {
    if runs.before < 2 || runs.after < 2 {
        return Noise::Unknown;
    }
    let orders: f64 = (1..=runs.before)
        .map(|i| (runs.after + i) as f64 / i as f64)
        .product();
    Noise::Known {
        false_share: (2.0 / orders).max(FALSE_SHARE),
    }
}
