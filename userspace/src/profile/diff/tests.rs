//! What counts as a change.

use super::*;
use crate::report::profile::synthetic;

/// Runs whose milestones come after so many milliseconds, and which call read(2) so often.
fn runs(values: &[(u64, u64)]) -> Vec<Profile> {
    let run = |&(ready_ms, reads): &(u64, u64)| {
        let mut profile = synthetic::profile();
        profile.milestones[1].at_ns = ready_ms * 1_000_000;
        profile.calls[2].count = reads;
        profile
    };
    values.iter().map(run).collect()
}

fn changed(diff: &Diff, part: Part) -> Vec<&str> {
    let section = diff.sections.iter().find(|s| s.part == part).unwrap();
    let is_changed = |row: &&Row| row.figures.iter().any(|figure| figure.is_changed);
    let changed = section.rows.iter().filter(is_changed);
    changed.map(|row| &*row.name).collect()
}

fn is_unchanged(diff: &Diff) -> bool {
    let parts = diff.sections.iter().map(|section| section.part);
    let mut changed = parts.flat_map(|part| changed(diff, part));
    changed.next().is_none()
}

const READY: &str = "ready for connections, tcp:127.0.0.1:3000";
const BEFORE: [(u64, u64); 5] = [(95, 410), (97, 411), (96, 409), (99, 410), (94, 412)];

#[test]
fn what_differs_less_than_the_runs_do_has_not_changed() {
    let after = [(96, 411), (95, 410), (98, 410), (97, 409), (96, 412)];
    let diff = compare(&runs(&BEFORE), &runs(&after));
    assert!(is_unchanged(&diff));
    let milestones = &diff.sections[0];
    assert_eq!(
        (milestones.part, milestones.rows.len()),
        (Part::Milestones, 3)
    );
    let calls = diff
        .sections
        .iter()
        .find(|s| s.part == Part::Calls)
        .unwrap();
    assert_eq!((calls.rows.len(), calls.unchanged), (0, 3));
    // Of vfork, openat and read.
    assert_eq!(calls.unchanged_ns.before, 45.2e6);
    assert_eq!(diff.noise, Noise::Known { false_share: 0.05 });
}

#[test]
fn what_differs_more_has() {
    let after = [(60, 30), (62, 31), (61, 30), (59, 30), (63, 31)];
    let diff = compare(&runs(&BEFORE), &runs(&after));
    assert_eq!(changed(&diff, Part::Milestones), [READY]);
    assert_eq!(changed(&diff, Part::Calls), ["read"]);
    let row = &diff.sections[0].rows[1];
    let change = &row.figures[0];
    assert_eq!(change.quantity, Quantity::TimeNs);
    assert_eq!(change.difference(), -35e6);
    let after = change.after.unwrap();
    assert_eq!((after.low, after.high), (59e6, 63e6));
}

/// One run of five far away moves no median.
#[test]
fn an_outlier_changes_nothing() {
    let after = [(96, 410), (95, 410), (400, 9_000), (97, 410), (96, 410)];
    let diff = compare(&runs(&BEFORE), &runs(&after));
    assert!(is_unchanged(&diff));
}

#[test]
fn of_single_runs_each_difference_is_told_as_unknown() {
    let diff = compare(&runs(&BEFORE[..1]), &runs(&[(94, 410)]));
    assert_eq!(diff.noise, Noise::Unknown);
    assert_eq!(changed(&diff, Part::Milestones), [READY]);
    // Files and calls that take next to nothing are left out all the same.
    let mut after = runs(&[(95, 410)]);
    after[0].files[0].self_ns += 40_000;
    let diff = compare(&runs(&BEFORE[..1]), &after);
    assert!(is_unchanged(&diff));
}

#[test]
fn what_comes_and_goes_is_a_change() {
    let before = runs(&BEFORE);
    let mut after = runs(&BEFORE);
    for run in &mut after {
        run.connections.clear();
        run.milestones.remove(0);
        run.processes[0].name = "dash".into();
    }
    let diff = compare(&before, &after);
    assert_eq!(changed(&diff, Part::Connections), ["db.internal"]);
    assert_eq!(
        changed(&diff, Part::Milestones),
        ["listening, tcp:127.0.0.1:3000"]
    );
    assert_eq!(changed(&diff, Part::Processes), ["dash", "sh"]);
    let section = diff
        .sections
        .iter()
        .find(|s| s.part == Part::Connections)
        .unwrap();
    let change = section.rows[0].figures[0];
    assert!(change.before.is_some() && change.after.is_none());
    assert_eq!(change.difference(), -19.5e6);
}

#[test]
fn processes_are_told_apart_by_their_order() {
    let mut after = runs(&BEFORE);
    for run in &mut after {
        let mut worker = run.processes[1].clone();
        worker.pid = 400;
        run.processes.push(worker);
    }
    let diff = compare(&runs(&BEFORE), &after);
    assert_eq!(changed(&diff, Part::Processes), ["node, number 2"]);
}

#[test]
fn the_largest_change_comes_first() {
    let mut after = runs(&BEFORE);
    for run in &mut after {
        run.calls[0].total_ns += 1_000_000;
        run.calls[1].total_ns += 9_000_000;
        run.calls[2].total_ns -= 5_000_000;
    }
    let diff = compare(&runs(&BEFORE), &after);
    assert_eq!(changed(&diff, Part::Calls), ["openat", "read", "vfork"]);
}

#[test]
fn findings_are_matched_whatever_their_numbers() {
    let mut after = runs(&BEFORE);
    for run in &mut after {
        run.findings[0].title = "17 failed look-ups of files".into();
    }
    let diff = compare(&runs(&BEFORE), &after);
    assert!(diff.findings_gone.is_empty() && diff.findings_new.is_empty());
    after.iter_mut().for_each(|run| run.findings.clear());
    let diff = compare(&runs(&BEFORE), &after);
    assert_eq!(diff.findings_gone.len(), 1);
    let diff = compare(&after, &runs(&BEFORE));
    assert_eq!(diff.findings_new.len(), 1);
}

/// The number of ways in which three runs can stand among six is 20.
#[test]
fn few_runs_are_not_trusted() {
    let share = |before, after| match verdict::noise(Sides { before, after }) {
        Noise::Unknown => None,
        Noise::Known { false_share } => Some((false_share * 1000.0).round()),
    };
    assert_eq!(share(1, 9), None);
    assert_eq!(share(2, 2), Some(333.0));
    assert_eq!(share(3, 3), Some(100.0));
    assert_eq!(share(5, 5), Some(50.0));
}

/// The tortoises and hares of the article on the test in Wikipedia: T H H H H H T T T T T H, U = 25
/// of 36 for one side.
#[test]
fn ranks_are_scored_as_published() {
    let samples = Samples {
        before: vec![1.0, 7.0, 8.0, 9.0, 10.0, 11.0],
        after: vec![2.0, 3.0, 4.0, 5.0, 6.0, 12.0],
        ..Default::default()
    };
    let deviation = (6.0 * 6.0 * 13.0 / 12.0_f64).sqrt();
    assert_eq!(samples.rank_score(), (11.0 - 18.0) / deviation);
}
