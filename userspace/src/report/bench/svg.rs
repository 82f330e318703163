//! Bar charts with whiskers.
//!
//! The picture stands by itself: it carries its colours, for light and dark, and loads nothing.

use std::fmt::Write as _;

use super::figures;
use crate::bench::{
    Results,
    results::{Subject, Timing},
};

const WIDTH: f64 = 760.0;
/// What a character is wide, on average.
const CHARACTER: f64 = 7.2;
const BAR: f64 = 18.0;
const GAP: f64 = 4.0;
const BETWEEN_GROUPS: f64 = 14.0;
const TOP: f64 = 58.0;
/// The distance of the lines of the legend.
const LINE: f64 = 18.0;

/// The colours of both themes. The names are those of `figures::class`.
const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}\
.title{font-size:15px;font-weight:600}\
.note{fill:#59636e}\
.cold{fill:#8c959f}.restored{fill:#d9480f}.criu{fill:#1c7ed6}.baseline{fill:#7048e8}\
.whisker{stroke:#1f2328;stroke-width:1.2;fill:none}\
@media(prefers-color-scheme:dark){\
text{fill:#e6edf3}.note{fill:#9198a1}.whisker{stroke:#e6edf3}\
.cold{fill:#6e7681}.restored{fill:#f76707}.criu{fill:#4dabf7}.baseline{fill:#9775fa}}";

/// Bars that belong together.
pub struct Group {
    pub label: String,
    pub bars: Vec<Bar>,
}

/// A bar with its whiskers.
pub struct Bar {
    pub label: String,
    /// Of a style sheet: `cold`, `restored`, `criu` or `baseline`.
    pub class: &'static str,
    /// Tells bars of the same class apart: 0 is the strongest.
    pub shade: usize,
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// What stands behind it.
    pub text: String,
}

/// What the lengths of bars stand for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// The same in all groups.
    Shared,
    /// In each group, the longest bar has the full length.
    PerGroup,
}

/// A chart of the times of a measurement.
pub fn render(results: &Results) -> String {
    let requests = results.settings.requests;
    let group = |timing: Timing| Group {
        label: timing.label(requests),
        bars: results
            .subjects
            .iter()
            .enumerate()
            .map(|(place, subject)| {
                let median = subject.median(timing);
                let ratio = results.speed_up(subject, timing);
                let ratio = ratio.map(|ratio| format!(" · {}", figures::factor(ratio.value)));
                Bar {
                    label: subject.kind.to_string(),
                    class: figures::class(&subject.kind),
                    shade: shade(&results.subjects[..place], subject),
                    value: median.value,
                    low: median.low,
                    high: median.high,
                    text: figures::ms(median.value) + &ratio.unwrap_or_default(),
                }
            })
            .collect(),
    };
    let groups: Vec<Group> = Timing::shown(requests).map(group).collect();
    let title = format!("Start-up of {}", results.command.join(" "));
    let note = format!("medians of {} with 95 % intervals", results.settings.runs);
    chart(&title, &note, &groups, Scale::Shared)
}

/// How many subjects of the same class come before.
fn shade(before: &[Subject], subject: &Subject) -> usize {
    let class = figures::class(&subject.kind);
    let is_same = |other: &&Subject| figures::class(&other.kind) == class;
    before.iter().filter(is_same).count()
}

/// A chart with its groups one below the other.
pub fn chart(title: &str, note: &str, groups: &[Group], scale: Scale) -> String {
    let longest = |groups: &[Group]| {
        let bars = groups.iter().flat_map(|group| &group.bars);
        bars.map(|bar| bar.value.max(bar.high))
            .fold(f64::MIN_POSITIVE, f64::max)
    };
    let shared = longest(groups);
    let left = 28.0 + widest(groups.iter().map(|group| group.label.as_str()));
    let bars = groups.iter().flat_map(|group| &group.bars);
    let right = 20.0 + widest(bars.map(|bar| bar.text.as_str()));
    let mut body = String::new();
    let (legend, lines) = legend(groups, note);
    let mut y = TOP + LINE * (lines - 1) as f64;
    for group in groups {
        let full = match scale {
            Scale::Shared => shared,
            Scale::PerGroup => longest(std::slice::from_ref(group)),
        };
        let middle = y + (group.bars.len() as f64 * (BAR + GAP) - GAP) / 2.0;
        let _ = writeln!(
            body,
            r#"<text x="{:.0}" y="{:.0}" text-anchor="end">{}</text>"#,
            left - 12.0,
            middle + 4.0,
            escape(&group.label)
        );
        for bar in &group.bars {
            add_bar(&mut body, bar, (left, y), (WIDTH - left - right) / full);
            y += BAR + GAP;
        }
        y += BETWEEN_GROUPS;
    }
    let height = y;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" \
         width=\"{WIDTH:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"{title}\">\n\
         <style>{STYLE}</style>\n\
         <text class=\"title\" x=\"12\" y=\"22\">{title}</text>\n\
         {legend}{body}</svg>\n",
        title = escape(&shorten(title)),
    )
}

fn add_bar(body: &mut String, bar: &Bar, (left, y): (f64, f64), per_unit: f64) {
    let x = |value: f64| left + value * per_unit;
    let middle = y + BAR / 2.0;
    let _ = writeln!(
        body,
        r#"<rect class="{}"{} x="{left:.0}" y="{y:.1}" width="{:.1}" height="{BAR:.0}" rx="2"><title>{}: {}</title></rect>"#,
        bar.class,
        opacity(bar.shade),
        (bar.value * per_unit).max(1.0),
        escape(&bar.label),
        escape(&bar.text),
    );
    let (low, high) = (x(bar.low), x(bar.high));
    let _ = writeln!(
        body,
        r#"<path class="whisker" d="M{low:.1} {middle:.1}H{high:.1}M{low:.1} {a:.1}v8M{high:.1} {a:.1}v8"/>"#,
        a = middle - 4.0
    );
    let _ = writeln!(
        body,
        r#"<text x="{:.1}" y="{:.1}">{}</text>"#,
        x(bar.value.max(bar.high)) + 8.0,
        middle + 4.5,
        escape(&bar.text)
    );
}

/// About how wide the longest of some texts is.
fn widest<'a>(texts: impl Iterator<Item = &'a str>) -> f64 {
    let longest = texts.map(|text| text.chars().count()).max();
    CHARACTER * longest.unwrap_or(0) as f64
}

fn opacity(shade: usize) -> String {
    match shade {
        0 => String::new(),
        shade => format!(
            r#" fill-opacity="{:.2}""#,
            0.65_f64.powi(shade as i32).max(0.2)
        ),
    }
}

/// The names of the colours, each once, and the note behind them; and how many lines they take.
fn legend(groups: &[Group], note: &str) -> (String, usize) {
    const LEFT: f64 = 12.0;
    let mut seen: Vec<&Bar> = Vec::new();
    for bar in groups.iter().flat_map(|group| &group.bars) {
        if !seen.iter().any(|other| other.label == bar.label) {
            seen.push(bar);
        }
    }
    let mut text = String::new();
    let (mut x, mut y) = (LEFT, 44.0);
    let mut lines = 1;
    let mut place = |label: &str| {
        let width = 31.0 + widest(std::iter::once(label));
        if x > LEFT && x + width > WIDTH {
            (x, y) = (LEFT, y + LINE);
            lines += 1;
        }
        x += width;
        (x - width, y)
    };
    for bar in seen {
        let label = shorten(&bar.label);
        let (x, y) = place(&label);
        let _ = writeln!(
            text,
            r#"<rect class="{}"{} x="{x:.0}" y="{:.0}" width="10" height="10" rx="2"/><text x="{:.0}" y="{y:.0}">{}</text>"#,
            bar.class,
            opacity(bar.shade),
            y - 10.0,
            x + 15.0,
            escape(&label)
        );
    }
    let (x, y) = place(note);
    let _ = writeln!(
        text,
        r#"<text class="note" x="{x:.0}" y="{y:.0}">{}</text>"#,
        escape(note)
    );
    (text, lines)
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 90;
    match text.chars().count() > LONGEST {
        true => text.chars().take(LONGEST - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// Text that must not be taken for markup, without what XML cannot hold.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
