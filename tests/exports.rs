//! A profile as others read it: Perfetto's own description of its format decides whether a trace is
//! one.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use warmimg::report::profile::{json, perfetto};

use crate::support::{prepared, source};

/// What Perfetto's description of the format makes of a trace.
pub fn check_trace(trace: &Path) -> Value {
    let output = Command::new("python3")
        .arg(source("profiles/check_perfetto.py"))
        .arg(trace)
        .env("PYTHONPATH", prepared("perfetto"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What it makes of the trace of a stored profile.
fn checked(profile: &str) -> Value {
    let file = fs::File::open(source(profile)).unwrap();
    let profile = json::read(std::io::BufReader::new(file)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.pftrace");
    perfetto::write(&profile, fs::File::create(&trace).unwrap()).unwrap();
    check_trace(&trace)
}

#[test]
fn perfetto_reads_what_the_profile_says() {
    let found = checked("profiles/synthetic.jsonl");
    assert_eq!(
        found["tracks"],
        json!([
            "connections",
            "critical path",
            "milestones",
            "process 300 sh",
            "process 301 node",
            "processes",
            "thread 300 sh",
            "thread 301 node",
            "thread 302 worker;1",
            "threads running",
            "threads waiting for storage",
            "threads without a processor",
        ])
    );
    // BOOTTIME is 0 when the command is executed; REALTIME is in nanoseconds.
    assert_eq!(
        found["clocks"],
        json!({ "6": 0, "1": 1_790_000_000_123_000_000_u64 })
    );
    let rows = &found["rows"];
    assert_eq!(
        rows["milestones"][1],
        json!([
            "ready for connections",
            { "process": "node (301)", "listener": "tcp:127.0.0.1:3000" },
            95_000_000,
        ])
    );
    // A system call with its three parts below it; a wait with its stack.
    assert_eq!(
        rows["thread 301 node"],
        json!([
            [0, "no processor free", { "woken by": "sh (300)" }, 1_000_000, 2_000_000],
            [0, "own code", {}, 2_000_000, 10_000_000],
            [1, "files in memory", {}, 10_000_000, 11_000_000],
            [1, "storage", {}, 11_000_000, 40_000_000],
            [1, "files in memory", {}, 40_000_000, 41_000_000],
            [0, "read /srv/app.js", {}, 10_000_000, 41_000_000],
            [0, "own code", {}, 41_000_000, 60_000_000],
            [0, "read db.internal:5432", { "stack": "main;ep_poll" }, 60_000_000, 80_000_000],
            [0, "own code", {}, 80_000_000, 100_000_000],
        ])
    );
    assert_eq!(
        found["slices"],
        json!({
            "connections": 3,
            "critical path": 4,
            "thread 300 sh": 2,
            "thread 301 node": 9,
            "thread 302 worker;1": 2,
        })
    );
    assert_eq!(
        found["counters"]["threads running"],
        json!([
            [0, 1],
            [11_000_000, 0],
            [40_000_000, 1],
            [50_000_000, 2],
            [60_000_000, 1],
            [70_000_000, 0],
            [80_000_000, 1],
            [100_000_000, 0],
        ])
    );
    assert_eq!(
        found["samples"],
        json!({
            "301 301 main;compile(a; b)": 2,
            "301 301 main;compile(a; b);0x7f00001234": 1,
            "301 302 main": 1,
        })
    );
}
