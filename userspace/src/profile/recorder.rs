//! Records a start-up while it goes on.

use std::collections::HashMap;

use super::{
    Profile, Stacks, Subject, assemble,
    record::Record,
    stacks::{self, Counts, Sampler},
};
use crate::{
    host::Clocks,
    tree::HostPid,
    watch::{Event, Recording, WatchError},
};

/// What is recorded of a tree; see [`Recording`] for how long.
pub struct Recorder {
    recording: Recording,
    record: Record,
    events: Vec<Event>,
    /// Stacks per second and thread; 0 for none.
    frequency: u32,
    sampler: Option<Sampler>,
}

impl Recorder {
    /// `frequency` is how often the stack of a running thread is sampled, per second; 0 for not at all.
    pub fn new(recording: Recording, frequency: u32) -> Self {
        Self {
            recording,
            record: Record::default(),
            events: vec![],
            frequency,
            sampler: None,
        }
    }

    /// Records from now on, and not from the first execution of a program.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn begin(&mut self) -> Result<(), WatchError> {
        self.recording.begin()?;
        self.record.origin_ns = Some(Clocks::now().monotonic_ns);
        Ok(())
    }

    /// Samples the stacks of a process, and of all that it makes from now on. Without the permission to do
    /// so, the profile has none.
    pub fn sample(&mut self, root: HostPid) {
        if self.frequency == 0 {
            return;
        }
        match Sampler::attach(root.0, self.frequency) {
            Ok(sampler) => self.sampler = Some(sampler),
            Err(error) => self.go_without(&error),
        }
    }

    fn go_without(&mut self, error: &stacks::Error) {
        tracing::warn!("no stacks are sampled: {error}");
        self.sampler = None;
    }

    /// Waits for something else, and takes what is recorded meanwhile.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn during<T>(&mut self, other: impl Future<Output = T>) -> Result<T, WatchError> {
        tokio::pin!(other);
        loop {
            tokio::select! {
                outcome = &mut other => return Ok(outcome),
                recorded = self.turn() => recorded?,
            }
        }
    }

    /// Takes what has been recorded when there is something. Can be cancelled.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn turn(&mut self) -> Result<(), WatchError> {
        let sampled = async {
            match &mut self.sampler {
                Some(sampler) => sampler.drain().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            there_is = self.recording.wait() => {
                there_is?;
                self.drain();
            }
            drained = sampled => if let Err(error) = drained {
                self.go_without(&error);
            },
        }
        Ok(())
    }

    fn drain(&mut self) {
        let Self {
            recording, record, ..
        } = self;
        recording.drain(|item| record.take(item));
    }

    /// Takes note of what the watch saw.
    pub fn event(&mut self, event: &Event) {
        self.events.push(event.clone());
    }

    /// Makes the profile. The tree should be there still, as threads are asked for their names.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn finish(mut self, subject: Subject) -> Result<Profile, WatchError> {
        let totals = self.recording.totals()?;
        let samples = self.sampler.take().map(Sampler::finish);
        self.drain();
        let (stacks, counts) = match (samples, self.record.origin_ns) {
            (Some(samples), Some(origin_ns)) => samples.resolve(origin_ns, &self.namespace_pids()),
            _ => (Stacks::default(), Counts::default()),
        };
        let mut profile = assemble(&self.record, &totals, &self.events, (subject, stacks));
        profile.lost.samples = counts.lost + counts.thinned;
        profile.lost.stacks_cut = counts.cut;
        Ok(profile)
    }

    /// The pids that the processes know themselves by, by those of the host.
    fn namespace_pids(&self) -> HashMap<i32, i32> {
        let alive = self.record.alive();
        let alive = alive.map(|(_, thread)| self.record.threads[thread as usize].tgid as i32);
        let known = alive.filter_map(|pid| {
            let status = procfs::process::Process::new(pid).ok()?.status().ok()?;
            Some((pid, *status.nspid?.last()?))
        });
        known.collect()
    }
}
