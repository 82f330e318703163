//! What a person and a script are told.

use super::*;
use crate::{
    profile::{Class, Profile, diff::compare},
    report::profile::synthetic,
};

fn shown(diff: &Diff) -> String {
    let mut out = Lines::default();
    table::add(&mut out, diff);
    out.0
}

/// A run whose times are so many per cent of those of the synthetic profile.
fn run(per_cent: u64) -> Profile {
    let mut profile = synthetic::profile();
    let scale = |ns: &mut u64| *ns = *ns / 100 * per_cent;
    scale(&mut profile.length_ns);
    profile
        .milestones
        .iter_mut()
        .for_each(|m| scale(&mut m.at_ns));
    for step in &mut profile.critical_path {
        scale(&mut step.start_ns);
        scale(&mut step.end_ns);
    }
    profile
        .calls
        .iter_mut()
        .for_each(|calls| scale(&mut calls.total_ns));
    profile
}

/// As [`run`], after the file is read no more and the database is asked by another name.
fn changed_run(per_cent: u64) -> Profile {
    let mut profile = run(per_cent);
    profile.files.retain(|file| file.path != "/srv/app.js");
    profile.files[0].pages_missed = 12;
    profile.files[0].disk_ns = 900_000;
    profile.calls[2].count = 30;
    profile.calls[2].total_ns = 4_000_000;
    profile.connections[0].name = Some("cache.internal".into());
    profile.findings.clear();
    let server = &mut profile.processes[1];
    server.threads[0].times.0[Class::Disk as usize] = 1_000_000;
    server.end_ns = Some(70_000_000);
    profile
}

fn several(run: fn(u64) -> Profile, per_cents: [u64; 5]) -> Vec<Profile> {
    per_cents.into_iter().map(run).collect()
}

#[test]
fn changes_are_shown_with_their_intervals() {
    let before = several(run, [98, 99, 100, 101, 102]);
    let after = several(changed_run, [98, 99, 100, 101, 102]);
    insta::assert_snapshot!(shown(&compare(&before, &after)));
}

#[test]
fn single_runs_are_shown_with_a_doubt() {
    insta::assert_snapshot!(shown(&compare(&[run(100)], &[changed_run(80)])));
}

#[test]
fn few_runs_are_shown_with_a_warning() {
    let runs = [run(98), run(100), run(102)];
    let shown = shown(&compare(&runs, &runs));
    assert!(shown.contains("so few runs let 10 %"), "{shown}");
}

#[test]
fn scripts_get_all_of_it() {
    let before = several(run, [98, 99, 100, 101, 102]);
    let after = several(changed_run, [98, 99, 100, 101, 102]);
    let records = json::records(&compare(&before, &after));
    let lines: Vec<String> = records
        .into_iter()
        .map(|(kind, object)| format!("{kind} {object}"))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}
