//! What is added up of all that is told of sites. It stays when a site goes.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize;
use serde_json::json;

use super::text::{Histogram, Kind, Text};
use crate::serve::journal::{Cause, Event, How, What};

/// The sums.
#[derive(Debug, Default)]
pub struct Counts {
    wakes: BTreeMap<(String, How, Cause), u64>,
    took: BTreeMap<(String, How), Histogram>,
    phases: BTreeMap<Cow<'static, str>, Histogram>,
    cold: BTreeMap<(String, &'static str), u64>,
    recaptures: BTreeMap<String, u64>,
    failed_recaptures: BTreeMap<String, u64>,
    ends: BTreeMap<(String, Cause), u64>,
    exits: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds what has happened.
    pub fn add(&mut self, event: &Event) {
        let site = event.site.clone();
        match &event.what {
            What::Woken(wake) => {
                *self
                    .wakes
                    .entry((site.clone(), wake.how, wake.cause))
                    .or_default() += 1;
                let took = self.took.entry((site, wake.how)).or_default();
                took.add(wake.took_us);
                for phase in &wake.phases {
                    let times = self.phases.entry(phase.name.clone()).or_default();
                    times.add(phase.length_us);
                }
            }
            What::Cold { reason } => *self.cold.entry((site, reason.code())).or_default() += 1,
            What::Recaptured { .. } => *self.recaptures.entry(site).or_default() += 1,
            What::NotRecaptured { .. } => *self.failed_recaptures.entry(site).or_default() += 1,
            What::Ended { cause, .. } => *self.ends.entry((site, *cause)).or_default() += 1,
            What::Exited { .. } => *self.exits.entry(site).or_default() += 1,
            What::Failed { .. } => *self.failures.entry(site).or_default() += 1,
            _ => {}
        }
    }

    pub fn write(&self, text: &mut Text) {
        let name = "warmimg_wakes_total";
        let help = "Instances that were brought up to serve, by how and why.";
        text.family(name, Kind::Counter, help);
        for ((site, how, cause), count) in &self.wakes {
            let (how, cause) = (label(how), label(cause));
            text.sample(
                name,
                &[("site", site), ("how", &how), ("cause", &cause)],
                count,
            );
        }
        let name = "warmimg_wake_seconds";
        text.family(name, Kind::Histogram, "How long wakes took, by how.");
        for ((site, how), times) in &self.took {
            text.histogram(name, &[("site", site), ("how", &label(how))], times);
        }
        let name = "warmimg_wake_phase_seconds";
        text.family(name, Kind::Histogram, "How long the phases of wakes took.");
        for (phase, times) in &self.phases {
            text.histogram(name, &[("phase", phase)], times);
        }
        let name = "warmimg_cold_starts_total";
        let help = "Instances that were to be started cold, by why.";
        text.family(name, Kind::Counter, help);
        for ((site, reason), count) in &self.cold {
            text.sample(name, &[("site", site), ("reason", reason)], count);
        }
        let name = "warmimg_instances_ended_total";
        text.family(name, Kind::Counter, "Instances that were ended, by why.");
        for ((site, cause), count) in &self.ends {
            text.sample(name, &[("site", site), ("cause", &label(cause))], count);
        }
        for (name, help, counts) in [
            (
                "warmimg_instances_exited_total",
                "Instances that ended by themselves.",
                &self.exits,
            ),
            (
                "warmimg_wake_failures_total",
                "How often a site could not be brought up.",
                &self.failures,
            ),
            (
                "warmimg_recaptures_total",
                "How often a site got a new image.",
                &self.recaptures,
            ),
            (
                "warmimg_recapture_failures_total",
                "How often a site was to get a new image, and did not.",
                &self.failed_recaptures,
            ),
        ] {
            text.family(name, Kind::Counter, help);
            for (site, count) in counts {
                text.sample(name, &[("site", site)], count);
            }
        }
    }
}

/// The name that it has in the journal.
fn label(value: &impl Serialize) -> String {
    json!(value).as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::serve::wakes::Wakes;

    #[test]
    fn what_happens_is_added_up() {
        let mut counts = Counts::default();
        let mut wakes = Wakes::default();
        for what in [
            What::Woken(wakes.begin("shop", Cause::Load).end(How::StoodBy, "shop-1")),
            What::Woken(wakes.begin("shop", Cause::Load).end(How::StoodBy, "shop-2")),
            What::Failed {
                error: "no".into(),
                pause: Duration::ZERO,
            },
            What::Warned { text: "".into() },
        ] {
            counts.add(&Event {
                site: "shop".into(),
                what,
            });
        }
        let mut text = Text::default();
        counts.write(&mut text);
        let text = text.into_string();
        for line in [
            "warmimg_wakes_total{site=\"shop\",how=\"standby\",cause=\"load\"} 2",
            "warmimg_wake_seconds_count{site=\"shop\",how=\"standby\"} 2",
            "warmimg_wake_failures_total{site=\"shop\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
