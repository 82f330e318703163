//! Medians and how sure one can be of them.
//!
//! Intervals are by the percentile bootstrap (Efron, "Bootstrap methods: another look at the
//! jackknife", 1979): nothing is assumed about how start-up times are distributed, which is
//! skewed. The resamples come from a fixed seed, so that the same samples always give the same
//! interval.

use serde::Serialize;

/// How many resamples an interval is made from.
const RESAMPLES: usize = 5_000;

/// The share of resamples that an interval spans, unless another is asked for.
pub const CONFIDENCE: f64 = 0.95;

/// A figure with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// Half of the interval's width as a share of the figure.
    pub fn relative_error(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.value
    }
}

/// Samples of the same rounds from two subjects, to be compared: what disturbed a round
/// disturbed both.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    numerator: &'a [f64],
    denominator: &'a [f64],
}

impl<'a> Pairs<'a> {
    /// Those of the rounds that both have.
    pub fn new(numerator: &'a [f64], denominator: &'a [f64]) -> Self {
        let rounds = numerator.len().min(denominator.len());
        Self {
            numerator: &numerator[..rounds],
            denominator: &denominator[..rounds],
        }
    }

    /// The ratio of the medians.
    pub fn ratio(self) -> Estimate {
        let mut random = Random::new();
        estimate(ratio(self.numerator, self.denominator), CONFIDENCE, || {
            self.resampled_ratio(&mut random)
        })
    }

    /// By how much the ratio of the medians is more than that of `other`: 0.1 is 10 % more. The
    /// two were measured apart, perhaps on different machines.
    pub fn change_since(self, other: Self, confidence: f64) -> Estimate {
        let mut random = Random::new();
        let now = ratio(self.numerator, self.denominator);
        let then = ratio(other.numerator, other.denominator);
        estimate(now / then - 1.0, confidence, || {
            self.resampled_ratio(&mut random) / other.resampled_ratio(&mut random) - 1.0
        })
    }

    fn resampled_ratio(self, random: &mut Random) -> f64 {
        let rounds: Vec<usize> = random.resample(self.numerator.len()).collect();
        let pick = |samples: &[f64]| rounds.iter().map(|&i| samples[i]).collect::<Vec<_>>();
        ratio(&pick(self.numerator), &pick(self.denominator))
    }
}

fn ratio(numerator: &[f64], denominator: &[f64]) -> f64 {
    median(numerator) / median(denominator)
}

/// The median with its interval.
pub fn estimate_median(samples: &[f64]) -> Estimate {
    let mut random = Random::new();
    estimate(median(samples), CONFIDENCE, || {
        let resample: Vec<f64> = random.resample(samples.len()).map(|i| samples[i]).collect();
        median(&resample)
    })
}

fn estimate(value: f64, confidence: f64, mut resample: impl FnMut() -> f64) -> Estimate {
    let mut values: Vec<f64> = (0..RESAMPLES).map(|_| resample()).collect();
    values.sort_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    Estimate {
        value,
        low: sorted_quantile(&values, tail),
        high: sorted_quantile(&values, 1.0 - tail),
    }
}

/// The median; that of no samples is not a number.
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// A quantile, interpolated between the nearest samples (type 7 of Hyndman and Fan, 1996).
pub fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted_quantile(&sorted, share)
}

fn sorted_quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

/// The indices of samples that are far from the others: those whose modified z-score is more
/// than `limit` (Iglewicz and Hoaglin, "How to detect and handle outliers", 1993, who take 3.5
/// where the samples are normally distributed).
pub fn outliers(samples: &[f64], limit: f64) -> Vec<usize> {
    let scores = modified_z_scores(samples);
    let is_far = |(_, score): &(usize, f64)| score.abs() > limit;
    scores
        .into_iter()
        .enumerate()
        .filter(is_far)
        .map(|(i, _)| i)
        .collect()
}

fn modified_z_scores(samples: &[f64]) -> Vec<f64> {
    /// The third quartile of the standard normal distribution.
    const SCALE: f64 = 0.6745;
    let middle = median(samples);
    let deviations: Vec<f64> = samples.iter().map(|x| (x - middle).abs()).collect();
    let deviation = median(&deviations);
    let score = |x: &f64| SCALE * (x - middle) / deviation;
    samples.iter().map(score).collect()
}

/// SplitMix64 (Steele, Lea and Flood, 2014): enough to draw samples, and the same everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Self {
        Self(0)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// As many indices below `len`, each drawn anew.
    fn resample(&mut self, len: usize) -> impl Iterator<Item = usize> {
        // The high half of a product maps the whole range evenly onto 0..len.
        (0..len).map(move |_| ((u128::from(self.next()) * len as u128) >> 64) as usize)
    }
}

#[cfg(test)]
impl Random {
    /// Evenly distributed from 0 up to 1.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A factor whose logarithm is normally distributed, by the sum of twelve.
    pub(super) fn factor(&mut self, deviation: f64) -> f64 {
        let normal = (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0;
        (deviation * normal).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: f64, published: f64, tolerance: f64) {
        assert!(
            (found - published).abs() <= tolerance,
            "{found}, published {published}"
        );
    }

    /// Survival times in days after surgery, treatment and control: Efron and Tibshirani, "An
    /// introduction to the bootstrap" (1993), table 2.1.
    const TREATED: [f64; 7] = [94.0, 197.0, 16.0, 38.0, 99.0, 141.0, 23.0];
    const CONTROL: [f64; 9] = [52.0, 104.0, 146.0, 10.0, 51.0, 30.0, 40.0, 27.0, 46.0];

    #[test]
    fn medians_are_those_of_the_book() {
        assert_eq!(median(&TREATED), 94.0);
        assert_eq!(median(&CONTROL), 46.0);
        assert!(median(&[]).is_nan());
    }

    /// The same book, table 2.2: the bootstrap's standard error of the median, for ever more
    /// resamples, is 37.83; that of the mean 23.36.
    #[test]
    fn resamples_spread_as_in_the_book() {
        let mut random = Random::new();
        let mut spread = |statistic: fn(&[f64]) -> f64| {
            let values: Vec<f64> = (0..200_000)
                .map(|_| {
                    let picked: Vec<f64> = random.resample(7).map(|i| TREATED[i]).collect();
                    statistic(&picked)
                })
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            (squares / (values.len() - 1) as f64).sqrt()
        };
        assert_close(spread(median), 37.83, 0.2);
        assert_close(spread(|x| x.iter().sum::<f64>() / 7.0), 23.36, 0.2);
    }

    /// Efron (1979), section 3: how often each of 13 samples is the median of a resample.
    #[test]
    fn medians_of_resamples_are_distributed_as_published() {
        const DRAWS: usize = 200_000;
        let samples: Vec<f64> = (1..=13).map(f64::from).collect();
        let mut random = Random::new();
        let mut counts = [0_u32; 14];
        for _ in 0..DRAWS {
            let picked: Vec<f64> = random.resample(13).map(|i| samples[i]).collect();
            counts[median(&picked) as usize] += 1;
        }
        let published = [
            (2, 0.0015),
            (3, 0.0142),
            (4, 0.0550),
            (5, 0.1242),
            (6, 0.1936),
            (7, 0.2230),
        ];
        for (place, share) in published {
            let mirrored = 14 - place;
            let found = f64::from(counts[place] + counts[mirrored]) / 2.0 / DRAWS as f64;
            assert_close(found, share, 0.002);
        }
    }

    /// R's `quantile(c(...), type = 7)`, whose documentation defines the type.
    #[test]
    fn quantiles_are_interpolated() {
        let samples = [15.0, 20.0, 35.0, 40.0, 50.0];
        assert_eq!(quantile(&samples, 0.25), 20.0);
        assert_close(quantile(&samples, 0.4), 29.0, 1e-9);
        assert_eq!(quantile(&samples, 1.0), 50.0);
    }

    /// The coverage that the interval promises, on samples of a known skewed distribution.
    #[test]
    fn intervals_hold_the_true_median_as_often_as_they_say() {
        const ROUNDS: usize = 400;
        let mut random = Random::new();
        let held = (0..ROUNDS)
            .filter(|_| {
                // Exponential: the median is ln 2.
                let samples: Vec<f64> = (0..25).map(|_| -(1.0 - random.uniform()).ln()).collect();
                let Estimate { low, high, .. } = estimate_median(&samples);
                (low..=high).contains(&std::f64::consts::LN_2)
            })
            .count();
        assert_close(held as f64 / ROUNDS as f64, CONFIDENCE, 0.03);
    }

    /// NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.17.1: of these measurements of
    /// uranium isotopes (Tietjen and Moore, 1972), 245.57 is an outlier.
    #[test]
    fn outliers_are_found() {
        let samples = [
            199.31, 199.53, 200.19, 200.82, 201.92, 201.95, 202.18, 245.57,
        ];
        assert_eq!(outliers(&samples, 3.5), [7]);
        assert_eq!(outliers(&TREATED, 3.5), [0; 0]);
        assert_eq!(outliers(&[1.0; 5], 3.5), [0; 0]);
    }

    #[test]
    fn a_disturbed_round_does_not_widen_a_ratio() {
        // Rounds on a machine that gets slower and slower; the ratio is always 5.
        let slow: Vec<f64> = (10..30).map(|x| f64::from(x * 5)).collect();
        let fast: Vec<f64> = (10..30).map(f64::from).collect();
        let ratio = Pairs::new(&slow, &fast).ratio();
        assert_eq!((ratio.low, ratio.value, ratio.high), (5.0, 5.0, 5.0));
        let change = Pairs::new(&slow, &fast).change_since(Pairs::new(&fast, &fast), CONFIDENCE);
        assert_eq!((change.low, change.value, change.high), (4.0, 4.0, 4.0));
    }
}
