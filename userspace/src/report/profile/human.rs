//! A profile on one screen.

use std::fmt::Write as _;

use super::super::{columns, units::Milliseconds};
use crate::profile::{Class, MilestoneKind, Profile, Step, Times};

/// Columns of the longest bar.
const BAR: usize = 40;

/// Threads that are told of.
const THREADS: usize = 12;

/// Steps of the critical path that are told of, if they take a thousandth of it.
const STEPS: usize = 60;

/// The screen.
pub fn render(profile: &Profile, shows_path: bool) -> String {
    let mut text = String::new();
    head(&mut text, profile);
    classes(&mut text, profile);
    threads(&mut text, profile);
    if shows_path {
        critical_path(&mut text, profile);
    }
    findings(&mut text, profile);
    lost(&mut text, profile);
    text
}

fn ms(nanoseconds: u64) -> String {
    Milliseconds(nanoseconds / 1000).to_string()
}

fn percent(part: u64, of: u64) -> String {
    format!("{:.0} %", 100.0 * part as f64 / of.max(1) as f64)
}

fn head(text: &mut String, profile: &Profile) {
    let command = profile.command.join(" ");
    let _ = writeln!(text, "{command}\n");
    for milestone in &profile.milestones {
        let what = match milestone.kind {
            MilestoneKind::Listen => "listens",
            MilestoneKind::Ready => "ready",
            MilestoneKind::Response => "first response",
        };
        let at = milestone.listener.as_ref().map(ToString::to_string);
        let line = format!(
            "  {:<15} {:>10}  {}",
            what,
            ms(milestone.at_ns),
            at.unwrap_or_default()
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let processes = profile.processes.len();
    let threads: usize = profile.processes.iter().map(|of| of.threads.len()).sum();
    let on_cpu = all_times(profile).on_cpu();
    let _ = writeln!(
        text,
        "\n  {} process{}, {} thread{}; {} on processors\n",
        processes,
        if processes == 1 { "" } else { "es" },
        threads,
        if threads == 1 { "" } else { "s" },
        ms(on_cpu)
    );
}

fn all_times(profile: &Profile) -> Times {
    let threads = profile
        .processes
        .iter()
        .flat_map(|process| &process.threads);
    threads.map(|thread| thread.times).sum()
}

/// Where the time went: the classes of the critical path, whose sum is all of it.
fn classes(text: &mut String, profile: &Profile) {
    let mut times = Times::default();
    for step in &profile.critical_path {
        times.add(step.class, step.end_ns - step.start_ns);
    }
    let total = times.sum();
    let mut classes: Vec<_> = Class::ALL
        .iter()
        .map(|&class| (class, times.of(class)))
        .filter(|&(_, time)| time > 0)
        .collect();
    classes.sort_by_key(|&(_, time)| std::cmp::Reverse(time));
    let _ = writeln!(text, "Where the time went, of what the end waited for");
    for (class, time) in classes {
        let columns = (BAR as u64 * time).div_ceil(total.max(1)) as usize;
        let _ = writeln!(
            text,
            "  {:<17} {:<BAR$} {:>10} {:>5}",
            class.title(),
            "█".repeat(columns.min(BAR)),
            ms(time),
            percent(time, total)
        );
    }
    text.push('\n');
}

fn threads(text: &mut String, profile: &Profile) {
    let headings = [
        "PROCESS", "THREAD", "FROM", "FOR", "RUNS", "WAITS", "MOST FOR",
    ];
    let mut rows: Vec<(u64, [String; 7])> = vec![];
    for process in &profile.processes {
        for thread in &process.threads {
            let on_cpu = thread.times.on_cpu();
            let (class, time) = Class::ALL
                .iter()
                .map(|&class| (class, thread.times.of(class)))
                .max_by_key(|&(_, time)| time)
                .unwrap_or((Class::User, 0));
            let row = [
                process.title(),
                format!("{} {}", thread.name, thread.tid),
                ms(thread.start_ns),
                ms(thread.end_ns - thread.start_ns),
                ms(on_cpu),
                ms(thread.times.sum() - on_cpu),
                format!("{} {}", class.title(), ms(time)),
            ];
            rows.push((on_cpu, row));
        }
    }
    rows.sort_by_key(|(on_cpu, _)| std::cmp::Reverse(*on_cpu));
    let (all, left_out) = (rows.len(), rows.len().saturating_sub(THREADS));
    let rows = rows.into_iter().take(THREADS).map(|(_, row)| row);
    let rows = [headings.map(str::to_owned)].into_iter().chain(rows);
    let _ = writeln!(text, "{}", columns(rows));
    if left_out > 0 {
        let _ = writeln!(text, "and {left_out} of {all} threads more, which ran less");
    }
    text.push('\n');
}

fn critical_path(text: &mut String, profile: &Profile) {
    let _ = writeln!(text, "What the end waited for");
    let least = profile.length_ns / 1000;
    let is_long = |step: &&Step| step.end_ns - step.start_ns >= least;
    let mut long: Vec<_> = profile.critical_path.iter().filter(is_long).collect();
    long.sort_by_key(|step| std::cmp::Reverse(step.end_ns - step.start_ns));
    long.truncate(STEPS);
    long.sort_by_key(|step| step.start_ns);
    let mut told_ns = 0;
    for step in &long {
        let time = step.end_ns - step.start_ns;
        told_ns += time;
        let what = step.text.and_then(|text| profile.texts.get(text as usize));
        let line = format!(
            "  {:>10} {:>10}  {:>7}  {:<17} {}",
            ms(step.start_ns),
            format!("+{}", ms(time)),
            step.tid,
            step.class.title(),
            what.map_or("", String::as_str)
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let count = profile.critical_path.len() - long.len();
    if count > 0 {
        let rest = profile.length_ns.saturating_sub(told_ns);
        let _ = writeln!(text, "  and {count} shorter steps, {} in all", ms(rest));
    }
    text.push('\n');
}

fn findings(text: &mut String, profile: &Profile) {
    if profile.findings.is_empty() {
        return;
    }
    let _ = writeln!(text, "What is worth acting on");
    for (number, finding) in profile.findings.iter().enumerate() {
        let _ = writeln!(
            text,
            "  {}. {}: {}",
            number + 1,
            finding.title,
            ms(finding.cost_ns)
        );
        for line in &finding.evidence {
            let _ = writeln!(text, "       {line}");
        }
        let _ = writeln!(text, "     {}", finding.advice);
    }
    text.push('\n');
}

fn lost(text: &mut String, profile: &Profile) {
    let lost = &profile.lost;
    let parts = [
        (lost.events, "events found no room in the kernel"),
        (lost.samples, "samples of stacks found no room"),
        (lost.stacks_cut, "stacks were cut short"),
        (lost.slices_joined, "short times were joined with others"),
        (lost.texts_cut, "paths were cut short"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<_> = parts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if !parts.is_empty() {
        let _ = writeln!(
            text,
            "Not all is told: {}; the totals are exact.",
            parts.join(", ")
        );
    }
}
