//! The figures of a profile that can be compared with those of another run: by names that stay the
//! same, never by pids.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Part, Quantity, Sides,
    verdict::{IsThere, Samples},
};
use crate::profile::{Class, Process, Profile, Times};

/// Figures by what they are of.
pub type Figures = BTreeMap<(Part, String), BTreeMap<Quantity, f64>>;

/// All figures of a profile.
pub fn of(profile: &Profile) -> Figures {
    let mut all = Collector(Figures::new());
    milestones(&mut all, profile);
    let path = profile.critical_path.iter();
    let mut times = Times::default();
    path.for_each(|step| times.add(step.class, step.end_ns.saturating_sub(step.start_ns)));
    all.classes(Part::CriticalPath, &times);
    let threads = profile.processes.iter().flat_map(|p| &p.threads);
    all.classes(Part::Threads, &threads.map(|thread| thread.times).sum());
    for calls in &profile.calls {
        let figures = [
            (Quantity::TimeNs, calls.total_ns),
            (Quantity::Count, calls.count),
        ];
        all.add(Part::Calls, &calls.name, figures);
    }
    for file in &profile.files {
        let figures = [
            (Quantity::TimeNs, file.self_ns + file.disk_ns),
            (Quantity::Bytes, file.bytes_read),
            (Quantity::PagesMissed, file.pages_missed),
        ];
        all.add(Part::Files, &file.path, figures);
    }
    let names: HashMap<i32, &str> = profile
        .processes
        .iter()
        .map(|process| (process.pid, &*process.name))
        .collect();
    for lookups in &profile.failed_lookups {
        let name = names.get(&lookups.pid).copied().unwrap_or("[unknown]");
        let figures = [
            (Quantity::TimeNs, lookups.total_ns),
            (Quantity::Count, lookups.count),
        ];
        all.add(Part::FailedLookups, name, figures);
    }
    for connection in &profile.connections {
        let name = connection.name.as_ref().unwrap_or(&connection.peer);
        let figures = [
            (Quantity::TimeNs, connection.waited_ns),
            (Quantity::Count, 1),
        ];
        all.add(Part::Connections, name, figures);
    }
    for faults in &profile.faults {
        let figures = [
            (Quantity::TimeNs, faults.total_ns),
            (Quantity::Count, faults.count),
            (Quantity::MajorCount, faults.major),
        ];
        all.add(Part::Faults, &faults.mapping, figures);
    }
    processes(&mut all, profile);
    all.0
}

/// The figures of one thing in all runs.
pub fn samples(
    figures: &Sides<Vec<Figures>>,
    part: Part,
    name: &str,
) -> BTreeMap<Quantity, Samples> {
    let key = (part, name.to_owned());
    let runs = |runs: &[Figures]| runs.iter().map(|run| run.get(&key).cloned()).collect();
    let before: Vec<Option<BTreeMap<Quantity, f64>>> = runs(&figures.before);
    let after: Vec<Option<BTreeMap<Quantity, f64>>> = runs(&figures.after);
    let known = before.iter().chain(&after).flatten();
    let quantities: BTreeSet<Quantity> = known.flat_map(BTreeMap::keys).copied().collect();
    let is_there = IsThere {
        before: before.iter().any(Option::is_some),
        after: after.iter().any(Option::is_some),
    };
    let values = |runs: &[Option<BTreeMap<Quantity, f64>>], quantity| {
        // What a run did not do took it no time; but what it did not get to has no time.
        let of_run = |run: &Option<BTreeMap<Quantity, f64>>| match run {
            Some(run) => run.get(&quantity).copied(),
            None => (part != Part::Milestones).then_some(0.0),
        };
        runs.iter().filter_map(of_run).collect()
    };
    quantities
        .into_iter()
        .map(|quantity| {
            let samples = Samples {
                before: values(&before, quantity),
                after: values(&after, quantity),
                is_there,
            };
            (quantity, samples)
        })
        .collect()
}

struct Collector(Figures);

impl Collector {
    /// Adds to what there is of that name.
    fn add<const N: usize>(&mut self, part: Part, name: &str, figures: [(Quantity, u64); N]) {
        let sums = self.0.entry((part, name.to_owned())).or_default();
        for (quantity, value) in figures {
            *sums.entry(quantity).or_default() += value as f64;
        }
    }

    fn classes(&mut self, part: Part, times: &Times) {
        for class in Class::ALL {
            if times.of(class) > 0 {
                self.add(part, class.title(), [(Quantity::TimeNs, times.of(class))]);
            }
        }
    }
}

/// The first of each kind and listener.
fn milestones(all: &mut Collector, profile: &Profile) {
    let mut seen = BTreeMap::new();
    for milestone in &profile.milestones {
        let kind = milestone.kind.title();
        let name = match &milestone.listener {
            Some(listener) => format!("{kind}, {listener}"),
            None => kind.to_owned(),
        };
        let first = seen.entry(name).or_insert(milestone.at_ns);
        *first = milestone.at_ns.min(*first);
    }
    for (name, at_ns) in seen {
        all.add(Part::Milestones, &name, [(Quantity::TimeNs, at_ns)]);
    }
    let length = [(Quantity::TimeNs, profile.length_ns)];
    all.add(Part::Milestones, "end of the recording", length);
}

fn processes(all: &mut Collector, profile: &Profile) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for process in &profile.processes {
        let number = seen.entry(&process.name).or_default();
        *number += 1;
        let name = match number {
            1 => process.name.clone(),
            number => format!("{}, number {number}", process.name),
        };
        let end = process.end_ns.unwrap_or(profile.length_ns);
        let figures = [
            (Quantity::TimeNs, end.saturating_sub(process.start_ns)),
            (Quantity::CpuNs, cpu_ns(process)),
        ];
        all.add(Part::Processes, &name, figures);
    }
}

fn cpu_ns(process: &Process) -> u64 {
    let times: Times = process.threads.iter().map(|thread| thread.times).sum();
    let on_cpu = Class::ALL.into_iter().filter(|class| class.is_on_cpu());
    on_cpu.map(|class| times.of(class)).sum()
}
