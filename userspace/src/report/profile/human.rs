//! A profile on one screen.

use std::fmt::Write as _;

use super::super::{columns, units::Milliseconds};
use crate::{
    profile::{Class, MilestoneKind, Profile, Step, Times},
    watch::CapturePoint,
};

/// Columns of the longest bar.
const BAR: usize = 40;

/// Threads that are told of.
const THREADS: usize = 12;

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
    savings(&mut text, profile);
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
        let what = milestone.kind.title();
        let at = milestone.listener.as_ref().map(ToString::to_string);
        let line = format!(
            "  {:<21} {:>10}  {}",
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

/// The critical path: long waits by themselves, and what is between them thread by thread.
fn critical_path(text: &mut String, profile: &Profile) {
    let headings = ["AT", "FOR", "THREAD", "WHAT"];
    let mut rows = vec![headings.map(str::to_owned)];
    let least = profile.length_ns / 100;
    let waits_long = |step: &Step| {
        !step.class.is_on_cpu()
            && step.class != Class::Runnable
            && step.end_ns - step.start_ns >= least
    };
    let same = |a: &Step, b: &Step| a.tid == b.tid && !waits_long(a) && !waits_long(b);
    for part in profile.critical_path.chunk_by(same) {
        let (first, last) = (&part[0], &part[part.len() - 1]);
        let length = last.end_ns - first.start_ns;
        if length < least {
            continue;
        }
        let what = first.text.and_then(|text| profile.texts.get(text as usize));
        let what = match (waits_long(first), what) {
            (true, Some(what)) => format!("{}: {what}", first.class.title()),
            (true, None) => first.class.title().to_owned(),
            (false, _) => shares(part),
        };
        rows.push([
            ms(first.start_ns),
            ms(length),
            thread_title(profile, first),
            what,
        ]);
    }
    let _ = writeln!(text, "What the end waited for, in parts of 1 % and more\n");
    let _ = writeln!(text, "{}\n", columns(rows));
}

/// The classes of steps, as shares of them.
fn shares(steps: &[Step]) -> String {
    let mut times = Times::default();
    for step in steps {
        times.add(step.class, step.end_ns - step.start_ns);
    }
    let total = times.sum();
    let mut classes: Vec<_> = Class::ALL.map(|class| (class, times.of(class))).to_vec();
    classes.retain(|&(_, time)| time * 20 >= total.max(1));
    classes.sort_by_key(|&(_, time)| std::cmp::Reverse(time));
    let shares = classes.iter().map(|&(class, time)| {
        let share = percent(time, total);
        format!("{} {share}", class.title())
    });
    shares.collect::<Vec<_>>().join(", ")
}

/// The program, or the name of the thread if it has one of its own, and its id.
fn thread_title(profile: &Profile, step: &Step) -> String {
    let process = profile.processes.iter().find(|of| of.pid == step.pid);
    let thread = process.and_then(|of| of.threads.iter().find(|of| of.tid == step.tid));
    match thread {
        Some(thread) => format!("{} {}", thread.name, step.tid),
        None => step.tid.to_string(),
    }
}

fn findings(text: &mut String, profile: &Profile) {
    if profile.findings.is_empty() {
        return;
    }
    let _ = writeln!(text, "What is worth acting on");
    for (number, finding) in profile.findings.iter().enumerate() {
        let _ = writeln!(
            text,
            "  {}. {}  {}",
            number + 1,
            ms(finding.cost_ns),
            finding.title
        );
        for line in &finding.evidence {
            let _ = writeln!(text, "       {line}");
        }
        let _ = writeln!(text, "     {}", finding.advice);
    }
    text.push('\n');
}

/// What an image skips, which takes it on from the point that it was captured at.
fn savings(text: &mut String, profile: &Profile) {
    if profile.point == CapturePoint::Checkpoint {
        return;
    }
    let points = profile.milestones.iter().filter_map(|milestone| {
        let point = match milestone.kind {
            MilestoneKind::Listen => CapturePoint::Listen,
            MilestoneKind::Ready => CapturePoint::Ready,
            MilestoneKind::Response => CapturePoint::Warm,
            MilestoneKind::Restored => return None,
        };
        Some(format!("{} with --at {point}", ms(milestone.at_ns)))
    });
    let points: Vec<_> = points.collect();
    if !points.is_empty() {
        let _ = writeln!(
            text,
            "What an image skips: {}; `warmimg bench` measures it.\n",
            points.join(", ")
        );
    }
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
