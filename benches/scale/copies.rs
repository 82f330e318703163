//! What copies of a large server need of memory before they write to it.

use warmimg::bench::statistics::{self, Pairs};

use crate::{
    Bench, memory, python_with_heap,
    results::{Finding, Measured, Row},
    support::{Workspace, server::Server},
};

const COPIES: usize = 20;
const IMAGE: &str = "heap";

/// What was seen of copies, a sample for each round.
#[derive(Default)]
struct Seen {
    answered: Vec<f64>,
    pss: Vec<f64>,
    in_use: Vec<f64>,
    cached: Vec<f64>,
}

pub fn measure(bench: &Bench, runs: usize) -> Measured {
    let workspace = Workspace::alone();
    let server = python_with_heap(700);
    bench.capture(&workspace, &server, IMAGE);
    let (mut one, mut many) = (Seen::default(), Seen::default());
    let mut unmeasured = Seen::default();
    // Fills the page cache, and makes what is made at the first restore.
    observe(&mut unmeasured, bench, &workspace, &server, 1);
    for _ in 0..runs {
        observe(&mut one, bench, &workspace, &server, 1);
        let need = one.in_use.last().unwrap() * COPIES as f64;
        assert!(
            need * 1.1 < memory::available(),
            "{COPIES} copies need {need:.0} MiB: they would leave the machine without memory"
        );
        observe(&mut many, bench, &workspace, &server, COPIES);
    }
    let more = many.pss.iter().zip(&one.pss);
    let more: Vec<f64> = more
        .map(|(many, one)| (many - one) / (COPIES - 1) as f64)
        .collect();
    let findings = vec![
        Finding::new(
            "memory of each further copy (PSS)",
            "MiB",
            statistics::estimate_median(&more),
        ),
        Finding::new(
            format!("memory of {COPIES} copies, of that of one (PSS)"),
            "x",
            Pairs::new(&many.pss, &one.pss).ratio(),
        ),
    ];
    Measured {
        rows: vec![
            row("1 copy".to_owned(), one, 1),
            row(format!("{COPIES} copies"), many, COPIES),
        ],
        findings,
    }
}

/// Brings up copies, asks each once, and looks at the memory.
fn observe(seen: &mut Seen, bench: &Bench, workspace: &Workspace, server: &Server, count: usize) {
    let before = memory::in_use();
    let up = bench.bring_up(workspace, server, IMAGE, count);
    seen.in_use.push(memory::in_use() - before);
    seen.pss.push(memory::pss(workspace));
    seen.cached.extend(memory::cached(&workspace.store()));
    seen.answered.push(up.answered);
    bench.stop_all(workspace);
}

fn row(name: String, seen: Seen, count: usize) -> Row {
    let per_copy = seen.pss.iter().map(|pss| pss / count as f64).collect();
    Row::new(name)
        .with("all answered", "ms", seen.answered)
        .with("PSS", "MiB", seen.pss)
        .with("PSS per copy", "MiB", per_copy)
        .with(
            "growth of anonymous memory, shmem, page tables",
            "MiB",
            seen.in_use,
        )
        .with("page cache of the store", "MiB", seen.cached)
}
