//! How the time of a restore grows with the memory of the server.

use warmimg::bench::statistics;

use crate::{
    Bench, python_with_heap,
    results::{Finding, Measured, Row},
    support::Workspace,
};

const SIZES: [u32; 3] = [50, 700, 2000];

pub fn measure(bench: &Bench, runs: usize) -> Measured {
    let workspace = Workspace::alone();
    let servers = SIZES.map(|size| (format!("heap-{size}"), python_with_heap(size)));
    for (name, server) in &servers {
        bench.capture(&workspace, server, name);
    }
    let mut times = SIZES.map(|_| vec![]);
    // The first round fills the page cache.
    for round in 0..=runs {
        for ((name, server), times) in servers.iter().zip(&mut times) {
            let time = bench.first_byte(&workspace, server, name);
            if round > 0 {
                times.push(time);
            }
        }
    }
    workspace.assert_clean();
    let [small, _, large] = &times;
    let growth: Vec<f64> = large.iter().zip(small).map(|(a, b)| a - b).collect();
    let growth = statistics::estimate_median(&growth);
    let row = |(size, times): (u32, Vec<f64>)| {
        Row::new(format!("{size} MB of heap")).with("first byte", "ms", times)
    };
    Measured {
        rows: SIZES.into_iter().zip(times).map(row).collect(),
        findings: vec![Finding::new("growth from 50 MB to 2000 MB", "ms", growth)],
    }
}
