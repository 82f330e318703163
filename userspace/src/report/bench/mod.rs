//! Results of `warmimg bench`: on the terminal, and as files.

mod exports;
mod figures;
mod html;
mod json;
pub mod markdown;
pub mod svg;

pub use self::{exports::Exports, figures::factor};
use super::{Lines, Report};
use crate::{
    bench::{Results, gate::Finding, results::Timing},
    error::Error,
};

impl Report {
    /// # Errors
    /// [`Error::Output`].
    pub fn benchmarked(&self, results: &Results, findings: &[Finding]) -> Result<(), Error> {
        if self.json {
            return self.line("bench", json::object(results, findings));
        }
        let mut out = Lines::default();
        out.add(&results.command.join(" "));
        out.add(&format!(
            "  {}; asked: {}",
            figures::method(results),
            results.target
        ));
        out.add(&format!("  {}", figures::client(results)));
        out.add("");
        add_timings(&mut out, results);
        add_usage(&mut out, results);
        add_histograms(&mut out, results);
        for conclusion in figures::conclusions(results) {
            out.add(&conclusion);
        }
        let doubts = figures::doubts(results);
        if !doubts.is_empty() {
            out.add("");
        }
        for doubt in doubts {
            out.add(&format!("Warning: {doubt}"));
        }
        if !findings.is_empty() {
            out.add("");
        }
        for finding in findings {
            out.add(&format!("{:<7}  {finding}", finding.verdict.word()));
        }
        out.print()
    }
}

fn add_timings(out: &mut Lines, results: &Results) {
    let [median, interval, min, max, speed_up] = figures::HEADINGS;
    let width = name_width(results);
    out.add(&format!(
        "  {:width$}  {median:>11}  {interval:>19}  {min:>11}  {max:>11}  {speed_up}",
        ""
    ));
    for section in figures::timings(results) {
        out.add(&format!("  {}", section.label));
        for row in section.rows {
            out.add(&format!(
                "    {:<w$}  {:>11}  {:>19}  {:>11}  {:>11}  {}",
                row.subject,
                row.median,
                row.interval,
                row.min,
                row.max,
                row.speed_up.unwrap_or_default(),
                w = width - 2,
            ));
        }
    }
    out.add("");
    let parts = figures::parts(results);
    for sentence in &parts {
        out.add(&format!("  {sentence}"));
    }
    if !parts.is_empty() {
        out.add("");
    }
}

fn add_usage(out: &mut Lines, results: &Results) {
    const COLUMN: usize = 11;
    let width = name_width(results);
    let widths: Vec<usize> = results
        .subjects
        .iter()
        .map(|subject| subject.kind.to_string().chars().count().max(COLUMN))
        .collect();
    let line = |label: &str, values: Vec<String>| {
        let cells = values.iter().zip(&widths);
        let cells: String = cells.map(|(value, w)| format!("  {value:>w$}")).collect();
        format!("  {label:<width$}{cells}")
    };
    let names = results
        .subjects
        .iter()
        .map(|subject| subject.kind.to_string());
    out.add(&line("until the first response", names.collect()));
    for row in figures::usage(results) {
        out.add(&line(&format!("  {}", row.label), row.values));
    }
    out.add("");
}

fn add_histograms(out: &mut Lines, results: &Results) {
    out.add("  first response, all runs");
    let width = name_width(results) - 2;
    for subject in &results.subjects {
        let times = subject.times(Timing::FirstResponse);
        let low = times.iter().copied().fold(f64::INFINITY, f64::min);
        let high = times.iter().copied().fold(0.0, f64::max);
        out.add(&format!(
            "    {:<width$}  {:>11} ▕{}▏ {}",
            subject.kind.to_string(),
            figures::ms(low),
            figures::histogram(&times),
            figures::ms(high),
        ));
    }
    out.add("");
}

/// The width of the first column.
fn name_width(results: &Results) -> usize {
    const LEAST: usize = "until the first response".len();
    let names = results
        .subjects
        .iter()
        .map(|subject| subject.kind.to_string());
    names
        .map(|name| name.chars().count() + 2)
        .fold(LEAST, usize::max)
}
