//! Captures of a server that runs on when it is ready: it is asked until it has done what it does
//! only once, the hooks are run, and it is frozen when nobody is connected to it any more.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{CaptureError, Options, Progress, start_up::StartUp};
use crate::{
    freeze::{self, FrozenTree},
    hook,
    listener::Listener,
    output::Output,
    spawn::Sandbox,
    target::Target,
    tree::{self, Connection, HostPid, Top},
};

/// How long a server may take to close the connections of the requests.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// How often its connections are looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Sends the requests and runs the hooks; returns the listener that took them.
pub async fn warm_up(
    (sandbox, output, start_up): (&mut Sandbox, &mut Output, &mut StartUp<'_>),
    options: &Options,
    progress: &mut impl FnMut(Progress),
) -> Result<Listener, CaptureError> {
    let listener = start_up.ready_on.as_ref();
    let listener = listener.or(start_up.listens.first()).cloned();
    let listener = listener.ok_or(CaptureError::NoListener)?;
    let init = sandbox.init();
    let mut awaited = "had answered all requests";
    let outcome = tokio::select! {
        outcome = async {
            request(&listener, options, start_up, progress).await?;
            awaited = "had been through all hooks";
            run_hooks(init, &listener, options, start_up, progress).await
        } => outcome,
        status = sandbox.exit() => {
            return Err(start_up.ended(Some(status?), output, awaited).await);
        }
    };
    outcome.map(|()| listener)
}

async fn request(
    listener: &Listener,
    options: &Options,
    start_up: &mut StartUp<'_>,
    progress: &mut impl FnMut(Progress),
) -> Result<(), CaptureError> {
    let warmups = &options.how.warmups;
    if warmups.is_empty() {
        return Ok(());
    }
    let server = Target::of_listener(listener, &options.command.working_directory);
    for (number, warmup) in warmups.iter().enumerate() {
        progress(Progress::WarmingUp {
            warmup: number + 1,
            warmups: warmups.len(),
        });
        warmup.run(&server, options.limit).await?;
    }
    start_up.add("warm-up done");
    Ok(())
}

async fn run_hooks(
    init: HostPid,
    listener: &Listener,
    options: &Options,
    start_up: &mut StartUp<'_>,
    progress: &mut impl FnMut(Progress),
) -> Result<(), CaptureError> {
    for hook in &options.how.before_freeze {
        progress(Progress::Hook {
            hook: hook.to_string(),
        });
        let subject = hook::Subject {
            moment: hook::Moment::BeforeFreeze,
            root: tree::children(init).first().copied(),
            name: &options.name,
            listeners: std::slice::from_ref(listener),
            folder: options.command.working_directory.clone(),
            variables: &[],
            limit: options.how.hook_limit,
        };
        hook.run(&subject).await?;
        start_up.add(&format!("hook {hook}"));
    }
    Ok(())
}

/// Freezes the tree when nobody is connected to the listener; returns how long the freeze took.
/// Who connects meanwhile lets the tree go on, and is waited for.
pub async fn freeze_idle(
    sandbox: &mut Sandbox,
    asked: &Listener,
) -> Result<(FrozenTree, Duration), CaptureError> {
    let deadline = Instant::now() + IDLE_LIMIT;
    let inbound = |connections: Vec<Connection>| -> Vec<Connection> {
        let asked = std::slice::from_ref(asked);
        let is_inbound = |connection: &Connection| connection.is_inbound(asked);
        connections.into_iter().filter(is_inbound).collect()
    };
    loop {
        let mut connections = inbound(tree::connections(&tree::descendants(sandbox.init())));
        if connections.is_empty() {
            let begun = Instant::now();
            let tree = freeze::freeze(Top::Init(sandbox.init()), None).await?;
            connections = inbound(tree.connections.clone());
            if connections.is_empty() {
                return Ok((tree, begun.elapsed()));
            }
            tree.signal(Signal::CONT);
        }
        if Instant::now() > deadline {
            return Err(CaptureError::Busy {
                connections,
                limit: IDLE_LIMIT,
            });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
