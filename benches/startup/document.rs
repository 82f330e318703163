//! What a person reads: made from the stored results.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use serde_json::Value;
use warmimg::{
    bench::{
        Results,
        results::{Subject, SubjectKind, Timing},
    },
    report::{
        factor, markdown,
        svg::{self, Bar, Group, Scale},
    },
    watch::CapturePoint,
};

use super::{Entry, scale};

/// Stored results of a server of the suite.
struct Stored<'a> {
    entry: &'a Entry,
    version: String,
    results: Results,
}

/// Adds the version of the server to its results.
pub fn with_version(text: &str, version: &str) -> String {
    let mut object: Value = serde_json::from_str(text).unwrap();
    object["server_version"] = version.into();
    format!("{object:#}\n")
}

/// Writes BENCHMARKS.md, the chart, and the table of README.md.
pub fn write(root: &Path, folder: &Path, suite: &[Entry]) {
    let stored: Vec<Stored> = suite
        .iter()
        .filter_map(|entry| read(folder, entry))
        .collect();
    fs::write(folder.join("startup.svg"), chart(&stored)).unwrap();
    let scale = scale::section(root, date);
    fs::write(root.join("BENCHMARKS.md"), benchmarks(&stored, &scale)).unwrap();
    let path = root.join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    fs::write(path, with_table(&readme, &stored)).unwrap();
    println!("Wrote BENCHMARKS.md, README.md and benches/results/startup.svg");
}

fn read<'a>(folder: &Path, entry: &'a Entry) -> Option<Stored<'a>> {
    let path = folder.join(format!("{}.json", entry.name));
    let text = fs::read_to_string(&path).ok()?;
    let object: Value = serde_json::from_str(&text).unwrap();
    Some(Stored {
        entry,
        version: object["server_version"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        results: Results::read(&path).unwrap(),
    })
}

/// The restores by warmimg, each with its point.
fn restores(results: &Results) -> impl Iterator<Item = (CapturePoint, &Subject)> {
    results
        .subjects
        .iter()
        .filter_map(|subject| match subject.kind {
            SubjectKind::Restored { point } => Some((point, subject)),
            _ => None,
        })
}

/// The fastest of them.
fn best(results: &Results) -> (CapturePoint, &Subject) {
    let time = |subject: &Subject| subject.median(Timing::FirstResponse).value;
    restores(results)
        .min_by(|(_, a), (_, b)| time(a).total_cmp(&time(b)))
        .unwrap()
}

fn ms(subject: &Subject) -> String {
    format!("{:.0} ms", subject.median(Timing::FirstResponse).value)
}

fn chart(stored: &[Stored]) -> String {
    let bar = |results: &Results, subject: &Subject, label: &str, class: &'static str| {
        let median = subject.median(Timing::FirstResponse);
        let ratio = results.speed_up(subject, Timing::FirstResponse);
        let ratio = ratio.map(|ratio| format!(" · {}", factor(ratio.value)));
        Bar {
            label: label.to_owned(),
            class,
            shade: 0,
            value: median.value,
            low: median.low,
            high: median.high,
            text: ms(subject) + &ratio.unwrap_or_default(),
        }
    };
    let group = |Stored { entry, results, .. }: &Stored| Group {
        label: entry.title.to_owned(),
        bars: vec![
            bar(results, results.cold().unwrap(), "cold start", "cold"),
            bar(results, best(results).1, "restored by warmimg", "restored"),
        ],
    };
    let groups: Vec<Group> = stored.iter().map(group).collect();
    svg::chart(
        "From the start of the process to the first response",
        "medians with 95 % intervals",
        &groups,
        Scale::PerGroup,
    )
}

fn table(stored: &[Stored]) -> String {
    let mut text =
        "| server | cold start | restored | at | |\n|---|---:|---:|---|---|\n".to_owned();
    for Stored { entry, results, .. } in stored {
        let (point, subject) = best(results);
        let ratio = results.speed_up(subject, Timing::FirstResponse).unwrap();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {point} | {} ({} … {}) |",
            entry.title,
            ms(results.cold().unwrap()),
            ms(subject),
            factor(ratio.value),
            factor(ratio.low),
            factor(ratio.high)
        );
    }
    text
}

fn with_table(readme: &str, stored: &[Stored]) -> String {
    const BEGIN: &str = "<!-- benchmarks -->\n";
    const END: &str = "<!-- end of benchmarks -->";
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    format!("{before}{BEGIN}{}{END}{after}", table(stored))
}

fn benchmarks(stored: &[Stored], scale: &str) -> String {
    let mut text = "# Benchmarks\n\n\
        Written by `cargo xtask bench` from the files in `benches/results/`, which hold every \
        sample.\n\n![](benches/results/startup.svg)\n\n"
        .to_owned();
    text += "Each bar is the time from the start of the process until the whole of its first \
        response, seen by a client outside that connects in a loop. Cold starts and restores take \
        turns, so that a change of the machine's speed meets both; the ratio is that of the \
        medians, its interval a bootstrap over the rounds. The page cache is warm. The columns from \
        `listen` to `warm` are the capture points; the fastest is in bold, and what stands behind \
        is of that one. `criu restore` is the same image restored without warmimg, in fresh \
        namespaces made by unshare(1).\n\n";
    text += &summary(stored);
    text += "\nThe machine is virtual and shared: compare ratios, not milliseconds.\n\n\
        ## How to run it again\n\n```\n\
        cargo xtask bench                    # all, some minutes\n\
        cargo xtask bench tomcat --runs 30   # one\n\
        cargo xtask bench --document         # only write this page anew\n```\n\n\
        Each is a `warmimg bench` that can be run by hand. `WORK` is a folder that the suite makes \
        with the server's configuration; other paths are relative to the checkout.\n";
    text += scale;
    for Stored {
        entry,
        version,
        results,
    } in stored
    {
        let _ = writeln!(text, "\n## {}\n", entry.title);
        let _ = writeln!(
            text,
            "{version}; measured on {} by\n\n```\n{}\n```\n",
            date(results.created_ms),
            invocation(results)
        );
        text += markdown::render(results, &[]).trim_end();
        text.push('\n');
    }
    text
}

fn summary(stored: &[Stored]) -> String {
    let points = [
        CapturePoint::Listen,
        CapturePoint::Fork,
        CapturePoint::Ready,
        CapturePoint::Warm,
    ];
    let mut text = "| server | cold |".to_owned();
    for point in points {
        let _ = write!(text, " {point} |");
    }
    text += " `criu restore` | image | CPU time, cold | restored |\n|---|---:|";
    text += &"---:|".repeat(points.len() + 4);
    text.push('\n');
    for Stored { entry, results, .. } in stored {
        let (fastest, subject) = best(results);
        let cold = results.cold().unwrap();
        let mut cells = vec![entry.title.to_owned(), ms(cold)];
        for point in points {
            let found = restores(results).find(|(other, _)| *other == point);
            cells.push(found.map_or_else(String::new, |(_, subject)| {
                let ratio = results.speed_up(subject, Timing::FirstResponse).unwrap();
                let text = format!("{} ({})", ms(subject), factor(ratio.value));
                if point == fastest {
                    format!("**{text}**")
                } else {
                    text
                }
            }));
        }
        let is_plain = |subject: &&Subject| matches!(subject.kind, SubjectKind::Criu { point } if point == fastest);
        let plain = results.subjects.iter().find(is_plain);
        let cpu =
            |subject: &Subject| format!("{:.0} ms", subject.median_usage(|used| used.cpu_ns) / 1e6);
        let bytes = subject.image.as_ref().map_or(0, |image| image.bytes);
        cells.extend([
            plain.map_or_else(|| "-".to_owned(), ms),
            format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
            cpu(cold),
            cpu(subject),
        ]);
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// The command that measures so.
fn invocation(results: &Results) -> String {
    let is_plain = |subject: &Subject| matches!(subject.kind, SubjectKind::Criu { .. });
    let points: Vec<String> = restores(results)
        .map(|(point, _)| point.to_string())
        .collect();
    let mut words = format!(
        "warmimg bench --runs {} --at {}",
        results.settings.runs,
        points.join(",")
    );
    if results.subjects.iter().any(is_plain) {
        words += " --baseline criu";
    }
    if results.target.starts_with("tcp:") {
        let _ = write!(words, " --url {} --send REQUEST", results.target);
    }
    format!("{words} -- {}", results.command.join(" "))
}

/// The day of a time in milliseconds since the Unix epoch, by date(1).
fn date(ms: u64) -> String {
    let time = format!("@{}", ms / 1000);
    let output = Command::new("date")
        .args(["-u", "-d", &time, "+%F"])
        .output();
    String::from_utf8(output.unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned()
}
