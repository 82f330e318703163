//! Restores at scale: `cargo xtask bench scale [--part NAME]… [--runs N] [--restore-option X]…`.
//!
//! Measures how restores do with large heaps, many copies, load, and a cold page cache, how the
//! proxy does against another, and what sites cost and how they wake (`--part serve`, which is all parts
//! whose names begin so). Each `--restore-option` is given to every `warmimg restore`, so that
//! ways to restore can be compared: what was measured with other options before is kept beside.
//! Results go to
//! `benches/results/scale.json`; `cargo xtask bench --document` writes BENCHMARKS.md from it.

#![expect(clippy::unwrap_used, reason = "it fails by panicking")]

mod ask;
mod cache;
mod copies;
mod crowd;
#[path = "../../tests/proxy/gateway.rs"]
#[expect(
    dead_code,
    reason = "shared with the integration tests, which use the rest"
)]
mod gateway;
mod heap;
mod memory;
mod proxy;
mod restores;
mod results;
mod serve;
#[path = "../../tests/support/mod.rs"]
#[expect(
    dead_code,
    reason = "shared with the integration tests, which use the rest"
)]
mod support;
mod throughput;
mod wrk;

use std::{path::Path, process::Command, time::Duration};

use results::{Measured, Measurement};
use support::{Workspace, ask::Client, fixture, free_port, server::Server};

/// How long anything may take that is waited for.
const LIMIT: Duration = Duration::from_secs(180);

/// A part, how many runs it has unless told, and what measures it.
type Part = (&'static str, usize, fn(&Bench, usize) -> Measured);

/// A name, and what makes the server.
type Subject = (&'static str, fn(&Workspace) -> Server);

const PARTS: [Part; 11] = [
    ("heap", 15, heap::measure),
    ("copies", 3, copies::measure),
    ("crowd", 5, crowd::measure),
    ("throughput", 5, throughput::measure),
    ("proxy", 7, proxy::measure),
    ("cold-cache", 15, cache::measure),
    ("serve-wake", 21, serve::wake::measure),
    ("serve-awake", 7, serve::awake::measure),
    ("serve-many", 3, serve::many::measure),
    ("serve-boundary", 10, serve::boundary::measure),
    ("serve-crowd", 7, serve::crowd::measure),
];

/// What all parts share.
struct Bench {
    runtime: tokio::runtime::Runtime,
    /// Given to every `warmimg restore`.
    restore_options: Vec<String>,
}

impl Bench {
    /// Captures a server that has answered.
    fn capture(&self, workspace: &Workspace, server: &Server, name: &str) {
        let options = ["--name", name, "--at", "warm", "--warmup", "/"];
        let output = support::finish(&mut server.capture(workspace, &options));
        assert!(output.status.success(), "{}", support::describe(&output));
    }

    /// The command that restores an image.
    fn restore(&self, workspace: &Workspace, image: &str, options: &[&str]) -> Command {
        let options = options.iter().copied();
        let chosen = self.restore_options.iter().map(String::as_str);
        workspace.warmimg(["restore", image].into_iter().chain(options).chain(chosen))
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut runs, mut parts, mut restore_options) = (None, vec![], vec![]);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("an option has a value");
        match argument.as_str() {
            "--runs" => runs = Some(value().parse().expect("--runs takes a number")),
            "--part" => parts.push(value()),
            "--restore-option" => restore_options.push(value()),
            // Cargo's.
            "--bench" => {}
            other => panic!("{other}: there are --part, --runs and --restore-option"),
        }
    }
    let is_meant = |name: &str, wanted: &String| {
        let rest = name.strip_prefix(wanted);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let is_known = |wanted: &String| PARTS.iter().any(|(name, ..)| is_meant(name, wanted));
    let names = PARTS.map(|(name, ..)| name).join(", ");
    assert!(parts.iter().all(is_known), "the parts are {names}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let bench = Bench {
        runtime: runtime.unwrap(),
        restore_options,
    };
    restores::heed_signals(&bench);
    ask::run_first();
    let userspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = userspace.parent().unwrap().join(results::PATH);
    for (name, default_runs, measure) in PARTS {
        if !parts.is_empty() && !parts.iter().any(|part| is_meant(name, part)) {
            continue;
        }
        let runs = runs.unwrap_or(default_runs);
        eprintln!("{name}: {runs} runs");
        let measured = measure(&bench, runs);
        let measurement = Measurement::new(name, &bench.restore_options, runs, measured);
        println!("\n{}", results::tables(&[&measurement]));
        // Stored at once: the next part may fail.
        results::store(&path, measurement);
    }
    println!("{}", results::targets(&results::read(&path)));
    println!("Stored in {}", results::PATH);
}

/// The Python server with a heap of a size.
fn python_with_heap(megabytes: u32) -> Server {
    let port = free_port();
    let script = fixture("heap/server.py");
    let (port_text, size) = (port.to_string(), megabytes.to_string());
    Server::new(
        Client::Http(port),
        ["/usr/bin/python3", &script, &port_text, &size],
    )
}

/// The port of a server that has one.
fn port(server: &Server) -> u16 {
    match server.client {
        Client::Http(port) => port,
        Client::HttpOverUnix(_) | Client::FastCgi(..) => unreachable!("asked by HTTP over TCP"),
    }
}
