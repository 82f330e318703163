//! The section of BENCHMARKS.md on restores at scale.

#[path = "../scale/results.rs"]
#[expect(dead_code, reason = "shared with the program that writes them")]
mod results;

use std::{fmt::Write as _, path::Path};

use results::Measurement;

/// The parts, in the order of the document, each with what it is.
const PARTS: [(&str, &str); 11] = [
    (
        "heap",
        "The time from the start of `warmimg restore` to the first byte of the first response, for \
         a Python server with a heap of these sizes, in turn.",
    ),
    (
        "copies",
        "The Python server with 700 MB of heap: memory once each copy has answered one request, and \
         has written to none of it otherwise. PSS is the sum over all processes, those of warmimg \
         too; the growth is that of the whole machine.",
    ),
    (
        "crowd",
        "Fifty copies of FastAPI on uvicorn, all started at the same moment. With one port, the \
         kernel chooses who answers, so each has answered somewhat earlier than could be seen.",
    ),
    (
        "throughput",
        "`wrk --threads 1 --connections 16`, 5 s after 5 s to warm up, of a server that was started \
         cold and one that was restored, in turn. The CPU time is that of the server.",
    ),
    (
        "proxy",
        "`wrk --threads 1 --connections 32`, 5 s after 1 to warm up, through the proxy and through nginx's \
         `proxy_pass` (a worker for each processor, 64 kept connections, the same fields added), in \
         turn, to a site on the same machine. The CPU time is that of the proxy.",
    ),
    (
        "cold-cache",
        "First byte of a restore with the page cache of the whole machine dropped, and with what \
         two restores have left in it, in turn.",
    ),
    (
        "serve-wake",
        "Sites of `warmimg serve`, from before the connection to the first byte of the answer, and \
         `warmimg restore` of the same image, from the start of the command, in turn. One site sleeps; of \
         another an instance stands by.",
    ),
    (
        "serve-awake",
        "`wrk --threads 1 --connections 16`, 5 s after 3 s to warm up, of a site of `warmimg serve` and \
         of two cold starts without it, in turn. Each begins with a new process. How far the two cold \
         starts are apart is what cannot be told from chance.",
    ),
    (
        "serve-many",
        "Two gateways at the same time, one with a site, one with a thousand, all of the C server's \
         image, whose sites wake in turn. The sockets themselves are the kernel's memory and not in it.",
    ),
    (
        "serve-boundary",
        "Sites that fall asleep 3 ms after their last connection, and clients that wait until about that \
         moment, connect up to seven times one shortly after the other, and expect whole answers.",
    ),
    (
        "serve-crowd",
        "Fifty sites that sleep, all asked at the same moment, and fifty restores of the same image \
         (FastAPI on uvicorn), started at the same moment, in turn.",
    ),
];

/// The section; `date` writes a time in milliseconds since the Unix epoch. Empty if nothing is
/// stored.
pub fn section(root: &Path, date: fn(u64) -> String) -> String {
    let stored = results::read(&root.join(results::PATH));
    if stored.is_empty() {
        return String::new();
    }
    let mut text = "\n## Scale\n\nMedians with 95 % intervals.\n".to_owned();
    let targets = results::targets(&stored);
    if !targets.is_empty() {
        let _ = write!(text, "\n### Targets\n\n{targets}");
    }
    for (part, explanation) in PARTS {
        let of_part: Vec<&Measurement> = stored.iter().filter(|found| found.part == part).collect();
        if of_part.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n### {}\n\n{explanation}\n\n```", title(part));
        for measurement in &of_part {
            let Measurement {
                kernel, processors, ..
            } = measurement;
            let day = date(measurement.created_ms);
            let command = command(measurement);
            let _ = writeln!(
                text,
                "{command}   # {day}, Linux {kernel}, {processors} processors"
            );
        }
        let _ = writeln!(text, "```\n\n{}", results::tables(&of_part).trim_end());
    }
    text
}

fn title(part: &str) -> String {
    let (first, rest) = part.split_at(1);
    first.to_uppercase() + &rest.replace('-', " ")
}

/// The command that measures so.
fn command(measurement: &Measurement) -> String {
    let Measurement { part, runs, .. } = measurement;
    let mut words = format!("cargo xtask bench scale --part {part} --runs {runs}");
    for option in &measurement.restore_options {
        let _ = write!(words, " --restore-option {option}");
    }
    words
}
