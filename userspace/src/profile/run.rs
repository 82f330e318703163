//! Runs a server and records its start-up.

use std::time::{Duration, Instant};

use super::{Profile, Recorder, Subject};
use crate::{
    capture::{
        CaptureError, Options, Progress,
        start_up::{self, StartUp},
    },
    client::Client,
    host::Clocks,
    output::Output,
    spawn::Sandbox,
    target::Target,
    watch::{CapturePoint, Watch},
};

/// What came of it.
pub struct Profiled {
    pub profile: Profile,
    /// The server, if it was left running.
    pub running: Option<(Sandbox, Output)>,
    /// Why it goes only as far as it does: the server ended, took too long, or was interrupted.
    pub failure: Option<CaptureError>,
}

/// Starts a command and records what it does until it is at the point, or until it has answered the
/// first request, if there is something to ask. `interrupted` ends it when it completes. Of a start-up
/// that fails there is a profile as well.
///
/// # Errors
/// See [`CaptureError`].
pub async fn profile(
    options: &Options,
    asked: Option<&Target>,
    interrupted: impl Future<Output = ()>,
    mut progress: impl FnMut(Progress),
) -> Result<Profiled, CaptureError> {
    let (mut sandbox, mut output) = start_up::sandbox_without_images(&options.command).await?;
    progress(Progress::Attaching);
    let runs_on = options.leave_running || asked.is_some();
    let runs_on = runs_on || options.point == CapturePoint::Warm;
    let stop_at = Some(options.point).filter(|_| !runs_on);
    let (mut watch, recording) = Watch::attach_recording(stop_at, options.how.listener.as_ref())?;
    let mut recorder = Recorder::new(recording, options.profiled.unwrap_or(0));
    let mut start_up = StartUp::new(options);
    start_up.runs_on = runs_on;
    let at_point = async {
        let reached = start_up.run(
            &mut sandbox,
            (&mut watch, None),
            &mut output,
            Some(&mut recorder),
            &mut progress,
        );
        reached.await?;
        match asked {
            Some(target) => {
                let answered = first_response(&mut recorder, target, options.limit);
                answered.await.map(Some)
            }
            None => Ok(None),
        }
    };
    let outcome = tokio::select! {
        outcome = at_point => outcome,
        () = interrupted => Err(CaptureError::Interrupted),
    };
    let (response_ns, failure) = match outcome {
        Ok(response_ns) => (response_ns, None),
        Err(error) if has_begun(&error) => (None, Some(error)),
        Err(error) => return Err(error),
    };
    let subject = Subject {
        command: options.command.words(),
        point: options.point,
        end_ns: match failure {
            None => response_ns.unwrap_or(start_up.stop_ns),
            Some(_) => Clocks::now().monotonic_ns,
        },
        restored_ns: None,
        response_ns,
    };
    let mut profile = recorder.finish(subject)?;
    profile.lost.events += watch.dropped()?;
    drop(watch);
    let running = options.leave_running.then_some((sandbox, output));
    Ok(Profiled {
        profile,
        running,
        failure,
    })
}

/// Whether there is a start-up to tell of, though not to its end.
fn has_begun(error: &CaptureError) -> bool {
    matches!(
        error,
        CaptureError::ExitedEarly { .. }
            | CaptureError::Timeout(_)
            | CaptureError::NoResponse { .. }
            | CaptureError::Interrupted
    )
}

/// Asks until there is a response; returns when it was complete, in the clock of the record.
///
/// # Errors
/// [`CaptureError::NoResponse`] or [`CaptureError::Watch`].
pub async fn first_response(
    recorder: &mut Recorder,
    target: &Target,
    limit: Duration,
) -> Result<u64, CaptureError> {
    let no_response = |source| CaptureError::NoResponse {
        url: target.to_string(),
        limit,
        source,
    };
    let mut client = Client::new(target).map_err(|error| no_response(Some(error)))?;
    let asked = client.ask_when_listening(Instant::now());
    match recorder.during(tokio::time::timeout(limit, asked)).await? {
        Ok(Ok(answer)) => {
            let ago = answer.end.elapsed().as_nanos() as u64;
            Ok(Clocks::now().monotonic_ns.saturating_sub(ago))
        }
        Ok(Err(error)) => Err(no_response(Some(error))),
        Err(_) => Err(no_response(client.last_error.take())),
    }
}
