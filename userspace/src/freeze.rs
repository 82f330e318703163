//! Stops the whole tree once one of its processes was stopped at the capture point.
//!
//! Invariant: no process gets a second SIGSTOP. It would stay pending in one that stands still
//! already, and CRIU takes such a one for stopped only if no other signal is pending beside it.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    host::Clocks,
    listener::Listener,
    tree::{self, Connection, HostPid, Member, NsPid, Top, Vfork},
};

/// How long the processes may take to stop. A process stops as soon as it leaves the kernel, so
/// only uninterruptible waits take time.
const LIMIT: Duration = Duration::from_secs(10);

/// How long a child may take to leave vfork(2): it has only to execute a program, or to end.
const VFORK_LIMIT: Duration = Duration::from_secs(2);

/// How often is looked whether all have stopped.
const INTERVAL: Duration = Duration::from_micros(200);

/// Why the tree cannot be frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("some processes do not stop: {}", .busy.join("; "))]
    DoesNotStop { busy: Vec<String> },
    #[error(
        "{parent} waits in vfork for {child}, which has neither executed a program nor ended \
         within {} s", VFORK_LIMIT.as_secs()
    )]
    InVfork { parent: String, child: String },
    #[error("the command left several process trees: {}", .roots.join(", "))]
    SeveralRoots { roots: Vec<String> },
    #[error("the processes were gone when they should have been stopped")]
    Gone,
}

/// A stopped process tree.
pub struct FrozenTree {
    pub root: NsPid,
    /// The root is no session leader.
    pub foreign_session: bool,
    /// Parents before children.
    pub members: Vec<Member>,
    pub listeners: Vec<Listener>,
    /// To others, or from others that were accepted.
    pub connections: Vec<Connection>,
    /// What the tree's clocks showed last.
    pub clocks: Clocks,
}

impl FrozenTree {
    /// Sends a signal to all processes; SIGCONT lets them go on.
    pub fn signal(&self, signal: Signal) {
        for member in &self.members {
            tree::signal(member.host, signal);
        }
    }
}

/// Waits for the parents of a daemon, which may be about to end when it is ready already.
async fn let_parents_end(init: HostPid) {
    const PARENTS_LIMIT: Duration = Duration::from_millis(300);
    let begun = Instant::now();
    while tree::children(init).len() > 1 && begun.elapsed() < PARENTS_LIMIT {
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Stops every process of a tree and describes what stands still. `stopped` is the process that the
/// probe has stopped or is about to.
///
/// # Errors
/// See [`FreezeError`].
pub async fn freeze(top: Top, stopped: Option<HostPid>) -> Result<FrozenTree, FreezeError> {
    if let Top::Init(init) = top {
        let_parents_end(init).await;
    }
    let pids = stop_all(top, stopped).await?;
    let first = pids.first().ok_or(FreezeError::Gone)?;
    let clocks = Clocks::of(*first).map_err(|_| FreezeError::Gone)?;
    let members = tree::describe(&pids);
    let is_root = |member: &&Member| match top {
        Top::Init(_) => member.info.parent == NsPid(1),
        Top::Root(root) => member.host == root,
    };
    let roots: Vec<&Member> = members.iter().filter(is_root).collect();
    let (root, foreign_session) = match roots[..] {
        [root] => (root.info.pid, root.session != root.info.pid),
        [] => return Err(FreezeError::Gone),
        _ => {
            let name = |m: &&Member| format!("{} (pid {})", m.info.name, m.host);
            return Err(FreezeError::SeveralRoots {
                roots: roots.iter().map(name).collect(),
            });
        }
    };
    let listeners = tree::listeners(&pids);
    let connections = tree::connections(&pids);
    Ok(FrozenTree {
        root,
        foreign_session,
        members,
        listeners,
        connections,
        clocks,
    })
}

/// Stops all that an init has started.
///
/// # Errors
/// [`FreezeError::DoesNotStop`] or [`FreezeError::InVfork`].
pub async fn stop(init: HostPid) -> Result<(), FreezeError> {
    stop_all(Top::Init(init), None).await.map(drop)
}

/// Stops all, and returns them: two looks one after the other find the same processes, none of
/// them moving, so nothing was forked in between.
async fn stop_all(top: Top, stopped: Option<HostPid>) -> Result<Vec<HostPid>, FreezeError> {
    let deadline = Instant::now() + LIMIT;
    let mut told: HashSet<HostPid> = stopped.into_iter().collect();
    let mut vforks = Vforks::default();
    let mut before = vec![];
    loop {
        let pids = top.pids();
        let moving: Vec<HostPid> = pids
            .iter()
            .copied()
            .filter(|&p| !tree::is_stopped(p))
            .collect();
        if moving.is_empty() && pids == before {
            return Ok(pids);
        }
        for child in vforks.let_go(&moving)? {
            told.remove(&child);
        }
        for pid in moving.iter().copied().filter(|&pid| told.insert(pid)) {
            tree::signal(pid, Signal::STOP);
        }
        if Instant::now() > deadline {
            return Err(FreezeError::DoesNotStop {
                busy: tree::blocked_on(&moving),
            });
        }
        before = pids;
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The processes that wait in vfork(2), which no signal ends, each since when its child goes on
/// in spite of the freeze.
#[derive(Default)]
struct Vforks(HashMap<Vfork, Instant>);

impl Vforks {
    /// Lets the children go on for which processes wait. Returns those that were let go before
    /// and are waited for no more: they are to be stopped.
    fn let_go(&mut self, moving: &[HostPid]) -> Result<Vec<HostPid>, FreezeError> {
        let waiting = tree::vforks(moving);
        for &vfork in &waiting {
            let since = *self.0.entry(vfork).or_insert_with(Instant::now);
            if since.elapsed() > VFORK_LIMIT {
                return Err(FreezeError::InVfork {
                    parent: tree::label(vfork.parent),
                    child: tree::label(vfork.child),
                });
            }
            if tree::is_stopped(vfork.child) {
                tree::signal(vfork.child, Signal::CONT);
            }
        }
        let over = self.0.extract_if(|vfork, _| !waiting.contains(vfork));
        Ok(over.map(|(vfork, _)| vfork.child).collect())
    }
}
