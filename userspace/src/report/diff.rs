//! What differs between two images.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Lines, Report, columns, images::described, plural, units::Bytes};
use crate::{
    diff::{Change, Diff, FileState, PageCounts},
    error::Error,
    store::Image,
    tree::{NsPid, ProcessInfo},
};

/// How many mappings are shown, those with most differing pages first.
const MOST_MAPPINGS: usize = 10;

/// How many files are shown of each kind.
const MOST_FILES: usize = 10;

impl Report {
    pub fn differing(&self, before: &Image, after: &Image, diff: &Diff) -> Result<(), Error> {
        if self.json {
            let image = |image: &Image| {
                json!({
                    "digest": image.digest.as_str(),
                    "names": image.names,
                    "image_bytes": image.manifest.image_bytes(),
                })
            };
            let mut object = json!(diff);
            object["before"] = image(before);
            object["after"] = image(after);
            object["page_bytes"] = rustix::param::page_size().into();
            return self.line("diff", object);
        }
        let mut out = Lines::default();
        for (mark, image) in [("-", before), ("+", after)] {
            out.add(&format!(
                "{mark} {}: {}",
                described(&image.digest, &image.names),
                Bytes(image.manifest.image_bytes())
            ));
        }
        section(
            &mut out,
            "Settings",
            &diff.settings,
            usize::MAX,
            Clone::clone,
        );
        // Values may be secrets.
        section(
            &mut out,
            "Environment",
            &diff.environment,
            usize::MAX,
            |_| String::new(),
        );
        section(&mut out, "Processes", &diff.processes, usize::MAX, process);
        section(
            &mut out,
            "Files it depends on",
            &diff.dependencies,
            MOST_FILES,
            file,
        );
        section(
            &mut out,
            "Files of the image",
            &diff.files,
            MOST_FILES,
            file,
        );
        memory(&mut out, diff);
        out.print()
    }
}

/// One line for each change: what only one image has, or both as they are in each.
fn section<T>(
    out: &mut Lines,
    title: &str,
    changes: &[Change<T>],
    most: usize,
    text: impl Fn(&T) -> String,
) {
    if changes.is_empty() {
        return;
    }
    out.add("");
    out.add(title);
    for change in changes.iter().take(most) {
        let what = &change.what;
        match (&change.before, &change.after) {
            (Some(before), Some(after)) => match (text(before), text(after)) {
                (before, after) if before == after => out.add(&format!("  ~ {what}  {after}")),
                (before, after) => {
                    out.add(&format!("  - {what}  {before}"));
                    out.add(&format!("  + {what}  {after}"));
                }
            },
            (Some(before), None) => out.add(&format!("  - {what}  {}", text(before))),
            (None, Some(after)) => out.add(&format!("  + {what}  {}", text(after))),
            (None, None) => {}
        }
    }
    if changes.len() > most {
        out.add(&format!(
            "    and {} more (--json has all)",
            changes.len() - most
        ));
    }
}

fn process(process: &ProcessInfo) -> String {
    format!(
        "{} ({}, uid {}, {})",
        process.name,
        process.executable.display(),
        process.uid,
        plural(process.threads, "thread")
    )
}

fn file(file: &FileState) -> String {
    Bytes(file.bytes).to_string()
}

fn memory(out: &mut Lines, diff: &Diff) {
    out.add("");
    out.add("Pages of memory: those at the same place in both (same, different), those of one only, and");
    out.add("those that are not the same, but whose content is elsewhere in the other (moved)");
    out.add("");
    let titles = [
        "",
        "SAME",
        "DIFFERENT",
        "ONLY -",
        "ONLY +",
        "MOVED -",
        "MOVED +",
    ];
    let mut processes: BTreeMap<NsPid, PageCounts> = BTreeMap::new();
    for mapping in &diff.memory {
        *processes.entry(mapping.pid).or_default() += mapping.pages;
    }
    let mut rows = vec![titles.map(str::to_owned), row("total", &diff.total)];
    rows.extend(
        processes
            .iter()
            .map(|(pid, counts)| row(&format!("process {pid}"), counts)),
    );
    let mut mappings: Vec<_> = diff.memory.iter().filter(|m| !m.pages.is_same()).collect();
    let weight = |counts: &PageCounts| counts.different + counts.only_before + counts.only_after;
    mappings.sort_by_key(|mapping| std::cmp::Reverse(weight(&mapping.pages)));
    for mapping in mappings.iter().take(MOST_MAPPINGS) {
        let (start, _) = mapping.before.or(mapping.after).unwrap_or_default();
        let name = format!("{} {start:x} {}", mapping.pid, mapping.what);
        rows.push(row(&name, &mapping.pages));
    }
    columns(rows)
        .lines()
        .for_each(|line| out.add(&format!("  {line}")));
    if mappings.len() > MOST_MAPPINGS {
        let more = mappings.len() - MOST_MAPPINGS;
        out.add(&format!(
            "  and {} more (--json has all)",
            plural(more as u64, "mapping")
        ));
    }
}

fn row(name: &str, counts: &PageCounts) -> [String; 7] {
    let numbers = [
        counts.same,
        counts.different,
        counts.only_before,
        counts.only_after,
        counts.moved_before,
        counts.moved_after,
    ];
    let [a, b, c, d, e, f] = numbers.map(|number| number.to_string());
    [name.to_owned(), a, b, c, d, e, f]
}
