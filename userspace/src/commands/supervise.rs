//! What a foreground supervisor does: signals reach the server, and its exit status is ours.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{error::Error, instance, output::Output, restore::RestoreError, spawn::Sandbox};

/// The signals that are passed on. See the help of `restore`.
const FORWARDED: [i32; 6] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Signals to this process, caught from the making of this on.
pub struct Signals {
    caught: Vec<(i32, Signal)>,
    /// Taken while there was no server yet to pass them on to.
    kept: Vec<i32>,
}

impl Signals {
    /// Catches the signals that are passed on.
    ///
    /// # Errors
    /// [`Error::Runtime`].
    pub fn catch() -> Result<Self, Error> {
        let catch = |number| Ok((number, signal(SignalKind::from_raw(number))?));
        let caught: Result<Vec<_>, _> = FORWARDED.into_iter().map(catch).collect();
        caught
            .map(|caught| Self {
                caught,
                kept: vec![],
            })
            .map_err(Error::Runtime)
    }

    /// Keeps the signals that come for the server, which may answer before its restore is seen to
    /// be complete. Completes when one asked to end and was not heard for a second.
    pub async fn overdue(&mut self) {
        const GRACE: std::time::Duration = std::time::Duration::from_secs(1);
        loop {
            let number = self.next().await;
            self.kept.push(number);
            if matches!(number, libc::SIGTERM | libc::SIGINT | libc::SIGQUIT) {
                return tokio::time::sleep(GRACE).await;
            }
        }
    }

    /// Waits for the next one. Can be cancelled without losing one.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.caught {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Waits for one that asks to end.
    pub async fn ended(&mut self) {
        while !matches!(
            self.next().await,
            libc::SIGTERM | libc::SIGINT | libc::SIGHUP
        ) {}
    }
}

/// Supervises a server until it ends; returns its exit code.
pub async fn supervise(
    sandbox: &mut Sandbox,
    output: Option<&mut Output>,
    signals: &mut Signals,
) -> Result<u8, RestoreError> {
    for number in std::mem::take(&mut signals.kept) {
        // If the server has just ended, its exit is the next thing to be told of.
        let _ = sandbox.signal(number).await;
    }
    let status = loop {
        tokio::select! {
            status = sandbox.exit() => break status?,
            number = signals.next() => {
                let _ = sandbox.signal(number).await;
            }
        }
    };
    if let Some(output) = output {
        output.drained().await;
    }
    Ok(instance::exit_code(status))
}
