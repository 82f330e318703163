//! Results as a page that stands by itself: chart, tables, every run; light and dark; no network.

use std::fmt::Write as _;

use super::{
    figures::{self, HEADINGS},
    svg::{self, escape},
};
use crate::bench::{
    Results,
    gate::Finding,
    results::{Subject, Timing},
};

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1f2328;--note:#59636e;--line:#d1d9e0;--back:#fff;--head:#f6f8fa;--bad:#d1242f;--good:#1a7f37}\
@media(prefers-color-scheme:dark){:root{--text:#e6edf3;--note:#9198a1;--line:#3d444d;--back:#0d1117;--head:#151b23;--bad:#f85149;--good:#3fb950}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2rem}\
code{font-family:ui-monospace,monospace;overflow-wrap:anywhere}\
.note{color:var(--note)}.conclusion{font-size:1.15rem;font-weight:600}\
.bad{color:var(--bad)}.good{color:var(--good)}\
.scroll{overflow-x:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{border-bottom:1px solid var(--line);padding:.3rem .7rem;text-align:right;white-space:nowrap}\
th{background:var(--head);font-weight:600}th:first-child,td:first-child,.times :is(th,td):nth-child(2){text-align:left}\
svg{max-width:100%;height:auto}";

/// The whole page.
pub fn render(results: &Results, findings: &[Finding]) -> String {
    let command = escape(&results.command.join(" "));
    let mut body = String::new();
    let _ = writeln!(body, "<h1>Start-up of <code>{command}</code></h1>");
    let _ = writeln!(
        body,
        "<p class=\"note\">{}; asked: <code>{}</code></p>",
        escape(&figures::method(results)),
        escape(&results.target)
    );
    for conclusion in figures::conclusions(results) {
        let _ = writeln!(body, "<p class=\"conclusion\">{}</p>", escape(&conclusion));
    }
    add_findings(&mut body, findings);
    let _ = writeln!(body, "{}", svg::render(results));
    add_timings(&mut body, results);
    add_usage(&mut body, results);
    add_runs(&mut body, results);
    let doubts = figures::doubts(results);
    if !doubts.is_empty() {
        body += "<h2>To be kept in mind</h2>\n<ul>\n";
        for doubt in doubts {
            let _ = writeln!(body, "<li>{}</li>", escape(&doubt));
        }
        body += "</ul>\n";
    }
    let _ = writeln!(
        body,
        "<h2>Where and how</h2>\n<p>{}; {}.</p>",
        escape(&figures::machine(results)),
        escape(&figures::client(results))
    );
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>Start-up of {command}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\
         </body>\n</html>\n"
    )
}

fn add_findings(body: &mut String, findings: &[Finding]) {
    if findings.is_empty() {
        return;
    }
    *body += "<ul>\n";
    for finding in findings {
        let (class, mark) = match finding.verdict.is_failure() {
            true => ("bad", "✗"),
            false => ("good", "✓"),
        };
        let _ = writeln!(
            body,
            "<li class=\"{class}\">{mark} {}</li>",
            escape(&finding.to_string())
        );
    }
    *body += "</ul>\n";
}

fn row(body: &mut String, cell: &str, cells: impl IntoIterator<Item = String>) {
    *body += "<tr>";
    for text in cells {
        let _ = write!(body, "<{cell}>{}</{cell}>", escape(&text));
    }
    *body += "</tr>\n";
}

fn add_timings(body: &mut String, results: &Results) {
    *body += "<h2>Times</h2>\n<div class=\"scroll\"><table class=\"times\">\n";
    let headings = ["", "subject"].into_iter().chain(HEADINGS);
    row(body, "th", headings.map(str::to_owned));
    for section in figures::timings(results) {
        for (number, timing) in section.rows.into_iter().enumerate() {
            let label = if number == 0 {
                section.label.as_str()
            } else {
                ""
            };
            let speed_up = timing.speed_up.unwrap_or_default();
            row(
                body,
                "td",
                [
                    label.to_owned(),
                    timing.subject,
                    timing.median,
                    timing.interval,
                    timing.min,
                    timing.max,
                    speed_up,
                ],
            );
        }
    }
    *body += "</table></div>\n";
    for sentence in figures::parts(results) {
        let _ = writeln!(body, "<p class=\"note\">{}</p>", escape(&sentence));
    }
}

fn names(results: &Results) -> impl Iterator<Item = String> {
    results
        .subjects
        .iter()
        .map(|subject| subject.kind.to_string())
}

fn add_usage(body: &mut String, results: &Results) {
    *body += "<h2>Used until the first response</h2>\n<div class=\"scroll\"><table>\n";
    row(
        body,
        "th",
        std::iter::once(String::new()).chain(names(results)),
    );
    for usage in figures::usage(results) {
        let label = usage.label.to_owned();
        row(body, "td", std::iter::once(label).chain(usage.values));
    }
    *body += "</table></div>\n";
}

fn add_runs(body: &mut String, results: &Results) {
    *body += "<details><summary>First response of every run</summary>\n\
              <div class=\"scroll\"><table>\n";
    row(
        body,
        "th",
        std::iter::once("run".to_owned()).chain(names(results)),
    );
    let times = |subject: &Subject| subject.times(Timing::FirstResponse);
    let columns: Vec<Vec<f64>> = results.subjects.iter().map(times).collect();
    for run in 0..results.settings.runs {
        let cells = columns.iter().map(|times| {
            times
                .get(run)
                .map_or_else(String::new, |time| figures::ms(*time))
        });
        row(
            body,
            "td",
            std::iter::once((run + 1).to_string()).chain(cells),
        );
    }
    *body += "</table></div></details>\n";
}
