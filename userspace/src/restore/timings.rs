//! Where the time of a restore goes: parts that follow one another and add up to the whole.
//!
//! A restore that `bench` started leaves them in a file, which is read when the run is over: so
//! they cost the run next to nothing.

use std::{fs, io, path::Path, time::Instant};

use serde::{Deserialize, Serialize};

use crate::{edit::RestoreStatistics, host::Clocks};

/// The parts, in microseconds and in the order of the flow. One that is unknown is in
/// [`other_us`](Self::other_us).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parts {
    /// From the fork of the program to its first line. Only who started it knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_us: Option<u64>,
    /// Reading the command line, opening the store, finding the image.
    pub image_us: u64,
    /// Whatever could be in the way; the instance's folder and group; the view of the image.
    pub checks_us: u64,
    /// Whether the image fits this host and the files that its processes hold.
    pub fit_us: u64,
    /// Making the namespaces, with init in them, and their network.
    pub namespaces_us: u64,
    /// From the order to start CRIU until its own clock starts, which is when it has read the
    /// inventory of the image.
    pub criu_start_us: Option<u64>,
    /// Of CRIU's own restore time: the root of the tree forks its children.
    pub criu_forking_us: Option<u64>,
    /// The rest of that time.
    pub criu_restoring_us: Option<u64>,
    /// Catching and resuming the tree, until the answer is here.
    pub criu_end_us: Option<u64>,
    /// Both, where it is not known which of it is which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub criu_rest_us: Option<u64>,
    /// Until the server listens by itself, if its image is of before that.
    pub listening_us: Option<u64>,
    /// Making the instance known, its limits included.
    pub record_us: u64,
    pub hooks_us: u64,
    pub other_us: u64,
    pub total_us: u64,
    /// What CRIU counted; sizes are in pages.
    #[serde(flatten)]
    pub pages: Pages,
}

/// Pages of memory, as CRIU counts them (`RestoreStatsEntry` of its `images/stats.proto`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pages {
    /// Copied into the tree.
    pub pages_restored: Option<u64>,
    /// Those that a process has from its parent, and that were compared with the image.
    pub pages_compared: Option<u64>,
    /// Of them, those that are the same, and so left shared.
    pub pages_skipped_cow: Option<u64>,
}

impl Parts {
    /// What each part is called, in order, with its time; the total is not among them.
    pub fn rows(&self) -> [(&'static str, Option<u64>); 14] {
        [
            ("start of warmimg", self.process_us),
            ("image", Some(self.image_us)),
            ("checks", Some(self.checks_us)),
            ("fit", Some(self.fit_us)),
            ("namespaces and init", Some(self.namespaces_us)),
            ("CRIU start", self.criu_start_us),
            ("CRIU forking", self.criu_forking_us),
            ("CRIU restoring", self.criu_restoring_us),
            ("CRIU end", self.criu_end_us),
            ("CRIU start and end", self.criu_rest_us),
            ("listening", self.listening_us),
            ("record", Some(self.record_us)),
            ("hooks", Some(self.hooks_us)),
            ("other", Some(self.other_us)),
        ]
    }

    /// All of CRIU, from when it is seen whether the image fits to its answer.
    pub fn criu_us(&self) -> u64 {
        let parts = [
            self.criu_start_us,
            self.criu_forking_us,
            self.criu_restoring_us,
            self.criu_end_us,
            self.criu_rest_us,
        ];
        parts.into_iter().flatten().sum()
    }

    /// Splits the time of CRIU, of which its clock started at `began`.
    pub(super) fn split_criu(
        &mut self,
        whole: u64,
        began: Option<u64>,
        counted: Option<RestoreStatistics>,
    ) {
        let Some(counted) = counted else {
            self.criu_rest_us = Some(whole);
            return;
        };
        self.pages = Pages {
            pages_restored: counted.pages_restored,
            pages_compared: counted.pages_compared,
            pages_skipped_cow: counted.pages_skipped_cow,
        };
        let restore = counted.restore_us.min(whole);
        let forking = counted.forking_us.min(restore);
        self.criu_forking_us = Some(forking);
        self.criu_restoring_us = Some(restore - forking);
        let Some(began) = began else {
            self.criu_rest_us = Some(whole - restore);
            return;
        };
        // Seen late where all processors are busy.
        let start = began.min(whole - restore);
        self.criu_start_us = Some(start);
        self.criu_end_us = Some(whole - restore - start);
    }

    /// Sets the total; what is in no part is left over.
    pub(super) fn finish(&mut self, total: u64) {
        self.other_us = 0;
        let known: u64 = self.rows().iter().filter_map(|(_, time)| *time).sum();
        self.total_us = total;
        self.other_us = total.saturating_sub(known);
    }

    /// Leaves them in a file, with the moment that they count from.
    ///
    /// # Errors
    /// What writing a file says.
    pub fn store(self, path: &Path, since: Instant) -> io::Result<()> {
        let stored = Stored {
            since_ns: monotonic_ns(since),
            parts: self,
        };
        fs::write(path, serde_json::to_vec(&stored)?)
    }

    /// Reads what a restore left that was started at `started`; none if it did not get there.
    pub fn stored(path: &Path, started: Instant) -> Option<Self> {
        let Stored {
            since_ns,
            mut parts,
        } = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let process = since_ns.saturating_sub(monotonic_ns(started)) / 1000;
        parts.process_us = Some(process);
        parts.total_us += process;
        Some(parts)
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// On the monotonic clock.
    since_ns: u64,
    parts: Parts,
}

fn monotonic_ns(instant: Instant) -> u64 {
    let passed = instant.elapsed().as_nanos() as u64;
    Clocks::now().monotonic_ns.saturating_sub(passed)
}

/// A clock for parts that follow one another.
pub(super) struct Stopwatch {
    begun: Instant,
    last_us: u64,
}

impl Stopwatch {
    pub(super) fn since(begun: Instant) -> Self {
        Self { begun, last_us: 0 }
    }

    /// The microseconds since the last lap. They add up.
    pub(super) fn lap(&mut self) -> u64 {
        let now = self.total();
        now - std::mem::replace(&mut self.last_us, now)
    }

    /// The microseconds from the last lap to a moment, if there was one.
    pub(super) fn until(&self, moment: Option<Instant>) -> Option<u64> {
        let passed = moment?.saturating_duration_since(self.begun).as_micros() as u64;
        Some(passed.saturating_sub(self.last_us))
    }

    pub(super) fn total(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(parts: &Parts) -> u64 {
        parts.rows().iter().filter_map(|(_, time)| *time).sum()
    }

    #[test]
    fn parts_add_up_whatever_is_known() {
        let counted = RestoreStatistics {
            forking_us: 100,
            restore_us: 5000,
            ..RestoreStatistics::default()
        };
        for (began, counted, start_and_end) in [
            (Some(3000), Some(counted), Some((3000, 2000))),
            // Seen later than it can have been.
            (Some(9000), Some(counted), Some((5000, 0))),
            (None, Some(counted), None),
            (None, None, None),
        ] {
            let mut parts = Parts {
                image_us: 1000,
                ..Parts::default()
            };
            parts.split_criu(10_000, began, counted);
            parts.finish(11_500);
            let found = parts.criu_start_us.zip(parts.criu_end_us);
            assert_eq!((found, sum(&parts)), (start_and_end, 11_500));
            assert_eq!((parts.criu_us(), parts.other_us), (10_000, 500));
        }
    }

    #[test]
    fn laps_add_up() {
        let mut watch = Stopwatch::since(Instant::now());
        let laps: u64 = (0..1000).map(|_| watch.lap()).sum();
        assert_eq!(laps, watch.last_us);
        let early = watch.begun.checked_sub(std::time::Duration::from_secs(1));
        assert_eq!((watch.until(early), watch.until(None)), (Some(0), None));
    }

    #[test]
    fn what_a_restore_left_gets_the_time_before_its_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("timings.json");
        let mut parts = Parts {
            image_us: 700,
            ..Parts::default()
        };
        parts.finish(800);
        let since = Instant::now();
        let started = since - std::time::Duration::from_millis(2);
        assert_eq!(Parts::stored(&path, started), None);
        parts.store(&path, since).unwrap();
        let read = Parts::stored(&path, started).unwrap();
        let process = read.process_us.unwrap();
        assert!((1500..=2500).contains(&process), "{process}");
        assert_eq!((read.total_us, sum(&read)), (800 + process, 800 + process));
    }
}
