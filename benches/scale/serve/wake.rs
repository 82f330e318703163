//! How soon a site answers that sleeps, or stands by, against `warmimg restore` by hand.

use warmimg::bench::statistics;

use super::Gateway;
use crate::{
    Bench, Subject,
    results::{Finding, Measured, Row},
    support::{Workspace, servers},
};

const SUBJECTS: [Subject; 2] = [
    ("Express", |_| servers::express()),
    ("Rails", |_| servers::rails_on_puma()),
];

/// How many instances there are while all sites sleep.
const STANDING_BY: usize = 2;

/// What was seen of a way to come up, a sample for each round.
#[derive(Default)]
struct Seen {
    first_byte: Vec<f64>,
    woken: Vec<f64>,
}

impl Seen {
    fn row(self, name: String) -> Row {
        Row::new(name)
            .with("first byte", "ms", self.first_byte)
            .with("until the gateway has let it go", "ms", self.woken)
    }
}

pub fn measure(bench: &Bench, runs: usize) -> Measured {
    let (mut rows, mut findings) = (vec![], vec![]);
    for (name, make) in SUBJECTS {
        let workspace = Workspace::alone();
        let server = make(&workspace);
        bench.capture(&workspace, &server, "server");
        let settings = "image = 'server'\nidle = '100ms'";
        let site = |name: &str, more| (name.to_owned(), format!("{settings}\n{more}"));
        let sites = [
            site("asleep", ""),
            site("frozen", "standby = 1"),
            site("copied", "standby = 1\nmemory = 'copy'"),
        ];
        let (gateway, ports) = Gateway::start(&workspace, &sites);
        let (mut restored, mut awake) = (vec![], vec![]);
        let mut woken: [Seen; 3] = Default::default();
        // The first round fills the page cache.
        for round in 0..=runs {
            let mut turns = [0, 1, 2, 3];
            turns.rotate_left(round % 4);
            for turn in turns {
                gateway.wait_for_sleep(STANDING_BY);
                let Some(site) = usize::checked_sub(turn, 1) else {
                    restored.push(bench.first_byte(&workspace, &server, "server"));
                    continue;
                };
                woken[site].first_byte.push(bench.answer(ports[site]));
                if site == 0 {
                    awake.push(bench.answer(ports[site]));
                }
                // It answers before the gateway has let it go.
                gateway.wait_for_sleep(STANDING_BY);
                woken[site].woken.push(gateway.last_wake());
            }
        }
        gateway.end();
        for samples in [&mut restored, &mut awake] {
            samples.remove(0);
        }
        for seen in &mut woken {
            seen.first_byte.remove(0);
            seen.woken.remove(0);
        }
        let [asleep, frozen, copied] = woken;
        let pairs = asleep.first_byte.iter().zip(&restored);
        let longer: Vec<f64> = pairs.map(|(asleep, restored)| asleep - restored).collect();
        let finding = |what, samples| {
            Finding::new(
                format!("{name}, {what}"),
                "ms",
                statistics::estimate_median(samples),
            )
        };
        findings.push(
            finding(
                "asleep: first byte later than by `warmimg restore`",
                &longer,
            )
            .at_most(1.0),
        );
        findings.push(finding("standing by: first byte", &frozen.first_byte).at_most(3.0));
        rows.push(Row::new(format!("{name}, `warmimg restore`")).with(
            "first byte",
            "ms",
            restored,
        ));
        rows.push(asleep.row(format!("{name}, asleep")));
        rows.push(frozen.row(format!("{name}, standing by")));
        rows.push(copied.row(format!("{name}, standing by, `memory = 'copy'`")));
        rows.push(Row::new(format!("{name}, the request after")).with("first byte", "ms", awake));
    }
    Measured { rows, findings }
}
