//! Prometheus's text format, version 0.0.4: families of samples.
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::{Display, Write as _};

/// What a family is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Labels of a sample with their values.
pub type Labels<'a> = [(&'a str, &'a str)];

/// The text, as far as it is written.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Begins a family. Its samples follow.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Memory can be written to, here as below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub fn sample(&mut self, name: &str, labels: &Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let before = if place == 0 { '{' } else { ',' };
            let text = escaped(text);
            let _ = write!(self.0, "{before}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    pub fn histogram(&mut self, name: &str, labels: &Labels<'_>, histogram: &Histogram) {
        let buckets = BOUNDS.into_iter().zip(histogram.counts);
        self.buckets(name, labels, buckets, histogram.above, histogram.sum_us);
    }

    /// A histogram by its buckets: up to how many seconds there were how many, beyond the bucket before.
    pub fn buckets(
        &mut self,
        name: &str,
        labels: &Labels<'_>,
        buckets: impl Iterator<Item = (f64, u64)>,
        above: u64,
        sum_us: u64,
    ) {
        let buckets = buckets.map(|(bound, count)| (bound.to_string(), count));
        let mut sum = 0;
        for (bound, count) in buckets.chain([("+Inf".to_owned(), above)]) {
            sum += count;
            let labels = [labels, &[("le", &bound)]].concat();
            self.sample(&format!("{name}_bucket"), &labels, sum);
        }
        self.sample(&format!("{name}_sum"), labels, sum_us as f64 / 1e6);
        self.sample(&format!("{name}_count"), labels, sum);
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\\\");
    text.replace('"', "\\\"").replace('\n', "\\n")
}

/// The upper bounds of the buckets of a histogram, in seconds.
const BOUNDS: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];

/// Times, by how long they are.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: [u64; BOUNDS.len()],
    above: u64,
    sum_us: u64,
}

impl Histogram {
    pub fn add(&mut self, time_us: u64) {
        let seconds = time_us as f64 / 1e6;
        match BOUNDS.iter().position(|bound| seconds <= *bound) {
            Some(place) => self.counts[place] += 1,
            None => self.above += 1,
        }
        self.sum_us += time_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_as_the_format_says() {
        let mut text = Text::default();
        text.family("a_total", Kind::Counter, "What it is.");
        text.sample("a_total", &[], 7);
        text.sample("a_total", &[("site", "a\"b\\c\nd"), ("how", "cold")], 0.5);
        assert_eq!(
            text.into_string(),
            "# HELP a_total What it is.\n# TYPE a_total counter\na_total 7\n\
             a_total{site=\"a\\\"b\\\\c\\nd\",how=\"cold\"} 0.5\n"
        );
    }

    #[test]
    fn buckets_hold_all_below_their_bounds() {
        let mut histogram = Histogram::default();
        for time_us in [1000, 1001, 14_500, 31_000_000] {
            histogram.add(time_us);
        }
        let mut text = Text::default();
        text.histogram("t", &[("how", "restored")], &histogram);
        let text = text.into_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), BOUNDS.len() + 3);
        for line in [
            "t_bucket{how=\"restored\",le=\"0.001\"} 1",
            "t_bucket{how=\"restored\",le=\"0.01\"} 2",
            "t_bucket{how=\"restored\",le=\"0.02\"} 3",
            "t_bucket{how=\"restored\",le=\"30\"} 3",
            "t_bucket{how=\"restored\",le=\"+Inf\"} 4",
            "t_sum{how=\"restored\"} 31.016501",
            "t_count{how=\"restored\"} 4",
        ] {
            assert!(lines.contains(&line), "{line}\n{text}");
        }
    }
}
