//! A thousand sites that sleep, against one: what each costs, and how soon one of them wakes.

use std::{fs, thread, time::Duration};

use procfs::process::Process;
use warmimg::bench::statistics;

use super::Gateway;
use crate::{
    Bench, memory,
    results::{Finding, Measured, Row},
    support::{Workspace, servers, wait_until},
    throughput::ticks,
};

const SITES: usize = 1000;
const WAKES: usize = 8;

/// How long sleeping gateways are looked at.
const REST: Duration = Duration::from_secs(3);

/// Who has done nothing for this long is done.
const SETTLED: Duration = Duration::from_millis(200);

/// What was seen of a gateway. A sample for each start, but of the wakes.
#[derive(Default)]
struct Seen {
    pss_kib: Vec<f64>,
    pss_after_kib: Vec<f64>,
    ticks: Vec<f64>,
    switches: Vec<f64>,
    wakes: Vec<f64>,
}

impl Seen {
    fn row(self, name: &str) -> Row {
        Row::new(name)
            .with("PSS of gateway and keeper", "KiB", self.pss_kib)
            .with("after wakes", "KiB", self.pss_after_kib)
            .with("first byte of a site that wakes", "ms", self.wakes)
            .with("CPU time in 3 s of sleep", "ticks", self.ticks)
            .with("context switches in 3 s of sleep", "", self.switches)
    }
}

pub fn measure(bench: &Bench, runs: usize) -> Measured {
    // Both at once: neither does anything while the other wakes a site.
    let workspaces = [Workspace::new(), Workspace::new()];
    for workspace in &workspaces {
        bench.capture(workspace, &servers::accept_loop(workspace, &[]), "server");
    }
    let counts = [1, SITES];
    let mut seen: [Seen; 2] = Default::default();
    for round in 0..runs {
        let start = |(workspace, count): (_, usize)| {
            let settings = "image = 'server'\nidle = '50ms'".to_owned();
            let site = |number| (format!("site-{number}"), settings.clone());
            let sites: Vec<_> = (0..count).map(site).collect();
            Gateway::start(workspace, &sites)
        };
        let served = workspaces.iter().zip(counts).map(start);
        let served: Vec<_> = served.collect();
        rest(
            &served
                .iter()
                .map(|(gateway, _)| gateway)
                .collect::<Vec<_>>(),
            &mut seen,
        );
        // The first wake of each fills caches.
        for wake in 0..=WAKES {
            let mut turns = [0, 1];
            turns.rotate_left(wake % 2);
            for turn in turns {
                let (gateway, ports) = &served[turn];
                let number = (round * WAKES + wake) * 7919 % ports.len();
                let first_byte = bench.answer(ports[number]);
                gateway.wait_for_sleep(0);
                if wake > 0 {
                    seen[turn].wakes.push(first_byte);
                }
            }
        }
        for ((gateway, _), seen) in served.iter().zip(&mut seen) {
            seen.pss_after_kib.push(pss_kib(gateway));
        }
        served.into_iter().for_each(|(gateway, _)| gateway.end());
    }
    let [one, many] = seen;
    let each = |many: &[f64], one: &[f64]| {
        let pairs = many.iter().zip(one);
        let each = pairs.map(|(many, one)| (many - one) / (SITES - 1) as f64);
        statistics::estimate_median(&each.collect::<Vec<_>>())
    };
    let later: Vec<f64> = many
        .wakes
        .iter()
        .zip(&one.wakes)
        .map(|(many, one)| many - one)
        .collect();
    let median = |samples: &[f64]| statistics::estimate_median(samples);
    let findings = vec![
        Finding::new(
            "memory of each further site that sleeps",
            "KiB",
            each(&many.pss_kib, &one.pss_kib),
        )
        .at_most(64.0),
        Finding::new(
            "the same after some were awake",
            "KiB",
            each(&many.pss_after_kib, &one.pss_after_kib),
        )
        .at_most(64.0),
        Finding::new(
            format!("CPU time of {SITES} sites in 3 s of sleep"),
            "ticks",
            median(&many.ticks),
        )
        .at_most(0.0),
        Finding::new(
            format!("context switches of {SITES} sites in 3 s of sleep"),
            "",
            median(&many.switches),
        )
        .at_most(0.0),
        Finding::new(
            format!("first byte of one of {SITES} sites later than of the only one"),
            "ms",
            median(&later),
        ),
    ];
    Measured {
        rows: vec![one.row("1 site"), many.row(&format!("{SITES} sites"))],
        findings,
    }
}

/// Looks at gateways that have nothing to do.
fn rest(gateways: &[&Gateway], seen: &mut [Seen]) {
    for (gateway, seen) in gateways.iter().zip(&mut *seen) {
        seen.pss_kib.push(pss_kib(gateway));
    }
    let used = || {
        gateways
            .iter()
            .map(|gateway| used(gateway))
            .collect::<Vec<_>>()
    };
    let mut before = used();
    // They have told that they listen before they were done.
    wait_until("the gateways to be done", || {
        thread::sleep(SETTLED);
        let last = std::mem::replace(&mut before, used());
        match last == before {
            true => Ok(()),
            false => Err(format!("{last:?}")),
        }
    });
    thread::sleep(REST);
    for ((before, after), seen) in before.iter().zip(used()).zip(seen) {
        seen.ticks.push((after.0 - before.0) as f64);
        seen.switches.push((after.1 - before.1) as f64);
    }
}

/// The gateway and its keeper.
fn processes(gateway: &Gateway) -> Vec<i32> {
    let mut pids = memory::children(gateway.pid());
    pids.push(gateway.pid());
    pids
}

fn pss_kib(gateway: &Gateway) -> f64 {
    processes(gateway).into_iter().map(memory::pss_kib).sum()
}

/// Ticks of CPU time, and context switches.
fn used(gateway: &Gateway) -> (u64, u64) {
    let switches = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let lines = status
            .lines()
            .filter(|line| line.contains("voluntary_ctxt_switches:"));
        lines
            .map(|line| {
                line.split_whitespace()
                    .nth(1)
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            })
            .sum::<u64>()
    };
    let pids = processes(gateway);
    let of_all = pids
        .iter()
        .map(|&pid| (Process::new(pid).map_or(0, ticks), switches(pid)));
    of_all.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}
