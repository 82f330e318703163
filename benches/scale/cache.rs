//! A restore with nothing in the page cache, as after a boot or on another machine.

use warmimg::bench::statistics::Pairs;

use crate::{
    Bench, Subject,
    results::{Finding, Measured, Row},
    support::{Workspace, servers},
};

const SUBJECTS: [Subject; 3] = [
    ("FastAPI", |_| servers::fastapi_on_uvicorn()),
    ("Rails", |_| servers::rails_on_puma()),
    ("Tomcat", servers::tomcat),
];

pub fn measure(bench: &Bench, runs: usize) -> Measured {
    let (mut rows, mut findings) = (vec![], vec![]);
    for (name, make) in SUBJECTS {
        let workspace = Workspace::alone();
        let server = make(&workspace);
        bench.capture(&workspace, &server, "server");
        let first_byte = || bench.first_byte(&workspace, &server, "server");
        let (mut cold, mut warm) = (vec![], vec![]);
        for _ in 0..runs {
            drop_caches();
            cold.push(first_byte());
            // The cold one may have read no more than it needed.
            first_byte();
            warm.push(first_byte());
        }
        workspace.assert_clean();
        findings.push(Finding::new(
            format!("{name}, longer with a cold page cache"),
            "x",
            Pairs::new(&cold, &warm).ratio(),
        ));
        let row = |how: &str, times| {
            Row::new(format!("{name}, {how} page cache")).with("first byte", "ms", times)
        };
        rows.extend([row("warm", warm), row("cold", cold)]);
    }
    Measured { rows, findings }
}

/// Empties the page cache of the whole machine, as `warmimg bench --drop-caches` does.
fn drop_caches() {
    // Pages that are not written yet are not dropped.
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3\n").expect("the page cache can be dropped");
}
