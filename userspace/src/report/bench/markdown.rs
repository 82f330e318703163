//! Results as tables in Markdown, for a pull request or the summary of a CI job.

use std::fmt::Write as _;

use super::figures::{self, HEADINGS};
use crate::bench::{Results, gate::Finding};

/// The whole text.
pub fn render(results: &Results, findings: &[Finding]) -> String {
    let mut text = format!("### Start-up of {}\n\n", code(&results.command.join(" ")));
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
        "{}; asked: {}; {}.\n\n{}\n",
        figures::method(results),
        code(&results.target),
        escape(&figures::client(results)),
        escape(&figures::machine(results))
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
    for sentence in figures::parts(results) {
        let _ = writeln!(text, "{}\n", escape(&sentence));
    }
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
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Text as it stands, between more backticks than it has in a row.
fn code(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    match text.contains('`') {
        true => format!("{fence} {text} {fence}"),
        false => format!("{fence}{text}{fence}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_not_taken_for_markup() {
        assert_eq!(
            escape("node __a__ | <b>\n"),
            "node \\_\\_a\\_\\_ \\| \\<b\\> "
        );
        assert_eq!(code("a|b"), "`a|b`");
        assert_eq!(code("echo `date`"), "`` echo `date` ``");
    }
}
