//! Measures start-up: cold starts and restores in turn, seen from outside.
//!
//! Invariant: every subject is started and asked in the same way, and whatever a run started is
//! gone when it is over.

pub mod choice;
pub mod gate;
mod meter;
pub mod results;
mod run;
pub mod statistics;
mod surroundings;
pub mod warnings;

use std::{
    io,
    os::unix::{fs::FileTypeExt as _, net::UnixStream},
    path::PathBuf,
    time::Duration,
};

pub use self::{results::Results, run::RunError};
use self::{
    results::{Image, Settings, Subject as Measured, SubjectKind},
    surroundings::Watcher,
};
use crate::{cgroup, criu::Version, spawn::Command, sys, target::Target};

/// Why there are no results.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("cannot make a control group to hold what a run starts")]
    Cgroup(#[source] io::Error),
    #[error("run {run} of {runs} ({subject}{}) failed", if *.warmup { ", to warm up" } else { "" })]
    Run {
        run: usize,
        runs: usize,
        warmup: bool,
        subject: String,
        /// The end of what the server wrote.
        output: Vec<String>,
        source: Box<RunError>,
    },
    #[error("cannot read facts about this host")]
    Host(#[source] io::Error),
    #[error("interrupted")]
    Interrupted,
}

/// Something to start, again and again.
pub struct Subject {
    pub kind: SubjectKind,
    pub command: Command,
    pub image: Option<Image>,
    /// How long it may take to end by itself after a SIGTERM, before it is killed.
    pub grace: Duration,
    /// Where it leaves the timings of a restore.
    pub timings: Option<PathBuf>,
}

/// The time that service managers give.
pub const GRACE: Duration = Duration::from_secs(10);

/// What to measure, and how.
pub struct Options {
    /// Started in this order, in each round.
    pub subjects: Vec<Subject>,
    /// The command that the subjects are ways to start.
    pub command: Vec<String>,
    pub target: Target,
    pub settings: Settings,
    /// How long a run may take until its last response.
    pub limit: Duration,
    pub criu: Version,
    /// Unix sockets of the server. One that was killed leaves its path behind, and the next
    /// cannot bind to it.
    pub sockets: Vec<PathBuf>,
}

/// Where a measurement is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub run: usize,
    pub runs: usize,
    pub warmup: bool,
    pub subject: &'a str,
}

/// Measures. `interrupted` ends it when it completes. Nothing is left running, whatever the
/// outcome.
///
/// # Errors
/// See [`BenchError`].
pub async fn measure(
    options: &Options,
    interrupted: impl Future<Output = ()>,
    progress: impl FnMut(Progress<'_>),
) -> Result<Results, BenchError> {
    tokio::select! {
        results = measure_all(options, progress) => results,
        () = interrupted => Err(BenchError::Interrupted),
    }
}

async fn measure_all(
    options: &Options,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<Results, BenchError> {
    let Settings {
        runs, warmup_runs, ..
    } = options.settings;
    // The client would otherwise wait for its turn, some milliseconds, where a start keeps all
    // processors busy. Where that is not allowed, its resolution tells.
    if let Err(error) = sys::run_first() {
        tracing::info!("the client runs at ordinary priority: {error}");
    }
    // The captures before took some 30 MB, and each run begins with a fork: 1.5 ms of it.
    sys::give_back_memory();
    let groups = cgroup::Parent::open().map_err(BenchError::Cgroup)?;
    let sockets = Sockets(&options.sockets);
    let subjects = options.subjects.iter().map(|subject| Measured {
        kind: subject.kind.clone(),
        command: subject.command.words(),
        image: subject.image.clone(),
        samples: vec![],
    });
    let mut measured: Vec<Measured> = subjects.collect();
    let mut watcher = Watcher::start().map_err(BenchError::Host)?;
    for round in 0..warmup_runs + runs {
        let warmup = round < warmup_runs;
        let (run, runs) = match warmup {
            true => (round + 1, warmup_runs),
            false => (round + 1 - warmup_runs, runs),
        };
        for (subject, measured) in options.subjects.iter().zip(&mut measured) {
            let name = subject.kind.to_string();
            progress(Progress {
                run,
                runs,
                warmup,
                subject: &name,
            });
            sockets.remove_stale();
            let outcome = run::run(options, subject, &groups, &mut watcher).await;
            let sample = outcome.map_err(|(source, output)| BenchError::Run {
                run,
                runs,
                warmup,
                subject: name,
                output,
                source: Box::new(source),
            })?;
            if !warmup {
                measured.samples.push(sample);
            }
        }
    }
    Results::new(options, measured, watcher.end().map_err(BenchError::Host)?)
        .map_err(BenchError::Host)
}

/// The paths of a server's sockets, cleared before each run and at the end.
struct Sockets<'a>(&'a [PathBuf]);

impl Sockets<'_> {
    /// Removes those that nobody listens on.
    fn remove_stale(&self) {
        for path in self.0 {
            let is_socket = path
                .symlink_metadata()
                .is_ok_and(|found| found.file_type().is_socket());
            let refused = UnixStream::connect(path).map_err(|error| error.kind());
            if is_socket && matches!(refused, Err(io::ErrorKind::ConnectionRefused)) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Drop for Sockets<'_> {
    fn drop(&mut self) {
        self.remove_stale();
    }
}
