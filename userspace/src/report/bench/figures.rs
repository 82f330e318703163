//! The figures of a measurement as text, the same for every format.

use crate::{
    bench::{
        Results,
        results::{Subject, SubjectKind, Timing, Usage},
        statistics::Estimate,
        warnings::{Warning, warnings},
    },
    report::{plural, units::Bytes},
};

/// The rows of one time.
pub struct TimingSection {
    pub label: String,
    pub rows: Vec<TimingRow>,
}

/// A time of a subject.
pub struct TimingRow {
    pub subject: String,
    pub median: String,
    pub interval: String,
    pub min: String,
    pub max: String,
    /// Against the cold start.
    pub speed_up: Option<String>,
}

/// Something used, of each subject.
pub struct UsageRow {
    pub label: &'static str,
    pub values: Vec<String>,
}

/// The headings of the columns of a [`TimingRow`].
pub const HEADINGS: [&str; 5] = ["median", "95 % interval", "min", "max", "speed-up"];

/// The times, in the order in which they come to pass.
pub fn timings(results: &Results) -> Vec<TimingSection> {
    let requests = results.settings.requests;
    Timing::shown(requests)
        .map(|timing| TimingSection {
            label: timing.label(requests),
            rows: results
                .subjects
                .iter()
                .map(|subject| timing_row(results, subject, timing))
                .collect(),
        })
        .collect()
}

fn timing_row(results: &Results, subject: &Subject, timing: Timing) -> TimingRow {
    let times = subject.times(timing);
    let median = subject.median(timing);
    let extreme = |choose: fn(f64, f64) -> f64, from| ms(times.iter().copied().fold(from, choose));
    TimingRow {
        subject: subject.kind.to_string(),
        median: ms(median.value),
        interval: format!("{:.1} … {:.1}", median.low, median.high),
        min: extreme(f64::min, f64::INFINITY),
        max: extreme(f64::max, 0.0),
        speed_up: results
            .speed_up(subject, timing)
            .map(|ratio| speed_up(&ratio)),
    }
}

/// A number of milliseconds.
pub fn ms(value: f64) -> String {
    format!("{value:.1} ms")
}

/// How many times faster, with as many digits as mean something.
pub fn factor(value: f64) -> String {
    match value < 2.0 {
        true => format!("{value:.2}x"),
        false => format!("{value:.1}x"),
    }
}

fn speed_up(ratio: &Estimate) -> String {
    format!("{:.2}x ({:.2} … {:.2})", ratio.value, ratio.low, ratio.high)
}

/// Where the time of each restored subject went, in a sentence each.
pub fn parts(results: &Results) -> Vec<String> {
    /// Less than this in microseconds is not worth a word.
    const LEAST: f64 = 50.0;
    let sentence = |subject: &Subject| {
        let mut parts = subject.median_parts();
        let (whole, all) = parts.pop()?;
        parts.retain(|(_, time)| *time >= LEAST);
        let part = |(name, time): &(&str, f64)| format!("{name} {:.1}", time / 1e3);
        let parts: Vec<String> = parts.iter().map(part).collect();
        Some(format!(
            "{}, until warmimg has it back: {}; {whole} {} (medians)",
            subject.kind,
            parts.join(", "),
            ms(all / 1e3)
        ))
    };
    results.subjects.iter().filter_map(sentence).collect()
}

/// What was used until the first response, as medians.
pub fn usage(results: &Results) -> Vec<UsageRow> {
    let row = |label, show: &dyn Fn(&Subject) -> String| UsageRow {
        label,
        values: results.subjects.iter().map(show).collect(),
    };
    let bytes = |part: fn(&Usage) -> u64| {
        move |subject: &Subject| Bytes(subject.median_usage(part) as u64).to_string()
    };
    let count = |part: fn(&Usage) -> u64| {
        move |subject: &Subject| format!("{:.0}", subject.median_usage(part))
    };
    vec![
        row("CPU time", &|subject| {
            ms(subject.median_usage(|used| used.cpu_ns) / 1e6)
        }),
        row("peak RSS", &bytes(|used| used.peak_rss_bytes)),
        row("PSS", &bytes(|used| used.pss_bytes)),
        row("page faults", &count(|used| used.minor_faults)),
        row("major faults", &count(|used| used.major_faults)),
        row("read", &bytes(|used| used.read_bytes)),
        row("from storage", &bytes(|used| used.storage_bytes)),
        row("image", &|subject| {
            let image = subject.image.as_ref();
            image.map_or_else(|| "-".to_owned(), |image| Bytes(image.bytes).to_string())
        }),
    ]
}

/// What was done, in one sentence.
pub fn method(results: &Results) -> String {
    let settings = &results.settings;
    let runs = plural(settings.runs as u64, "run");
    let warmup = match settings.warmup_runs {
        0 => String::new(),
        count => format!(" after {count} to warm up"),
    };
    let cache = match settings.drop_caches {
        true => ", the page cache dropped before each",
        false => "",
    };
    format!("{runs} of each, in turn{warmup}{cache}; times from the start of the process")
}

/// How well the client saw.
pub fn client(results: &Results) -> String {
    let resolution =
        |subject: &Subject| format!("{:.2} ms ({})", subject.resolution(), subject.kind);
    let resolutions: Vec<String> = results.subjects.iter().map(resolution).collect();
    format!(
        "the client saw it listen to within {}, using {:.0} % of a processor",
        resolutions.join(", "),
        results.surroundings.client_cpu_share * 100.0
    )
}

/// The machine, in one line.
pub fn machine(results: &Results) -> String {
    let machine = &results.machine;
    format!(
        "{}, Linux {} {}, {} × {}, {}, CRIU {}, warmimg {}",
        machine.system,
        machine.kernel,
        machine.architecture,
        machine.processors,
        machine.processor,
        Bytes(machine.memory_bytes),
        machine.criu,
        results.warmimg
    )
}

/// What matters most: the first response of each other subject against the cold start.
pub fn conclusions(results: &Results) -> Vec<String> {
    let conclusion = |subject: &Subject| {
        let ratio = results.speed_up(subject, Timing::FirstResponse)?;
        let (factor, words) = match ratio.value >= 1.0 {
            true => (ratio, "faster"),
            false => (inverse(&ratio), "slower"),
        };
        Some(format!(
            "{}: first response {:.2} times {words} than the cold start ({:.2} … {:.2})",
            subject.kind, factor.value, factor.low, factor.high
        ))
    };
    results.subjects.iter().filter_map(conclusion).collect()
}

fn inverse(ratio: &Estimate) -> Estimate {
    Estimate {
        value: 1.0 / ratio.value,
        low: 1.0 / ratio.high,
        high: 1.0 / ratio.low,
    }
}

/// What to doubt, with what to try.
pub fn doubts(results: &Results) -> Vec<String> {
    let text = |warning: Warning| format!("{warning}: {}", warning.hint());
    warnings(results).into_iter().map(text).collect()
}

/// A histogram of some values as a line of bars.
pub fn histogram(values: &[f64]) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const BINS: usize = 24;
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let width = (high - low).max(f64::MIN_POSITIVE);
    let mut counts = [0_usize; BINS];
    for value in values {
        counts[(((value - low) / width * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    let most = counts.into_iter().max().unwrap_or(0).max(1);
    counts
        .into_iter()
        .map(|count| BARS[(count * (BARS.len() - 1)).div_ceil(most)])
        .collect()
}

/// A stable name for the kind of a subject, for style sheets.
pub fn class(kind: &SubjectKind) -> &'static str {
    match kind {
        SubjectKind::Cold => "cold",
        SubjectKind::Restored { .. } => "restored",
        SubjectKind::Criu { .. } => "criu",
        SubjectKind::Baseline { .. } => "baseline",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_has_a_bar_for_each_place() {
        let line = histogram(&[1.0, 1.0, 1.0, 1.0, 5.0]);
        assert_eq!(line.chars().next(), Some('█'));
        assert_eq!(line.chars().last(), Some('▂'));
        assert_eq!(line.chars().filter(|&bar| bar == ' ').count(), 22);
        assert_eq!(histogram(&[1.0]).chars().count(), 24);
    }
}
