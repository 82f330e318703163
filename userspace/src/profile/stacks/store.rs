//! What was sampled, within a limit of memory.
//!
//! Above the limit the store thins itself out and goes on more thinly: of the samples on a
//! processor every second goes and the rest count double; waits shorter than a limit go, and the
//! next wait of the thread that stays counts for them. So the sums stay right.

use std::collections::HashMap;

use super::record::{Kind, Mapping, Raw, Record};

/// How much memory samples may take.
pub const LIMIT: usize = 256 << 20;

/// The shortest wait that stays when the store is thinned out for the first time; it doubles with
/// each time.
const SHORTEST_WAIT_NS: u64 = 100_000;

/// A sample with its weight.
#[derive(Debug)]
pub struct Stored {
    pub at_ns: u64,
    pub pid: i32,
    pub tid: i32,
    pub weight_ns: u64,
    pub is_on_cpu: bool,
    pub raw: Raw,
}

/// A change of the memory of a process.
#[derive(Debug)]
pub struct Change {
    pub at_ns: u64,
    pub pid: i32,
    pub kind: ChangeKind,
}

#[derive(Debug)]
pub enum ChangeKind {
    Mapped(Mapping),
    Executed,
    Forked { parent: i32 },
}

/// Samples, and what is needed to make sense of them. Records are to be added in the order of time.
#[derive(Debug)]
pub struct Store {
    pub samples: Vec<Stored>,
    pub changes: Vec<Change>,
    /// Samples that went to make room, and others counted for.
    pub thinned: u64,
    /// Waits whose end was not seen.
    pub lost: u64,
    /// Between two samples of a thread that runs.
    period_ns: u64,
    limit: usize,
    /// How often it was thinned out.
    level: u32,
    /// Samples on a processor so far; each of `2^level` stays.
    running: u64,
    /// Threads that wait, by their ids.
    waiting: HashMap<i32, Stored>,
    /// What waits that went leave to the next of the thread.
    carried: HashMap<i32, u64>,
    /// What the samples take.
    bytes: usize,
}

impl Store {
    pub fn new(period_ns: u64, limit: usize) -> Self {
        Self {
            samples: Vec::new(),
            changes: Vec::new(),
            thinned: 0,
            lost: 0,
            period_ns,
            limit,
            level: 0,
            running: 0,
            waiting: HashMap::new(),
            carried: HashMap::new(),
            bytes: 0,
        }
    }

    pub fn add(&mut self, record: Record) {
        let Record {
            at_ns,
            pid,
            tid,
            kind,
        } = record;
        let stored = |raw, is_on_cpu, weight_ns| Stored {
            at_ns,
            pid,
            tid,
            weight_ns,
            is_on_cpu,
            raw,
        };
        match kind {
            Kind::Running(raw) => {
                // It runs, so the end of its wait was lost.
                self.forget_wait(tid);
                self.running += 1;
                if self.running.is_multiple_of(1 << self.level) {
                    self.push(stored(raw, true, self.period_ns << self.level));
                } else {
                    self.thinned += 1;
                }
            }
            Kind::Leaving(raw) => {
                self.forget_wait(tid);
                self.waiting.insert(tid, stored(raw, false, 0));
            }
            // It does not wait for anything but a processor.
            Kind::Left { is_preempted: true } => drop(self.waiting.remove(&tid)),
            Kind::Left {
                is_preempted: false,
            } => {}
            Kind::Back => {
                if let Some(wait) = self.waiting.remove(&tid) {
                    self.end_wait(wait, at_ns);
                }
            }
            Kind::Mapped(mapping) => self.change(at_ns, pid, ChangeKind::Mapped(mapping)),
            Kind::Executed => self.change(at_ns, pid, ChangeKind::Executed),
            Kind::Forked { parent } => self.change(at_ns, pid, ChangeKind::Forked { parent }),
        }
        while self.bytes > self.limit && self.level < u32::BITS - 1 {
            self.thin_out();
        }
    }

    /// Ends the waits that go on, and puts all in the order of time.
    pub fn finish(&mut self, at_ns: u64) {
        for wait in std::mem::take(&mut self.waiting).into_values() {
            self.end_wait(wait, at_ns);
        }
        self.samples.sort_by_key(|sample| sample.at_ns);
    }

    fn change(&mut self, at_ns: u64, pid: i32, kind: ChangeKind) {
        self.changes.push(Change { at_ns, pid, kind });
    }

    fn forget_wait(&mut self, tid: i32) {
        self.lost += u64::from(self.waiting.remove(&tid).is_some());
    }

    fn end_wait(&mut self, wait: Stored, at_ns: u64) {
        let weight_ns = at_ns.saturating_sub(wait.at_ns);
        let shortest = self.shortest_wait();
        match keep_wait(&mut self.carried, wait.tid, weight_ns, shortest) {
            Some(weight_ns) => self.push(Stored { weight_ns, ..wait }),
            None => self.thinned += 1,
        }
    }

    fn push(&mut self, sample: Stored) {
        self.bytes += sample.raw.size();
        self.samples.push(sample);
    }

    fn shortest_wait(&self) -> u64 {
        match self.level {
            0 => 0,
            level => SHORTEST_WAIT_NS << (level - 1),
        }
    }

    fn thin_out(&mut self) {
        self.level += 1;
        let shortest = self.shortest_wait();
        let before = self.samples.len();
        let mut running = false;
        self.samples.retain_mut(|sample| {
            if sample.is_on_cpu {
                sample.weight_ns *= 2;
                running = !running;
                return running;
            }
            let kept = keep_wait(&mut self.carried, sample.tid, sample.weight_ns, shortest);
            sample.weight_ns = kept.unwrap_or_default();
            kept.is_some()
        });
        self.thinned += (before - self.samples.len()) as u64;
        self.bytes = self.samples.iter().map(|sample| sample.raw.size()).sum();
    }
}

/// What a wait counts for, if it is long enough with those before it that were not.
fn keep_wait(
    carried: &mut HashMap<i32, u64>,
    tid: i32,
    weight_ns: u64,
    shortest: u64,
) -> Option<u64> {
    let weight_ns = weight_ns + carried.remove(&tid).unwrap_or_default();
    if weight_ns < shortest {
        carried.insert(tid, weight_ns);
        return None;
    }
    Some(weight_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at_ns: u64, tid: i32, kind: Kind) -> Record {
        Record {
            at_ns,
            pid: 1,
            tid,
            kind,
        }
    }

    fn weights(store: &Store, is_on_cpu: bool) -> Vec<u64> {
        let samples = store.samples.iter();
        samples
            .filter(|sample| sample.is_on_cpu == is_on_cpu)
            .map(|sample| sample.weight_ns)
            .collect()
    }

    #[test]
    fn a_wait_weighs_what_it_took() {
        let mut store = Store::new(500, LIMIT);
        let left = Kind::Left {
            is_preempted: false,
        };
        store.add(record(10, 1, Kind::Leaving(Raw::default())));
        store.add(record(11, 1, left));
        store.add(record(20, 2, Kind::Leaving(Raw::default())));
        store.add(record(40, 1, Kind::Back));
        store.finish(100);
        assert_eq!(weights(&store, false), [30, 80]);
    }

    #[test]
    fn who_is_preempted_does_not_wait() {
        let mut store = Store::new(500, LIMIT);
        store.add(record(10, 1, Kind::Leaving(Raw::default())));
        store.add(record(11, 1, Kind::Left { is_preempted: true }));
        store.add(record(40, 1, Kind::Back));
        store.finish(100);
        assert!(store.samples.is_empty());
        assert_eq!(store.lost, 0);
    }

    #[test]
    fn a_wait_without_an_end_is_lost() {
        let mut store = Store::new(500, LIMIT);
        store.add(record(10, 1, Kind::Leaving(Raw::default())));
        store.add(record(20, 1, Kind::Running(Raw::default())));
        store.finish(100);
        assert_eq!((weights(&store, false), store.lost), (vec![], 1));
    }

    #[test]
    fn sums_stay_right_when_it_is_thinned_out() {
        let raw = || Raw {
            stack: vec![0; 1000].into(),
            ..Raw::default()
        };
        let mut store = Store::new(500, 100 << 10);
        let mut waited = 0;
        for round in 0..2_000_u64 {
            let at_ns = round * 1_000_000;
            store.add(record(at_ns, 1, Kind::Running(raw())));
            let length = if round % 100 == 0 { 900_000 } else { 10_000 };
            waited += length;
            store.add(record(at_ns + 10, 1, Kind::Leaving(raw())));
            store.add(record(at_ns + 10 + length, 1, Kind::Back));
        }
        store.finish(2_000_000_000);
        assert!(store.bytes <= store.limit);
        assert_eq!(
            store.thinned + store.samples.len() as u64,
            4_000,
            "each is kept or counted"
        );
        let off: u64 = weights(&store, false).iter().sum();
        let carried: u64 = store.carried.values().sum();
        assert_eq!(off + carried, waited);
        let on: u64 = weights(&store, true).iter().sum();
        let expected = 2_000 * 500;
        assert!(
            on.abs_diff(expected) <= expected / 10,
            "{on} for {expected}"
        );
    }
}
