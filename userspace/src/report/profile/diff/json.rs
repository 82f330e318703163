//! A comparison as JSON: a `profile_diff` record, a `profile_change` for each that changed and for
//! each milestone, a `profile_unchanged` for what did not change of each part, and a
//! `profile_finding` for each that is gone or new.

use serde_json::{Value, json};

use crate::profile::diff::Diff;

/// The records with their types.
pub fn records(diff: &Diff) -> Vec<(&'static str, Value)> {
    let mut head = json!({ "commands": diff.commands, "runs": diff.runs });
    head["noise"] = json!(diff.noise)["noise"].take();
    head["false_share"] = json!(diff.noise)["false_share"].take();
    let mut records = vec![("profile_diff", head)];
    for section in &diff.sections {
        let part = section.part;
        records.extend(section.rows.iter().map(|row| {
            let mut object = json!(row);
            object["part"] = json!(part);
            ("profile_change", object)
        }));
        let unchanged = json!({
            "part": part,
            "count": section.unchanged,
            "time_ns": section.unchanged_ns,
        });
        records.push(("profile_unchanged", unchanged));
    }
    for (change, findings) in [("gone", &diff.findings_gone), ("new", &diff.findings_new)] {
        records.extend(findings.iter().map(|finding| {
            let mut object = json!(finding);
            object["change"] = change.into();
            ("profile_finding", object)
        }));
    }
    records
}
