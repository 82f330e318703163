//! Requests per second of a restored server, against one that was started cold, by wrk(1).

use std::process::Command;

use procfs::process::Process;
use warmimg::bench::statistics::Pairs;

use crate::{
    Bench, port,
    results::{Finding, Measured, Row},
    support::{self, Workspace, server::Server, servers},
};

/// A name, and what makes the server.
type Subject = (&'static str, fn(&Workspace) -> Server);

const SUBJECTS: [Subject; 3] = [
    ("Express", |_| servers::express()),
    ("FastAPI", |_| servers::fastapi_on_uvicorn()),
    ("Tomcat", servers::tomcat),
];

/// What was seen of a server, a sample for each round.
#[derive(Default)]
struct Seen {
    per_second: Vec<f64>,
    per_cpu_second: Vec<f64>,
}

impl Seen {
    fn row(self, name: String) -> Row {
        Row::new(name).with("requests", "/s", self.per_second).with(
            "requests per CPU second",
            "/s",
            self.per_cpu_second,
        )
    }
}

pub fn measure(bench: &Bench, runs: usize) -> Measured {
    let (mut rows, mut findings) = (vec![], vec![]);
    for (name, make) in SUBJECTS {
        let workspace = Workspace::alone();
        let server = make(&workspace);
        bench.capture(&workspace, &server, "server");
        let (mut cold, mut restored) = (Seen::default(), Seen::default());
        for round in 0..runs {
            // Each is first in every second round.
            if round % 2 == 0 {
                observe_cold(&mut cold, &workspace, &server);
            }
            observe_restored(&mut restored, bench, &workspace, &server);
            if round % 2 == 1 {
                observe_cold(&mut cold, &workspace, &server);
            }
        }
        findings.push(Finding::new(
            format!("{name}, requests of the restored server, of those of the cold one"),
            "x",
            Pairs::new(&restored.per_second, &cold.per_second).ratio(),
        ));
        findings.push(Finding::new(
            format!("{name}, the same per CPU second"),
            "x",
            Pairs::new(&restored.per_cpu_second, &cold.per_cpu_second).ratio(),
        ));
        rows.push(cold.row(format!("{name}, cold start")));
        rows.push(restored.row(format!("{name}, restored")));
    }
    Measured { rows, findings }
}

fn observe_cold(seen: &mut Seen, workspace: &Workspace, server: &Server) {
    // To a file, as the output of the restored one goes: some write a line for each request.
    let log = std::fs::File::create(workspace.path().join("output.log")).unwrap();
    let running = server.start_cold_writing(workspace, log);
    observe(seen, workspace, server);
    drop(running);
    server.wait_for_silence();
    workspace.assert_clean();
}

fn observe_restored(seen: &mut Seen, bench: &Bench, workspace: &Workspace, server: &Server) {
    let output = support::finish(&mut bench.restore(workspace, "server", &["-d"]));
    assert!(output.status.success(), "{}", support::describe(&output));
    observe(seen, workspace, server);
    bench.stop_all(workspace);
    server.wait_for_silence();
}

/// Asks a server for five seconds, after five to warm up.
fn observe(seen: &mut Seen, workspace: &Workspace, server: &Server) {
    server.client.ask_until_answered();
    load(server);
    let before = cpu_seconds(workspace);
    let text = load(server);
    let cpu = cpu_seconds(workspace) - before;
    let is_bad = |line: &&str| line.contains("Non-2xx") || line.contains("Socket errors");
    let bad: Vec<&str> = text.lines().filter(is_bad).collect();
    assert!(bad.is_empty(), "{bad:?}");
    let number = |word: Option<&str>| word.unwrap().trim().parse::<f64>().unwrap();
    let mut lines = text.lines();
    let requests = lines.find_map(|line| line.split_once(" requests in "));
    let requests = number(requests.map(|(requests, _)| requests));
    let rate = number(lines.find_map(|line| line.strip_prefix("Requests/sec:")));
    seen.per_second.push(rate);
    seen.per_cpu_second.push(requests / cpu);
}

/// Five seconds of requests; returns the report.
fn load(server: &Server) -> String {
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "1", "--connections", "16", "--duration", "5s"]);
    wrk.arg(format!("http://127.0.0.1:{}/", port(server)));
    let output = support::finish(&mut wrk);
    assert!(output.status.success(), "{}", support::describe(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The CPU time that all that runs in a workspace has used: other than the rate, it is not less
/// for what else the machine does.
fn cpu_seconds(workspace: &Workspace) -> f64 {
    let ticks_of = |(pid, _): &(i32, String)| Process::new(*pid).map_or(0, ticks);
    let ticks: u64 = workspace.processes().iter().map(ticks_of).sum();
    ticks as f64 / procfs::ticks_per_second() as f64
}

/// The CPU time of a process so far, in ticks.
pub fn ticks(process: Process) -> u64 {
    process.stat().map_or(0, |stat| stat.utime + stat.stime)
}
