//! Requests per second of a site that is awake, against the same server without warmimg, and that
//! one against itself: how far apart two are that do not differ.

use warmimg::bench::statistics::Pairs;

use super::Gateway;
use crate::{
    Bench, port,
    results::{Finding, Measured, Row},
    support::{Workspace, server::Server, servers},
    wrk,
};

const CONNECTIONS: u32 = 16;

/// What was seen of a server, a sample for each round.
#[derive(Default)]
struct Seen {
    per_second: Vec<f64>,
    p99_ms: Vec<f64>,
}

impl Seen {
    fn observe(&mut self, bench: &Bench, port: u16) {
        bench.answer(port);
        wrk::load(port, CONNECTIONS, 3);
        let answered = wrk::load(port, CONNECTIONS, 5);
        self.per_second.push(answered.per_second);
        self.p99_ms.push(answered.p99_ms);
    }

    fn row(self, name: &str) -> Row {
        Row::new(name)
            .with("requests", "/s", self.per_second)
            .with("p99", "ms", self.p99_ms)
    }
}

pub fn measure(bench: &Bench, runs: usize) -> Measured {
    let workspace = Workspace::alone();
    let server = servers::express();
    bench.capture(&workspace, &server, "server");
    let site = (
        "site".to_owned(),
        "image = 'server'\nidle = '200ms'".to_owned(),
    );
    let (gateway, ports) = Gateway::start(&workspace, &[site]);
    let mut seen: [Seen; 3] = Default::default();
    for round in 0..runs {
        let mut turns = [0, 1, 2];
        turns.rotate_left(round % 3);
        for turn in turns {
            let seen = &mut seen[turn];
            if turn == 0 {
                seen.observe(bench, ports[0]);
                gateway.wait_for_sleep(0);
            } else {
                observe_cold(bench, seen, &workspace, &server);
            }
        }
    }
    gateway.end();
    let [served, without, again] = seen;
    let finding = |name: &str, of: fn(&Seen) -> &Vec<f64>, one: &Seen, other: &Seen| {
        Finding::new(
            format!("Express, {name}"),
            "x",
            Pairs::new(of(one), of(other)).ratio(),
        )
    };
    let per_second: fn(&Seen) -> &Vec<f64> = |seen| &seen.per_second;
    let p99: fn(&Seen) -> &Vec<f64> = |seen| &seen.p99_ms;
    let findings = vec![
        finding(
            "awake: requests, of those without warmimg",
            per_second,
            &served,
            &without,
        )
        .at_least(0.99),
        finding(
            "awake: p99, of that without warmimg",
            p99,
            &served,
            &without,
        )
        .at_most(1.01),
        finding(
            "without warmimg twice: requests, of each other",
            per_second,
            &again,
            &without,
        ),
        finding(
            "without warmimg twice: p99, of each other",
            p99,
            &again,
            &without,
        ),
    ];
    let rows = vec![
        served.row("Express, awake"),
        without.row("Express without warmimg"),
        again.row("Express without warmimg, again"),
    ];
    Measured { rows, findings }
}

fn observe_cold(bench: &Bench, seen: &mut Seen, workspace: &Workspace, server: &Server) {
    // To a file, as the output of an instance goes.
    let log = std::fs::File::create(workspace.path().join("output.log")).unwrap();
    let running = server.start_cold_writing(workspace, log);
    seen.observe(bench, port(server));
    drop(running);
    server.wait_for_silence();
}
