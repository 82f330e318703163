//! Load by wrk(1), which asks again on each connection as soon as it has been answered.

use std::process::Command;

use crate::support;

/// How a server has answered.
pub struct Answered {
    pub requests: f64,
    pub per_second: f64,
    pub p99_ms: f64,
}

/// Asks for some seconds; panics if an answer is not good.
pub fn load(port: u16, connections: u32, seconds: u32) -> Answered {
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "1", "--latency"]);
    wrk.arg(format!("--connections={connections}"));
    wrk.arg(format!("--duration={seconds}s"));
    wrk.arg(format!("http://127.0.0.1:{port}/"));
    let output = support::finish(&mut wrk);
    assert!(output.status.success(), "{}", support::describe(&output));
    read(&String::from_utf8(output.stdout).unwrap())
}

fn read(report: &str) -> Answered {
    let is_bad = |line: &&str| line.contains("Non-2xx") || line.contains("Socket errors");
    assert_eq!(report.lines().find(is_bad), None);
    let mut lines = report.lines().map(str::trim);
    let mut behind = |start: &str| {
        lines
            .find_map(|line| line.strip_prefix(start))
            .unwrap()
            .trim()
    };
    // In the order of the report.
    let p99_ms = milliseconds(behind("99%"));
    let requests = report
        .lines()
        .find_map(|line| line.split_once(" requests in "));
    Answered {
        requests: requests.unwrap().0.trim().parse().unwrap(),
        per_second: behind("Requests/sec:").parse().unwrap(),
        p99_ms,
    }
}

/// A time as wrk writes it.
fn milliseconds(text: &str) -> f64 {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let number: f64 = digits.parse().unwrap();
    match &text[digits.len()..] {
        "us" => number / 1e3,
        "ms" => number,
        "s" => number * 1e3,
        unit => panic!("a time in {unit}"),
    }
}
