//! Fifty sites that are asked for at the same moment, against fifty restores by hand.

use std::time::Instant;

use warmimg::bench::statistics::{self, Pairs};

use super::Gateway;
use crate::{
    Bench, LIMIT, ask, memory,
    restores::ms,
    results::{Finding, Measured, Row},
    support::{Workspace, journal, servers},
};

const SITES: usize = 50;

/// What was seen of all together, a sample for each round.
#[derive(Default)]
struct Seen {
    answered: Vec<f64>,
    median: Vec<f64>,
    pss: Vec<f64>,
}

impl Seen {
    fn add(&mut self, first_bytes: &[f64], workspace: &Workspace) {
        self.answered
            .push(first_bytes.iter().copied().fold(0.0, f64::max));
        self.median.push(statistics::median(first_bytes));
        self.pss.push(memory::pss(workspace));
    }

    fn row(self, name: &str) -> Row {
        Row::new(name)
            .with("all answered", "ms", self.answered)
            .with("first byte, median", "ms", self.median)
            .with("PSS", "MiB", self.pss)
    }
}

pub fn measure(bench: &Bench, runs: usize) -> Measured {
    let workspace = Workspace::alone();
    let server = servers::fastapi_on_uvicorn();
    bench.capture(&workspace, &server, "server");
    let settings = "image = 'server'\nidle = '2s'".to_owned();
    let sites: Vec<_> = (0..SITES)
        .map(|number| (format!("site-{number}"), settings.clone()))
        .collect();
    let (mut woken, mut by_hand) = (Seen::default(), Seen::default());
    let mut answered = vec![];
    // Fills the page cache.
    bench.bring_up(&workspace, &server, "server", 1);
    bench.stop_all(&workspace);
    for _ in 0..runs {
        let (gateway, ports) = Gateway::start(&workspace, &sites);
        let begun = Instant::now();
        let first_bytes: Vec<f64> = bench.runtime.block_on(async {
            // Each asks once: a site that sleeps refuses nobody.
            let clients: Vec<_> = ports
                .iter()
                .map(|&port| tokio::spawn(ask::connect_and_ask(port)))
                .collect();
            let mut first_bytes = vec![];
            for client in clients {
                let answer = tokio::time::timeout(LIMIT, client).await;
                match answer.expect("an end").unwrap() {
                    Ok(answered) => first_bytes.push(ms(answered.first_byte - begun)),
                    Err(error) => eprintln!("a site has not answered: {error}"),
                }
            }
            first_bytes
        });
        bench.heed();
        answered.push(first_bytes.len() as f64);
        woken.add(&first_bytes, &workspace);
        // It answers before the gateway has let it go.
        journal::wait_for(&gateway.log, "woken", SITES);
        gateway.end();
        let up = bench.bring_up(&workspace, &server, "server", SITES);
        by_hand.add(&up.first_bytes, &workspace);
        bench.stop_all(&workspace);
    }
    let ratio = Pairs::new(&woken.answered, &by_hand.answered).ratio();
    let fewest = answered.iter().copied().fold(f64::INFINITY, f64::min);
    let fewest = statistics::estimate_median(&[fewest]);
    let all = statistics::estimate_median(&woken.answered);
    let asked = format!("of {SITES} sites asked at the same moment");
    let findings = vec![
        Finding::new(format!("{asked}, answered in the worst run"), "", fewest)
            .at_least(SITES as f64),
        Finding::new(format!("{asked}, the last has answered after"), "ms", all),
        Finding::new("the same, of restores by hand", "x", ratio),
    ];
    Measured {
        rows: vec![
            woken.row(&format!("{SITES} sites woken")),
            by_hand.row(&format!("{SITES} times `warmimg restore -d`")),
        ],
        findings,
    }
}
