//! `capture --check`: whether a command could be captured, and what stands in the way.

use std::fs;

use super::{Attempt, CaptureError, Options, Progress};
use crate::{
    criu::{CriuError, Program},
    obstacle::{self, Obstacle, Obstacles},
    store::Store,
};

/// Starts a command, freezes it at the capture point, and looks for what stands in the way of an image;
/// where nothing does, CRIU dumps it, for it knows of more. The command is ended, and nothing kept.
///
/// # Errors
/// See [`CaptureError`]; what stands in the way is none.
pub async fn check(
    store: &Store,
    criu: &Program,
    options: &Options,
    interrupted: impl Future<Output = ()>,
    progress: impl FnMut(Progress),
) -> Result<Vec<Obstacle>, CaptureError> {
    let mut attempt = Attempt::new(store, criu, options).await?;
    let outcome = tokio::select! {
        outcome = attempt.rehearse(progress) => outcome,
        () = interrupted => Err(CaptureError::Interrupted),
    };
    match outcome {
        Ok(()) => Ok(vec![]),
        Err(CaptureError::Obstacles(Obstacles(found))) => Ok(found),
        Err(CaptureError::Connected { connections }) => {
            Ok(connections.iter().map(Obstacle::connection).collect())
        }
        Err(CaptureError::User(error)) => Ok(vec![Obstacle::users(&error)]),
        Err(CaptureError::Criu(CriuError::Failed {
            operation,
            message,
            lines,
            log,
        })) => match obstacle::in_log(&lines) {
            // Not known: the log is all there is.
            none if none.is_empty() => Err(CaptureError::Criu(CriuError::Failed {
                operation,
                message,
                lines,
                log,
            })),
            found => {
                let _ = fs::remove_file(log);
                Ok(found)
            }
        },
        Err(other) => Err(other),
    }
}

impl Attempt<'_> {
    /// Does what a capture does, up to the dump.
    async fn rehearse(&mut self, mut progress: impl FnMut(Progress)) -> Result<(), CaptureError> {
        let staging = self.staging.take().expect("an attempt is made once");
        let mut frozen = self.freeze(&mut progress).await?;
        self.dump(&staging, &mut frozen, &mut progress).await?;
        Ok(())
    }
}
