//! A comparison for people: of each part what changed most, and the rest in a line.

use comfy_table::{CellAlignment, Table};

use crate::{
    bench::statistics::Estimate,
    profile::diff::{Change, Diff, Noise, Part, Quantity, Row, Section, Sides},
    report::{Lines, plural, units::Bytes},
};

/// How many rows of a part are shown; `--json` has them all.
const ROWS: usize = 12;

/// Names that are longer lose their middle, as paths tell most at their ends.
const NAME_WIDTH: usize = 56;

pub fn add(out: &mut Lines, diff: &Diff) {
    let Sides { before, after } = &diff.commands;
    match before == after {
        true => out.add(&before.join(" ")),
        false => {
            out.add(&format!("before: {}", before.join(" ")));
            out.add(&format!("after:  {}", after.join(" ")));
        }
    }
    add_method(out, diff);
    out.add("");
    let has_interval = diff.runs.before > 1 || diff.runs.after > 1;
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.add_row(["", "BEFORE", "AFTER", "CHANGE"]);
    for section in &diff.sections {
        add_section(&mut table, section, has_interval);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
        if column.index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().for_each(|line| out.add(&line));
    for (title, findings) in [("GONE", &diff.findings_gone), ("NEW", &diff.findings_new)] {
        if !findings.is_empty() {
            out.add("");
            out.add(&format!("FINDINGS THAT ARE {title}"));
        }
        for finding in findings {
            out.add(&format!(
                "  {}  {}",
                time(finding.cost_ns as f64),
                finding.title
            ));
        }
    }
}

fn add_method(out: &mut Lines, diff: &Diff) {
    let Sides { before, after } = diff.runs;
    let runs = format!("{} before, {after} after", plural(before as u64, "run"));
    match diff.noise {
        Noise::Unknown => {
            out.add(&format!(
                "  {runs}: how much runs differ is not known, so each difference"
            ));
            out.add("  may be chance; record several of each (--runs 5)");
        }
        Noise::Known { false_share } => {
            out.add(&format!("  {runs}; medians and their 95 % intervals"));
            if false_share > 0.05 {
                let share = format!("{:.0} %", false_share * 100.0);
                out.add(&format!(
                    "  so few runs let {share} of what did not change look as if it had; record more \
                     (--runs 5)"
                ));
            }
        }
    }
}

fn add_section(table: &mut Table, section: &Section, has_interval: bool) {
    table.add_row(["", "", "", ""]);
    table.add_row([title(section.part), "", "", ""]);
    for row in section.rows.iter().take(ROWS) {
        add_row(table, row, has_interval);
    }
    let hidden = section.rows.len().saturating_sub(ROWS);
    if hidden > 0 {
        table.add_row([format!("  {hidden} more changed; --json has them")]);
    }
    if section.unchanged > 0 {
        let Sides { before, after } = section.unchanged_ns;
        table.add_row([
            format!("  {} unchanged", section.unchanged),
            time(before),
            time(after),
            String::new(),
        ]);
    }
}

/// A line for the time, and one for each other figure that changed.
fn add_row(table: &mut Table, row: &Row, has_interval: bool) {
    let is_shown = |change: &&Change| change.is_changed || change.quantity == Quantity::TimeNs;
    for (i, change) in row.figures.iter().filter(is_shown).enumerate() {
        let label = match i {
            0 => format!("  {}", shorten(&row.name)),
            _ => format!("    {}", label(change.quantity)),
        };
        let side = |estimate: Option<Estimate>| match estimate {
            None => "-".to_owned(),
            Some(estimate) => with_interval(change.quantity, estimate, has_interval),
        };
        let changed = match change.is_changed {
            true => difference(change),
            false => "unchanged".to_owned(),
        };
        table.add_row([label, side(change.before), side(change.after), changed]);
    }
}

fn with_interval(quantity: Quantity, estimate: Estimate, has_interval: bool) -> String {
    let Estimate { value, low, high } = estimate;
    match has_interval && low < high {
        true => format!(
            "{} ({} … {})",
            amount(quantity, value),
            bare(quantity, low),
            bare(quantity, high)
        ),
        false => amount(quantity, value),
    }
}

fn difference(change: &Change) -> String {
    let difference = change.difference();
    let sign = if difference < 0.0 { '-' } else { '+' };
    let amount = amount(change.quantity, difference.abs());
    let share = match (change.before, change.after) {
        (None, _) => "new".to_owned(),
        (_, None) => "gone".to_owned(),
        (Some(before), _) if before.value == 0.0 => return format!("{sign}{amount}"),
        (Some(before), _) => format!("{:+.0} %", difference / before.value * 100.0),
    };
    format!("{sign}{amount} ({share})")
}

fn amount(quantity: Quantity, value: f64) -> String {
    match quantity {
        quantity if quantity.is_time() => time(value),
        Quantity::Bytes => Bytes(value as u64).to_string(),
        _ => format!("{value:.0}"),
    }
}

/// As [`amount`], its unit being clear from what stands before.
fn bare(quantity: Quantity, value: f64) -> String {
    let text = amount(quantity, value);
    match text.strip_suffix(" ms") {
        Some(bare) => bare.to_owned(),
        None => text,
    }
}

/// Nanoseconds as milliseconds, with as many digits as mean something.
fn time(nanoseconds: f64) -> String {
    match nanoseconds < 10e6 {
        true => format!("{:.2} ms", nanoseconds / 1e6),
        false => format!("{:.1} ms", nanoseconds / 1e6),
    }
}

fn title(part: Part) -> &'static str {
    match part {
        Part::Milestones => "TIME UNTIL",
        Part::CriticalPath => "CRITICAL PATH",
        Part::Threads => "ALL THREADS",
        Part::Calls => "SYSTEM CALLS",
        Part::Files => "FILES",
        Part::FailedLookups => "FAILED LOOK-UPS",
        Part::Connections => "CONNECTIONS",
        Part::Faults => "PAGE FAULTS",
        Part::Processes => "PROCESSES",
    }
}

fn label(quantity: Quantity) -> &'static str {
    match quantity {
        Quantity::TimeNs => "time",
        Quantity::CpuNs => "on a processor",
        Quantity::Count => "how many",
        Quantity::Bytes => "read",
        Quantity::PagesMissed => "pages not in the cache",
        Quantity::MajorCount => "from storage",
    }
}

fn shorten(name: &str) -> String {
    let name: String = name
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let length = name.chars().count();
    if length <= NAME_WIDTH {
        return name;
    }
    let half = (NAME_WIDTH - 1) / 2;
    let begin = name.chars().take(half);
    let end = name.chars().skip(length - half);
    begin.chain(['…']).chain(end).collect()
}
