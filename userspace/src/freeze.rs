//! Stops the whole tree once one of its processes was stopped at the capture point.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::{
    host::Clocks,
    listener::Listener,
    spawn::{Sandbox, SpawnError},
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

/// Stops every process of the sandbox and describes what stands still.
///
/// # Errors
/// See [`FreezeError`].
pub async fn freeze(sandbox: &mut Sandbox) -> Result<FrozenTree, FreezeError> {
    sandbox.signal_all(Signal::SIGSTOP as i32).await?;
    let pids = tokio::time::timeout(LIMIT, all_stopped(sandbox.init()))
        .await
        .map_err(|_| {
            let moving = tree::descendants(sandbox.init());
            let moving: Vec<_> = moving
                .into_iter()
                .filter(|&pid| !tree::is_stopped(pid))
                .collect();
            FreezeError::DoesNotStop {
                busy: tree::blocked_on(&moving),
            }
        })?;
    let clocks = Clocks::now();
    let members = tree::describe(&pids);
    let roots: Vec<&Member> = members
        .iter()
        .filter(|m| m.info.parent == NsPid(1))
        .collect();
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

async fn all_stopped(init: HostPid) -> Vec<HostPid> {
    loop {
        let pids = tree::descendants(init);
        if pids.iter().all(|&pid| tree::is_stopped(pid)) {
            return pids;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
