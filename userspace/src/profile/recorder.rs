//! Records a start-up while it goes on.

use super::{Profile, Subject, assemble, record::Record};
use crate::{
    host::Clocks,
    watch::{Event, Recording, WatchError},
};

/// What is recorded of a tree; see [`Recording`] for how long.
pub struct Recorder {
    recording: Recording,
    record: Record,
    events: Vec<Event>,
}

impl Recorder {
    pub fn new(recording: Recording) -> Self {
        Self {
            recording,
            record: Record::default(),
            events: vec![],
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
        self.recording.wait().await?;
        self.drain();
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
        self.drain();
        Ok(assemble(&self.record, &totals, &self.events, subject))
    }
}
