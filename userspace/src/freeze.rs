//! Stops the whole tree once one of its processes was stopped at the capture point.

use std::time::Duration;

use rustix::process::Signal;

use crate::{
    host::Clocks,
    listener::Listener,
    spawn::SpawnError,
    tree::{self, Connection, HostPid, Member, NsPid},
};

/// How long the processes may take to stop. A process stops as soon as it leaves the kernel, so
/// only uninterruptible waits take time.
const LIMIT: Duration = Duration::from_secs(10);

/// How often is looked whether all have stopped.
const INTERVAL: Duration = Duration::from_micros(200);

/// Why the tree cannot be frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("some processes do not stop: {}", .busy.join("; "))]
    DoesNotStop { busy: Vec<String> },
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

/// Where a tree begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Top {
    /// Below this process, an init.
    Init(HostPid),
    /// With this process.
    Root(HostPid),
}

impl Top {
    /// Lets all processes go on.
    pub fn go_on(self) {
        for pid in self.pids() {
            tree::signal(pid, Signal::CONT);
        }
    }

    /// The processes that run, parents before children.
    fn pids(self) -> Vec<HostPid> {
        match self {
            Self::Init(init) => tree::descendants(init),
            Self::Root(root) => std::iter::once(root)
                .chain(tree::descendants(root))
                .collect(),
        }
    }
}

impl FrozenTree {
    /// Sends a signal to all processes; SIGCONT lets them go on.
    pub fn signal(&self, signal: Signal) {
        for member in &self.members {
            tree::signal(member.host, signal);
        }
    }
}

/// Stops every process of a tree and describes what stands still.
///
/// # Errors
/// See [`FreezeError`].
pub async fn freeze(top: Top) -> Result<FrozenTree, FreezeError> {
    let pids = tokio::time::timeout(LIMIT, all_stopped(top))
        .await
        .map_err(|_| {
            let moving = top.pids();
            let moving: Vec<_> = moving
                .into_iter()
                .filter(|&pid| !tree::is_stopped(pid))
                .collect();
            FreezeError::DoesNotStop {
                busy: tree::blocked_on(&moving),
            }
        })?;
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

async fn all_stopped(top: Top) -> Vec<HostPid> {
    loop {
        let pids = top.pids();
        for &pid in &pids {
            if !tree::is_stopped(pid) {
                tree::signal(pid, Signal::STOP);
            }
        }
        if pids.iter().all(|&pid| tree::is_stopped(pid)) {
            return pids;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
