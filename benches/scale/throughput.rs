//! Requests per second of a restored server, against one that was started cold, by wrk(1).

use procfs::process::Process;
use warmimg::bench::statistics::Pairs;

use crate::{
    Bench, Subject, port,
    results::{Finding, Measured, Row},
    support::{self, Workspace, server::Server, servers},
    wrk,
};

const CONNECTIONS: u32 = 16;

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
    wrk::load(port(server), CONNECTIONS, 5);
    let before = cpu_seconds(workspace);
    let answered = wrk::load(port(server), CONNECTIONS, 5);
    let cpu = cpu_seconds(workspace) - before;
    seen.per_second.push(answered.per_second);
    seen.per_cpu_second.push(answered.requests / cpu);
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
