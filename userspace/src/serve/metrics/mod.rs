//! What a gateway counts, as Prometheus reads it.
//!
//! Invariant: no wake waits for a reader. What is counted is added up when it is told; sites are asked as
//! anybody asks them, and memory is looked up by another process.

mod counts;
mod scrape;
mod text;

use std::{collections::BTreeMap, path::Path, process::Stdio, time::Duration};

use serde::Deserialize;
use tokio::process::Command;

use self::text::{Kind, Text};
pub use self::{
    counts::Counts,
    scrape::{Door, answer},
};
use super::{overview::Overview, site::Status};
use crate::{
    memory::Memory,
    proxy::plan::{BUCKETS, SiteStats, Stats, bucket_us},
};

/// How long a site may take to answer; what is not known then is left out.
const SITE_LIMIT: Duration = Duration::from_secs(1);

/// All that is known, as text.
async fn render(overview: &Overview) -> String {
    let (statuses, stats) = tokio::join!(overview.statuses(SITE_LIMIT), overview.proxy());
    // Then, so that there is what they tell of.
    let memory = memory(overview.shared.store.root()).await;
    let mut text = Text::default();
    overview.shared.counts.borrow().write(&mut text);
    write_sites(&mut text, &statuses);
    write_memory(&mut text, &statuses, &memory);
    if let Some(stats) = stats {
        write_proxy(&mut text, &stats);
    }
    text.into_string()
}

/// The memory of instances by their names. The kernel goes through the pages of each to tell, which
/// takes milliseconds: not on the thread that wakes sites.
async fn memory(store: &Path) -> BTreeMap<String, Memory> {
    #[derive(Deserialize)]
    struct Line {
        id: String,
        #[serde(flatten)]
        memory: Memory,
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg("--store").arg(store).args(["ps", "--json"]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let Ok(output) = command.output().await else {
        return BTreeMap::new();
    };
    let lines = output.stdout.split(|byte| *byte == b'\n');
    // Those that have ended have none.
    let lines = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    lines.map(|line| (line.id, line.memory)).collect()
}

/// The instances of a site by what they do.
fn by_state(status: &Status) -> [(&'static str, &[String]); 3] {
    [
        ("serving", &status.serving),
        ("standby", &status.standing_by),
        ("leaving", &status.leaving),
    ]
}

fn write_sites(text: &mut Text, statuses: &[Status]) {
    let name = "warmimg_instances";
    text.family(name, Kind::Gauge, "Instances of a site, by their state.");
    for status in statuses {
        for (state, ids) in by_state(status) {
            let labels = [("site", &*status.site), ("state", state)];
            text.sample(name, &labels, ids.len());
        }
    }
    let name = "warmimg_connections_open";
    let help = "Connections that a site has, those that wait included.";
    text.family(name, Kind::Gauge, help);
    for status in statuses {
        text.sample(name, &[("site", &status.site)], status.open);
    }
    let name = "warmimg_connections_total";
    let help = "Connections that a site has had; not of Unix sockets.";
    text.family(name, Kind::Counter, help);
    for status in statuses {
        text.sample(name, &[("site", &status.site)], status.taken);
    }
}

fn write_memory(text: &mut Text, statuses: &[Status], memory: &BTreeMap<String, Memory>) {
    type Of = fn(&Memory) -> u64;
    let families: [(&str, &str, Of); 4] = [
        ("rss", "Resident memory of instances.", |memory| memory.rss),
        (
            "pss",
            "Memory of instances; a page that several have counts in parts.",
            |memory| memory.pss,
        ),
        (
            "shared",
            "Resident memory of instances that other processes have too.",
            |memory| memory.shared,
        ),
        (
            "private",
            "Resident memory of instances that nobody else has.",
            |memory| memory.rss.saturating_sub(memory.shared),
        ),
    ];
    for (kind, help, of) in families {
        let name = format!("warmimg_memory_{kind}_bytes");
        text.family(&name, Kind::Gauge, help);
        for status in statuses {
            for (state, ids) in by_state(status) {
                let sum: Memory = ids.iter().filter_map(|id| memory.get(id)).copied().sum();
                text.sample(&name, &[("site", &status.site), ("state", state)], of(&sum));
            }
        }
    }
}

fn write_proxy(text: &mut Text, stats: &Stats) {
    let name = "warmimg_proxy_connections";
    text.family(name, Kind::Gauge, "Connections of clients to the proxy.");
    text.sample(name, &[], stats.connections);
    let name = "warmimg_proxy_answers_total";
    let help = "Answers of a site through the proxy, by the class of their status.";
    text.family(name, Kind::Counter, help);
    for (site, stats) in &stats.sites {
        for (status, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"]
            .iter()
            .zip(stats.answers)
        {
            text.sample(name, &[("site", site), ("status", status)], count);
        }
    }
    type Of = fn(&SiteStats) -> u64;
    let families: [(&str, Kind, &str, Of); 5] = [
        (
            "refused_total",
            Kind::Counter,
            "Requests that the proxy answered with 503: their site failed, or too many waited.",
            |stats| stats.refused,
        ),
        (
            "in_flight",
            Kind::Gauge,
            "Requests and tunnels in flight.",
            |stats| stats.in_flight,
        ),
        (
            "waiting",
            Kind::Gauge,
            "Requests that wait for their answer to begin.",
            |stats| stats.waiting,
        ),
        (
            "received_bytes_total",
            Kind::Counter,
            "Bytes of bodies from clients.",
            |stats| stats.bytes_in,
        ),
        (
            "sent_bytes_total",
            Kind::Counter,
            "Bytes of bodies to clients.",
            |stats| stats.bytes_out,
        ),
    ];
    for (kind, of_kind, help, of) in families {
        let name = format!("warmimg_proxy_{kind}");
        text.family(&name, of_kind, help);
        for (site, stats) in &stats.sites {
            text.sample(&name, &[("site", site)], of(stats));
        }
    }
    let name = "warmimg_proxy_first_byte_seconds";
    let help = "From a request to the first byte of its answer.";
    text.family(name, Kind::Histogram, help);
    for (site, stats) in &stats.sites {
        let buckets = (0..BUCKETS - 1).map(|place| bucket_us(place) as f64 / 1e6);
        let buckets = buckets.zip(stats.first_byte);
        let above = stats.first_byte[BUCKETS - 1];
        text.buckets(name, &[("site", site)], buckets, above, stats.first_byte_us);
    }
    let name = "warmimg_proxy_log_lines_lost_total";
    text.family(
        name,
        Kind::Counter,
        "Lines of the access log that nobody took.",
    );
    text.sample(name, &[], stats.log_lines_lost);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::Listener;

    #[test]
    fn sites_their_memory_and_the_proxy_are_told_of() {
        let status = Status {
            site: "shop".into(),
            listener: Listener::Unix {
                path: "/run/shop.sock".into(),
            },
            image: "shop".into(),
            serving: vec!["shop-1".into(), "shop-2".into()],
            standing_by: vec![],
            leaving: vec![],
            open: 3,
            taken: 7,
            wakes: 1,
            failures: 0,
            proxy: None,
        };
        let memory = Memory {
            rss: 100,
            pss: 60,
            shared: 80,
        };
        let memory = ["shop-1", "shop-2", "other-1"].map(|id| (id.to_owned(), memory));
        let stats = SiteStats {
            answers: [0, 5, 0, 1, 0],
            first_byte: std::array::from_fn(|place| u64::from(place == 4 || place == 19)),
            ..SiteStats::default()
        };
        let stats = Stats {
            sites: [("shop".to_owned(), stats)].into(),
            ..Stats::default()
        };
        let mut text = Text::default();
        let statuses = [status];
        write_sites(&mut text, &statuses);
        write_memory(&mut text, &statuses, &memory.into());
        write_proxy(&mut text, &stats);
        let text = text.into_string();
        for line in [
            "warmimg_instances{site=\"shop\",state=\"serving\"} 2",
            "warmimg_connections_open{site=\"shop\"} 3",
            "warmimg_memory_private_bytes{site=\"shop\",state=\"serving\"} 40",
            "warmimg_memory_pss_bytes{site=\"shop\",state=\"standby\"} 0",
            "warmimg_proxy_answers_total{site=\"shop\",status=\"2xx\"} 5",
            "warmimg_proxy_first_byte_seconds_bucket{site=\"shop\",le=\"0.001024\"} 1",
            "warmimg_proxy_first_byte_seconds_bucket{site=\"shop\",le=\"+Inf\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
