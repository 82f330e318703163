//! What is stored of the measurements at scale, and the tables that are made of it, for the
//! terminal and for BENCHMARKS.md.

use std::{fmt::Write as _, fs, path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};
use warmimg::bench::statistics::{self, Estimate};

/// Where they are stored, in the checkout.
pub const PATH: &str = "benches/results/scale.json";

/// A part, measured with some options of `warmimg restore`.
#[derive(Serialize, Deserialize)]
pub struct Measurement {
    pub part: String,
    pub restore_options: Vec<String>,
    pub runs: usize,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// `uname -r`.
    pub kernel: String,
    pub processors: usize,
    #[serde(flatten)]
    measured: Measured,
}

/// What a part gives.
#[derive(Serialize, Deserialize)]
pub struct Measured {
    pub rows: Vec<Row>,
    pub findings: Vec<Finding>,
}

/// Something of which figures were measured.
#[derive(Serialize, Deserialize)]
pub struct Row {
    name: String,
    figures: Vec<Figure>,
}

#[derive(Serialize, Deserialize)]
struct Figure {
    name: String,
    unit: String,
    /// In the order of the rounds.
    samples: Vec<f64>,
}

/// What follows from the rows, with its interval.
#[derive(Serialize, Deserialize)]
pub struct Finding {
    name: String,
    unit: String,
    value: f64,
    low: f64,
    high: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
}

/// What a finding is to be.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Row {
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            figures: vec![],
        }
    }

    /// Adds a figure; one without samples is left out.
    pub fn with(mut self, name: &str, unit: &str, samples: Vec<f64>) -> Self {
        if !samples.is_empty() {
            self.figures.push(Figure {
                name: name.to_owned(),
                unit: unit.to_owned(),
                samples,
            });
        }
        self
    }
}

impl Finding {
    pub fn new(name: impl Into<String>, unit: &str, estimate: Estimate) -> Self {
        let Estimate { value, low, high } = estimate;
        Self {
            name: name.into(),
            unit: unit.to_owned(),
            value,
            low,
            high,
            target: None,
        }
    }

    /// It is to be no more than this.
    pub fn at_most(mut self, bound: f64) -> Self {
        self.target = Some(Target::AtMost(bound));
        self
    }

    /// It is to be no less than this.
    pub fn at_least(mut self, bound: f64) -> Self {
        self.target = Some(Target::AtLeast(bound));
        self
    }

    fn figure(&self) -> String {
        interval(self.value, self.low, self.high, &suffix(&self.unit))
    }

    /// What it is to be, if that is known, and whether it is so: not certain if its interval has
    /// values that are and others that are not.
    fn verdict(&self) -> Option<(String, &'static str)> {
        let (sign, bound, worst, best) = match self.target? {
            Target::AtMost(bound) => ('≤', bound, self.high <= bound, self.low <= bound),
            Target::AtLeast(bound) => ('≥', bound, self.low >= bound, self.high >= bound),
        };
        let verdict = match (worst, best) {
            (true, _) => "yes",
            (false, true) => "not certain",
            (false, false) => "no",
        };
        Some((format!("{sign} {bound}{}", suffix(&self.unit)), verdict))
    }
}

impl Measurement {
    pub fn new(part: &str, restore_options: &[String], runs: usize, measured: Measured) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        Self {
            part: part.to_owned(),
            restore_options: restore_options.to_vec(),
            runs,
            created_ms: now.unwrap().as_millis() as u64,
            kernel: kernel.trim().to_owned(),
            processors: std::thread::available_parallelism().unwrap().get(),
            measured,
        }
    }
}

/// Reads all that is stored; nothing if there is no file.
pub fn read(path: &Path) -> Vec<Measurement> {
    let Ok(text) = fs::read_to_string(path) else {
        return vec![];
    };
    serde_json::from_str(&text).unwrap()
}

/// Stores a measurement in place of an earlier one of the same part and options.
pub fn store(path: &Path, measurement: Measurement) {
    let mut all = read(path);
    all.retain(|old| {
        (&old.part, &old.restore_options) != (&measurement.part, &measurement.restore_options)
    });
    all.push(measurement);
    let text = serde_json::to_string_pretty(&all).unwrap();
    fs::write(path, text + "\n").unwrap();
}

/// A table of what was measured of a part, with the findings below.
pub fn tables(measurements: &[&Measurement]) -> String {
    let heading = |figure: &Figure| match figure.unit.as_str() {
        "" => figure.name.clone(),
        unit => format!("{}, {unit}", figure.name),
    };
    let mut headings = vec![String::new()];
    for row in measurements.iter().flat_map(|found| &found.measured.rows) {
        for figure in &row.figures {
            if !headings.contains(&heading(figure)) {
                headings.push(heading(figure));
            }
        }
    }
    let mut lines = vec![headings.clone()];
    let mut findings = String::new();
    for measurement in measurements {
        let with = match measurement.restore_options.join(" ") {
            options if options.is_empty() => options,
            options => format!(", `{options}`"),
        };
        for row in &measurement.measured.rows {
            let mut cells = vec![format!("{}{with}", row.name)];
            for wanted in &headings[1..] {
                let figure = row.figures.iter().find(|figure| heading(figure) == *wanted);
                cells.push(figure.map_or_else(String::new, |figure| {
                    let Estimate { value, low, high } =
                        statistics::estimate_median(&figure.samples);
                    interval(value, low, high, "")
                }));
            }
            lines.push(cells);
        }
        for finding in &measurement.measured.findings {
            let to_be = match finding.verdict() {
                Some((target, verdict)) => format!(", to be {target}: {verdict}"),
                None => String::new(),
            };
            let figure = finding.figure();
            let _ = writeln!(findings, "- {}{with}: **{figure}**{to_be}", finding.name);
        }
    }
    format!("{}\n{findings}", aligned(&lines))
}

/// A table of all findings that are to be something; empty if there are none.
pub fn targets(measurements: &[Measurement]) -> String {
    let mut lines = vec![
        ["", "to be", "measured", "held"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for finding in measurements
        .iter()
        .flat_map(|found| &found.measured.findings)
    {
        if let Some((target, verdict)) = finding.verdict() {
            let verdict = verdict.to_owned();
            lines.push(vec![
                finding.name.clone(),
                target,
                finding.figure(),
                verdict,
            ]);
        }
    }
    match lines.len() {
        1 => String::new(),
        _ => aligned(&lines),
    }
}

/// A unit behind a figure.
fn suffix(unit: &str) -> String {
    match unit {
        "x" | "" => unit.to_owned(),
        unit => format!(" {unit}"),
    }
}

fn interval(value: f64, low: f64, high: f64, unit: &str) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 => 0,
        medium if medium >= 10.0 => 1,
        _ => 2,
    };
    if low == high {
        return format!("{value:.digits$}{unit}");
    }
    format!("{value:.digits$}{unit} ({low:.digits$} … {high:.digits$})")
}

/// A Markdown table, in columns that are aligned on a terminal as well.
fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = lines.iter().map(|cells| cells[column].chars().count());
        cells.max().unwrap_or(0).max(4)
    };
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for (number, cells) in lines.iter().enumerate() {
        for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "| {cell:<width$} |"),
                _ => write!(text, " {cell:>width$} |"),
            };
        }
        text.push('\n');
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let _ = match column {
                    0 => write!(text, "|{}|", "-".repeat(width + 2)),
                    _ => write!(text, "{}:|", "-".repeat(width + 1)),
                };
            }
            text.push('\n');
        }
    }
    text
}
