//! The capture point `warm`: the server is asked until it has done what it does only once, and frozen
//! when nobody is connected to it any more.

use std::time::Duration;

use super::{CaptureError, Options, Progress, start_up::StartUp};
use crate::{
    freeze::{self, FrozenTree},
    output::Output,
    spawn::Sandbox,
    target::Target,
    tree,
};

/// How long a server may take to close the connections of the requests.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// How often its connections are looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Sends the requests.
pub async fn warm_up(
    sandbox: &mut Sandbox,
    output: &mut Output,
    start_up: &mut StartUp<'_>,
    options: &Options,
    progress: &mut impl FnMut(Progress),
) -> Result<(), CaptureError> {
    let listener = start_up.ready_on.as_ref();
    let listener = listener.or(start_up.listens.first()).cloned();
    let folder = &options.command.working_directory;
    let server = listener.map(|listener| Target::of_listener(&listener, folder));
    let server = server.ok_or(CaptureError::NoListener)?;
    for (number, warmup) in options.warmups.iter().enumerate() {
        progress(Progress::WarmingUp {
            warmup: number + 1,
            warmups: options.warmups.len(),
        });
        tokio::select! {
            outcome = warmup.run(&server, options.limit) => outcome?,
            status = sandbox.exit() => {
                output.drained().await;
                return Err(CaptureError::ExitedEarly {
                    command: start_up.command(),
                    awaited: "had answered all requests",
                    status: crate::instance::describe_status(status?),
                    output: output.last_lines(),
                });
            }
        }
    }
    start_up.add("warm-up done");
    Ok(())
}

/// Freezes the tree when nobody is connected to it. Who connects meanwhile lets it go on, and is
/// waited for.
pub async fn freeze_idle(
    sandbox: &mut Sandbox,
    options: &Options,
) -> Result<FrozenTree, CaptureError> {
    let deadline = tokio::time::Instant::now() + IDLE_LIMIT;
    loop {
        let connections = tree::connections(&tree::descendants(sandbox.init()));
        if connections.is_empty() || options.tcp_close {
            let tree = freeze::freeze(sandbox).await?;
            if tree.connections.is_empty() || options.tcp_close {
                return Ok(tree);
            }
            sandbox.signal_all(libc::SIGCONT).await?;
        } else if tokio::time::Instant::now() > deadline {
            return Err(CaptureError::Busy {
                connections,
                limit: IDLE_LIMIT,
            });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
