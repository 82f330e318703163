//! Bar charts with whiskers.
//!
//! The picture stands by itself: it carries its colours, for light and dark, and loads nothing.

use std::fmt::Write as _;

use super::figures;
use crate::bench::{Results, results::Timing};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 190.0;
/// Room for the text behind the longest bar.
const RIGHT: f64 = 190.0;
const BAR: f64 = 18.0;
const GAP: f64 = 4.0;
const BETWEEN_GROUPS: f64 = 14.0;
const TOP: f64 = 58.0;

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
            .map(|subject| {
                let median = subject.median(timing);
                let ratio = results.speed_up(subject, timing);
                let ratio = ratio.map(|ratio| format!("  {:.1}x", ratio.value));
                Bar {
                    label: subject.kind.to_string(),
                    class: figures::class(&subject.kind),
                    value: median.value,
                    low: median.low,
                    high: median.high,
                    text: figures::ms(median.value) + &ratio.unwrap_or_default(),
                }
            })
            .collect(),
    };
    let shown = Timing::ALL
        .into_iter()
        .filter(|&timing| timing != Timing::LastResponse || requests > 1);
    let groups: Vec<Group> = shown.map(group).collect();
    let title = format!("Start-up of {}", results.command.join(" "));
    let note = format!("medians of {} with 95 % intervals", results.settings.runs);
    chart(&title, &note, &groups, Scale::Shared)
}

/// A chart with its groups one below the other.
pub fn chart(title: &str, note: &str, groups: &[Group], scale: Scale) -> String {
    let longest = |groups: &[Group]| {
        let bars = groups.iter().flat_map(|group| &group.bars);
        bars.map(|bar| bar.value.max(bar.high))
            .fold(f64::MIN_POSITIVE, f64::max)
    };
    let shared = longest(groups);
    let mut body = String::new();
    let mut y = TOP;
    for group in groups {
        let full = match scale {
            Scale::Shared => shared,
            Scale::PerGroup => longest(std::slice::from_ref(group)),
        };
        let middle = y + (group.bars.len() as f64 * (BAR + GAP) - GAP) / 2.0;
        let _ = writeln!(
            body,
            r#"<text x="{:.0}" y="{:.0}" text-anchor="end">{}</text>"#,
            LEFT - 12.0,
            middle + 4.0,
            escape(&group.label)
        );
        for bar in &group.bars {
            add_bar(&mut body, bar, y, (WIDTH - LEFT - RIGHT) / full);
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
        legend = legend(groups, note),
    )
}

fn add_bar(body: &mut String, bar: &Bar, y: f64, per_unit: f64) {
    let x = |value: f64| LEFT + value * per_unit;
    let middle = y + BAR / 2.0;
    let _ = writeln!(
        body,
        r#"<rect class="{}" x="{LEFT:.0}" y="{y:.1}" width="{:.1}" height="{BAR:.0}" rx="2"><title>{}: {}</title></rect>"#,
        bar.class,
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

/// The names of the colours, each once, and the note behind them.
fn legend(groups: &[Group], note: &str) -> String {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for bar in groups.iter().flat_map(|group| &group.bars) {
        if !seen.iter().any(|&(label, _)| label == bar.label) {
            seen.push((&bar.label, bar.class));
        }
    }
    let mut text = String::new();
    let mut x = 12.0;
    for (label, class) in seen {
        let label = shorten(label);
        let _ = writeln!(
            text,
            r#"<rect class="{class}" x="{x:.0}" y="34" width="10" height="10" rx="2"/><text x="{:.0}" y="44">{}</text>"#,
            x + 15.0,
            escape(&label)
        );
        x += 15.0 + 7.2 * label.chars().count() as f64 + 16.0;
    }
    let _ = writeln!(
        text,
        r#"<text class="note" x="{x:.0}" y="44">{}</text>"#,
        escape(note)
    );
    text
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 90;
    match text.chars().count() > LONGEST {
        true => text.chars().take(LONGEST - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// Text that must not be taken for markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
