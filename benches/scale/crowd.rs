//! Fifty copies of a server that start at the same moment, against fifty cold starts.

use std::{collections::HashMap, time::Instant};

use procfs::process::{FDTarget, Process};
use warmimg::bench::statistics::{self, Pairs};

use crate::{
    Bench, LIMIT, ask, memory, port,
    restores::{Commands, Up, ms},
    results::{Finding, Measured, Row},
    support::{Workspace, ask::Client, server::Server, servers},
};

const COPIES: usize = 50;
const IMAGE: &str = "fastapi";

/// What was seen of a crowd, a sample for each round.
#[derive(Default)]
struct Seen {
    answered: Vec<f64>,
    median: Vec<f64>,
    p95: Vec<f64>,
    returned: Vec<f64>,
    pss: Vec<f64>,
}

impl Seen {
    fn add(&mut self, up: &Up, workspace: &Workspace) {
        self.answered.push(up.answered);
        self.returned.push(up.returned);
        if !up.first_bytes.is_empty() {
            self.median.push(statistics::median(&up.first_bytes));
            self.p95.push(statistics::quantile(&up.first_bytes, 0.95));
        }
        self.pss.push(memory::pss(workspace));
    }

    fn row(self, name: &str) -> Row {
        Row::new(name)
            .with("all answered", "ms", self.answered)
            .with("first byte, median", "ms", self.median)
            .with("first byte, 95 of 100", "ms", self.p95)
            .with("commands returned", "ms", self.returned)
            .with("PSS", "MiB", self.pss)
    }
}

pub fn measure(bench: &Bench, runs: usize) -> Measured {
    let workspace = Workspace::alone();
    let server = servers::fastapi_on_uvicorn();
    bench.capture(&workspace, &server, IMAGE);
    let (mut cold, mut apart, mut shared) = (Seen::default(), Seen::default(), Seen::default());
    // Fills the page cache.
    bench.bring_up(&workspace, &server, IMAGE, 1);
    bench.stop_all(&workspace);
    for _ in 0..runs {
        cold_starts(bench, &workspace, &server, &mut cold);
        let up = bench.bring_up(&workspace, &server, IMAGE, COPIES);
        apart.add(&up, &workspace);
        bench.stop_all(&workspace);
        let up = behind_one_port(bench, &workspace, &server);
        shared.add(&up, &workspace);
        bench.stop_all(&workspace);
    }
    let ratio = |name: &str, of: fn(&Seen) -> &Vec<f64>, restored: &Seen| {
        Finding::new(name, "x", Pairs::new(of(&cold), of(restored)).ratio())
    };
    let findings = vec![
        ratio(
            "all answered sooner than cold starts, a port each",
            |seen| &seen.answered,
            &apart,
        ),
        ratio(
            "all answered sooner than cold starts, one port",
            |seen| &seen.answered,
            &shared,
        ),
        ratio(
            "memory of cold starts, of that of the copies (PSS)",
            |seen| &seen.pss,
            &apart,
        ),
    ];
    // A cold start is no command that returns.
    cold.returned.clear();
    Measured {
        rows: vec![
            cold.row("cold starts"),
            apart.row("restores, a port each"),
            shared.row("restore --count, one port"),
        ],
        findings,
    }
}

/// Cold starts, each on a port of its own; they end here.
fn cold_starts(bench: &Bench, workspace: &Workspace, server: &Server, seen: &mut Seen) {
    let ports = ask::ports(COPIES);
    let servers: Vec<Server> = ports
        .iter()
        .map(|&port| {
            // The last word of the command is the port.
            let [words @ .., _] = &server.command[..] else {
                unreachable!("it is not empty");
            };
            let words = words.iter().cloned().chain([port.to_string()]);
            Server::new(Client::Http(port), words)
        })
        .collect();
    let begun = Instant::now();
    let running: Vec<_> = servers
        .iter()
        .map(|server| server.start_cold(workspace))
        .collect();
    let answers = ask::first_bytes(&ports, begun);
    let first_bytes = bench
        .runtime
        .block_on(async { Commands::default().meanwhile(answers).await });
    let first_bytes: Vec<f64> = first_bytes.into_iter().map(ms).collect();
    let up = Up {
        answered: first_bytes.iter().copied().fold(0.0, f64::max),
        first_bytes,
        returned: 0.0,
    };
    seen.add(&up, workspace);
    drop(running);
    workspace.assert_clean();
}

/// Copies by one command that share a port. The kernel chooses who answers, so connections are
/// made, once the command has returned, until each copy has answered on one.
fn behind_one_port(bench: &Bench, workspace: &Workspace, server: &Server) -> Up {
    let count = COPIES.to_string();
    let options = ["-d", "--reuse-port", "--count", &count];
    let mut commands = Commands::default();
    let begun = commands.start(bench.restore(workspace, IMAGE, &options));
    let port = port(server);
    bench.runtime.block_on(async {
        let returned = tokio::time::timeout(LIMIT, commands.ended()).await;
        let returned = returned.expect("the command returns");
        let answers = commands.meanwhile(answers_of_each(workspace, port)).await;
        let last = answers.into_values().max();
        Up {
            first_bytes: vec![],
            answered: ms(last.unwrap() - begun),
            returned: ms(returned - begun),
        }
    })
}

/// When each of the processes behind a port has first answered.
async fn answers_of_each(workspace: &Workspace, port: u16) -> HashMap<i32, Instant> {
    let mut answered = Vec::new();
    loop {
        let clients: Vec<_> = (0..COPIES)
            .map(|_| tokio::spawn(ask::connect_and_ask(port)))
            .collect();
        for client in clients {
            answered.push(client.await.unwrap().expect("an answer"));
        }
        let holders = holders(workspace, port);
        let mut first = HashMap::new();
        for ask::Answered { stream, first_byte } in &answered {
            let own = stream.local_addr().unwrap().port();
            if let Some(&pid) = holders.get(&own) {
                let first = first.entry(pid).or_insert(*first_byte);
                *first = (*first).min(*first_byte);
            }
        }
        if first.len() == COPIES {
            return first;
        }
    }
}

/// Which process has the connections to a port, by the port of the other end.
fn holders(workspace: &Workspace, port: u16) -> HashMap<u16, i32> {
    let mut pids = HashMap::new();
    for (pid, _) in workspace.processes() {
        let open = Process::new(pid).and_then(|process| process.fd());
        for fd in open.into_iter().flatten().flatten() {
            if let FDTarget::Socket(inode) = fd.target {
                pids.insert(inode, pid);
            }
        }
    }
    let connections = procfs::net::tcp().unwrap();
    let to_the_port = connections
        .into_iter()
        .filter(|entry| entry.local_address.port() == port);
    to_the_port
        .filter_map(|entry| Some((entry.remote_address.port(), *pids.get(&entry.inode)?)))
        .collect()
}
