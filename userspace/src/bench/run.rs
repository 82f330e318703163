//! One run: start a subject, ask it from outside, read what it has used, end it.

use std::{
    io,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    Options, Subject, meter,
    results::{Sample, Usage},
    surroundings::{Watcher, own_cpu_time},
};
use crate::{
    cgroup::{self, Cgroup},
    client::{self, Answer, AskError, Client},
    instance::describe_status,
    output::Output,
    restore::Parts,
    spawn::{Child, SpawnError},
    target::ExpectedStatus,
    tree,
};

/// How often a group is looked at for its end.
const INTERVAL: Duration = Duration::from_millis(1);

/// The time between two runs. The kernel has done with what the one before has left behind by then, above
/// all with the tracepoint of the guard: to be attached again to one that nothing was attached to any more
/// waits for the grace periods of RCU (up to 20 ms).
const PAUSE: Duration = Duration::from_millis(50);

/// Why a run gave no sample.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{at} is already taken by {holder}")]
    Taken { at: String, holder: String },
    #[error("cannot start it")]
    Start(#[from] SpawnError),
    #[error("it ended before it had answered: {status}")]
    Ended { status: String },
    #[error("no {} from {at} within {} s", ordinal(*.response), .limit.as_secs_f64())]
    NoAnswer {
        at: String,
        response: usize,
        limit: Duration,
        /// Why the last try failed.
        source: Option<AskError>,
    },
    #[error("{at} answered with status {found}, not {expected}")]
    Status {
        at: String,
        found: u16,
        expected: ExpectedStatus,
    },
    #[error("cannot ask {at}")]
    Ask { at: String, source: AskError },
    #[error("cannot drop the page cache (/proc/sys/vm/drop_caches)")]
    DropCaches(#[source] io::Error),
    #[error("cannot read what it has used")]
    Meter(#[source] io::Error),
    #[error("cannot hold it in a control group")]
    Cgroup(#[source] io::Error),
    #[error("cannot make pipes for its output")]
    Output(#[source] io::Error),
}

fn ordinal(response: usize) -> String {
    match response {
        1 => "response".to_owned(),
        number => format!("response {number}"),
    }
}

/// Starts a subject and measures it until its last response. A failure comes with the end of
/// what the server wrote.
pub async fn run(
    options: &Options,
    subject: &Subject,
    groups: &cgroup::Parent,
    watcher: &mut Watcher,
) -> Result<Sample, (RunError, Vec<String>)> {
    let nothing = |error| (error, vec![]);
    if client::is_taken(&options.target).await {
        return Err(nothing(taken(options)));
    }
    if options.settings.drop_caches {
        drop_caches().map_err(|error| nothing(RunError::DropCaches(error)))?;
    }
    let group = groups
        .create()
        .map_err(|error| nothing(RunError::Cgroup(error)))?;
    let (mut output, [stdout, stderr]) =
        Output::new(false).map_err(|error| nothing(RunError::Output(error)))?;
    let mut client = Client::new(&options.target).map_err(|source| {
        let at = options.target.to_string();
        nothing(RunError::Ask { at, source })
    })?;

    let timings = subject.timings.as_deref();
    // That of the run before, which must not pass for that of this one.
    let _ = timings.map(std::fs::remove_file);
    let begun = Instant::now();
    let started = Child::start(
        &subject.command,
        stdout.as_fd(),
        stderr.as_fd(),
        group.as_fd(),
    );
    drop((stdout, stderr));
    let mut child = started.map_err(|error| nothing(error.into()))?;
    let measured = tokio::select! {
        biased;
        measured = measure(options, &mut client, &group, watcher, begun) => measured,
        status = ended(&mut child, &group) => Err(match status {
            Ok(status) => RunError::Ended { status: describe_status(status) },
            Err(error) => RunError::Meter(error),
        }),
    };
    end(&mut child, &group, subject.grace).await;
    watcher.add_run(group.cpu_time().unwrap_or_default());
    drop((child, group));
    tokio::time::sleep(PAUSE).await;
    match measured {
        Ok(sample) => Ok(Sample {
            timings: timings.and_then(|path| Parts::stored(path, begun)),
            ..sample
        }),
        Err(error) => {
            output.drained().await;
            Err((error, output.last_lines()))
        }
    }
}

fn taken(options: &Options) -> RunError {
    let listeners = options.target.listeners();
    let holder = listeners.iter().find_map(tree::holder);
    RunError::Taken {
        at: options.target.to_string(),
        holder: holder.unwrap_or_else(|| "another process".to_owned()),
    }
}

/// Empties the page cache of the whole machine; see proc_sys_vm(5).
fn drop_caches() -> io::Result<()> {
    // Pages that are not written yet are not dropped.
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3\n")
}

async fn measure(
    options: &Options,
    client: &mut Client<'_>,
    group: &Cgroup,
    watcher: &mut Watcher,
    begun: Instant,
) -> Result<Sample, RunError> {
    let mut limit = Limit {
        options,
        end: tokio::time::Instant::from_std(begun + options.limit),
    };
    let own_before = own_cpu_time();
    let first = limit.ask(client, begun, 1).await?;
    let own = own_cpu_time() - own_before;
    watcher.add_wait(first.end - begun, own);

    // The clock stands still while memory is read, which takes long if there is much of it.
    let paused = Instant::now();
    let usage: Usage = meter::usage(group).map_err(RunError::Meter)?;
    let pause = paused.elapsed();
    limit.end += pause;
    let mut last = first.end - begun;
    for response in 2..=options.settings.requests {
        let answer = limit.ask(client, begun, response).await?;
        last = answer.end - begun - pause;
    }
    let ns = |time: Duration| time.as_nanos() as u64;
    Ok(Sample {
        listening_ns: ns(first.connected - begun),
        first_byte_ns: ns(first.first_byte - begun),
        first_response_ns: ns(first.end - begun),
        last_response_ns: ns(last),
        resolution_ns: ns(first.resolution),
        usage,
        timings: None,
    })
}

struct Limit<'a> {
    options: &'a Options,
    end: tokio::time::Instant,
}

impl Limit<'_> {
    async fn ask(
        &self,
        client: &mut Client<'_>,
        begun: Instant,
        response: usize,
    ) -> Result<Answer, RunError> {
        let at = || self.options.target.to_string();
        let asked = tokio::time::timeout_at(self.end, client.ask_until_answered(begun)).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(source)) => return Err(RunError::Ask { at: at(), source }),
            Err(_) => {
                return Err(RunError::NoAnswer {
                    at: at(),
                    response,
                    limit: self.options.limit,
                    source: client.last_error.take(),
                });
            }
        };
        match answer.status {
            Some(found) if !self.options.settings.status.accepts(found) => Err(RunError::Status {
                at: at(),
                found,
                expected: self.options.settings.status,
            }),
            _ => Ok(answer),
        }
    }
}

/// Waits until the process failed, or nothing runs any more; returns its wait status. One that
/// went to the background has ended well.
async fn ended(child: &mut Child, group: &Cgroup) -> io::Result<i32> {
    let status = child.exit().await?;
    while status == 0 && group.is_populated() {
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(status)
}

/// Ends a server as a service manager does: SIGTERM, and SIGKILL for what is left.
async fn end(child: &mut Child, group: &Cgroup, grace: Duration) {
    child.signal(Signal::TERM);
    let gone = async {
        let _ = child.exit().await;
        // What it did not end itself: the server of a script, or one in the background.
        for pid in group.processes() {
            tree::signal(pid, Signal::TERM);
        }
        while group.is_populated() {
            tokio::time::sleep(INTERVAL).await;
        }
    };
    let _ = tokio::time::timeout(grace, gone).await;
}
