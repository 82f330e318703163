//! Results as tables in Markdown, for a pull request or the summary of a CI job.

use std::fmt::Write as _;

use super::figures::{self, HEADINGS};
use crate::bench::{Results, gate::Finding};

/// The whole text.
pub fn render(results: &Results, findings: &[Finding]) -> String {
    let mut text = format!(
        "### Start-up of `{}`\n\n",
        escape(&results.command.join(" "))
    );
    for conclusion in figures::conclusions(results) {
        let _ = writeln!(text, "**{}**\n", escape(&conclusion));
    }
    for finding in findings {
        let mark = if finding.verdict.is_failure() {
            "❌"
        } else {
            "✅"
        };
        let _ = writeln!(text, "- {mark} {}", escape(&finding.to_string()));
    }
    if !findings.is_empty() {
        text.push('\n');
    }
    add_timings(&mut text, results);
    add_usage(&mut text, results);
    for doubt in figures::doubts(results) {
        let _ = writeln!(text, "> ⚠️ {}\n", escape(&doubt));
    }
    let _ = writeln!(
        text,
        "{}; asked: `{}`; {}.\n\n{}\n",
        figures::method(results),
        results.target,
        figures::client(results),
        figures::machine(results)
    );
    text
}

fn add_timings(text: &mut String, results: &Results) {
    let _ = writeln!(text, "| | | {} |", HEADINGS.join(" | "));
    let _ = writeln!(text, "|---|---|---:|---:|---:|---:|---:|");
    for section in figures::timings(results) {
        for (number, row) in section.rows.into_iter().enumerate() {
            let label = if number == 0 {
                section.label.as_str()
            } else {
                ""
            };
            let cells = [
                label.to_owned(),
                escape(&row.subject),
                row.median,
                row.interval,
                row.min,
                row.max,
                row.speed_up.unwrap_or_default(),
            ];
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
    }
    text.push('\n');
}

fn add_usage(text: &mut String, results: &Results) {
    let names = results
        .subjects
        .iter()
        .map(|subject| subject.kind.to_string());
    let names: Vec<String> = names.map(|name| escape(&name)).collect();
    let _ = writeln!(text, "| until the first response | {} |", names.join(" | "));
    let _ = writeln!(text, "|---|{}", "---:|".repeat(names.len()));
    for row in figures::usage(results) {
        let _ = writeln!(text, "| {} | {} |", row.label, row.values.join(" | "));
    }
    text.push('\n');
}

/// Text that must not be taken for markup.
fn escape(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('\n', " ")
}
