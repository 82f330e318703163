//! From a tree that stands still to a stored image.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use rustix::thread::CapabilitySet;

use super::{CaptureError, reads::Read};
use crate::{
    carry,
    criu::{self, AfterDump, CriuError, TcpConnections, User, Version, kerndat::Kerndat},
    edit::{self, EditError, Use},
    fit::{self, Seen},
    freeze::FrozenTree,
    host::{self, Host, Surroundings},
    listener::{self, Listener},
    lock::{self, FileLock},
    obstacle::{self, Obstacle, Obstacles},
    sensitive,
    spawn::Sandbox,
    store::{
        self, Capture, CommandInfo, CriuInfo, Image, Manifest, ReadFiles, Recipe, Role, Staging,
        Store,
    },
    tree::Connection,
};

/// How long CRIU may take to dump: enough for tens of gigabytes.
const LIMIT: Duration = Duration::from_secs(120);

/// How a tree is to be dumped.
pub struct Wanted {
    /// Temporary files made since then are the tree's own.
    pub made_since: SystemTime,
    /// When the command was executed, if that is known.
    pub exec_at: Option<SystemTime>,
    pub outbound: TcpConnections,
    pub after: AfterDump,
    /// CRIU's names of what standard output and standard error are, if they are to be replaced.
    pub outputs: [Option<String>; 2],
}

/// A dump, in its folder.
pub struct Dumped {
    user: User,
    connections: TcpConnections,
    locks: BTreeSet<FileLock>,
    pub time: Duration,
}

/// Where a dump comes from.
pub struct Origin {
    pub version: Version,
    pub command: CommandInfo,
    pub capture: Capture,
    pub recipe: Option<Recipe>,
    pub after_restore: Vec<String>,
    /// As in [`Wanted`].
    pub outputs: [Option<String>; 2],
    pub read: FilesRead,
}

/// What is known of the files that a tree has read.
pub enum FilesRead {
    Seen(Read),
    /// As of the image that the tree was restored from, if it was.
    OfOrigin(Option<ReadFiles>),
}

/// Dumps a tree.
pub async fn dump(
    (store, kerndat): (&Store, &Kerndat),
    sandbox: &mut Sandbox,
    staging: &Staging,
    tree: &FrozenTree,
    wanted: &Wanted,
) -> Result<Dumped, CaptureError> {
    let hindering = hindering(tree, wanted.outbound);
    let has_sys_resource = host::capabilities().contains(CapabilitySet::SYS_RESOURCE);
    let user = criu::choose_user(&tree.members, has_sys_resource);
    let mut found = obstacle::look_for(&tree.members, sandbox.init(), wanted.exec_at);
    if !found.is_empty() {
        // All of them at once.
        found.extend(hindering.iter().map(Obstacle::connection));
        found.extend(user.as_ref().err().map(Obstacle::users));
        return Err(Obstacles(found).into());
    }
    if !hindering.is_empty() {
        let connections = hindering;
        return Err(CaptureError::Connected { connections });
    }
    let user = user?;
    let connections = treat_connections(tree, wanted.outbound);
    let unix_close = unix_to_close(tree);
    let locks = lock::held_by(&tree.members);
    carry::delete_mapped(&tree.members, wanted.made_since).map_err(CaptureError::Carry)?;
    let request = criu::DumpRequest {
        root: tree.root,
        foreign_session: tree.foreign_session,
        replaced: wanted.outputs.iter().flatten().cloned().collect(),
        unix_close: unix_close.clone(),
        connections,
        after: wanted.after,
        limit: LIMIT,
    };
    let begun = Instant::now();
    criu::dump(sandbox, user, &request, &staging.work())
        .await
        .map_err(|error| keep_log(store, error))?;
    let time = begun.elapsed();
    edit::close_unix(&staging.criu(), &unix_close)?;
    if !kerndat.is_filled() {
        // Only a cache: without it the next restore is slower, and tries again.
        let _ = kerndat.fill_from(sandbox.init());
    }
    Ok(Dumped {
        user,
        connections,
        locks,
        time,
    })
}

/// Makes an image of a dump.
pub fn keep(
    store: &Store,
    staging: Staging,
    tree: FrozenTree,
    dumped: Dumped,
    origin: Origin,
    name: &str,
) -> Result<Image, CaptureError> {
    let Dumped {
        user,
        connections,
        locks,
        ..
    } = dumped;
    let images = staging.criu();
    edit::make_reusable(&images)?;
    edit::keep_statistics(&staging.work(), &images)?;
    edit::take_back(&images)?;
    edit::lay_out(&images)?;
    let mapped = edit::describe_mapped(&images, &staging.map(), &BTreeMap::new())?;
    let [stdout, stderr] = origin.outputs;
    let going_on = match connections {
        TcpConnections::Established => kept(&tree),
        TcpConnections::None | TcpConnections::Closed => vec![],
    };
    let begun = Instant::now();
    let dependencies = fit::identify(held(&images)?);
    let read = match origin.read {
        FilesRead::Seen(read) => Some(read.record(&dependencies)),
        FilesRead::OfOrigin(read) => read,
    };
    if let Some(read) = &read {
        read.write(&staging)?;
    }
    let read = read.map(|read| read.files).unwrap_or_default();
    let private_keys = sensitive::private_keys(&dependencies, &read);
    tracing::debug!(
        "files outside of the image recorded in {:?}",
        begun.elapsed()
    );
    let manifest = Manifest {
        schema: store::SCHEMA,
        created_ms: store::now_ms(),
        command: origin.command,
        capture: origin.capture,
        listeners: tree.listeners,
        shared_ports: edit::shared_ports(&images)?,
        connections: going_on,
        recipe: origin.recipe,
        after_restore: origin.after_restore,
        locks,
        root: tree.root,
        processes: tree.members.into_iter().map(|member| member.info).collect(),
        memory_bytes: edit::memory_bytes(&images),
        mapped: Some(mapped),
        working_set: None,
        stdout,
        stderr,
        clocks: tree.clocks,
        host: Host::read().map_err(CaptureError::Host)?,
        criu: CriuInfo {
            version: origin.version,
            user,
            connections,
            foreign_session: tree.foreign_session,
        },
        surroundings: Some(Surroundings::read().map_err(CaptureError::Host)?),
        dependencies,
        private_keys,
        files: vec![],
    };
    Ok(store.commit(staging, manifest, name)?)
}

/// The files that processes hold.
fn held(images: &Path) -> Result<Vec<Seen>, EditError> {
    let role = |of| match of {
        Use::Open => Role::Open,
        Use::Mapped => Role::Mapped,
        Use::Written => Role::Written,
    };
    let uses = edit::uses(images)?.into_iter();
    Ok(uses.map(|(path, of)| Seen::now(path, role(of))).collect())
}

/// The connections to others of which nothing was said. Unix sockets cannot be kept.
fn hindering(tree: &FrozenTree, outbound: TcpConnections) -> Vec<Connection> {
    let hinders = |c: &&Connection| {
        let is_allowed = match outbound {
            TcpConnections::None => false,
            TcpConnections::Closed => true,
            TcpConnections::Established => c.is_tcp(),
        };
        c.peer.is_some() && !c.is_inbound(&tree.listeners) && !is_allowed
    };
    tree.connections.iter().filter(hinders).cloned().collect()
}

/// What becomes of the TCP connections of a tree. Those of clients are never a hindrance: they are
/// closed, unless those to others are kept, and they with them.
fn treat_connections(tree: &FrozenTree, outbound: TcpConnections) -> TcpConnections {
    let mut tcp = tree.connections.iter().filter(|c| c.is_tcp()).peekable();
    let has_outbound = tcp.clone().any(|c| !c.is_inbound(&tree.listeners));
    match (tcp.peek(), has_outbound) {
        (None, _) => TcpConnections::None,
        (Some(_), true) => outbound,
        (Some(_), false) => TcpConnections::Closed,
    }
}

/// The Unix sockets whose other ends are not in the tree: none of them goes on.
fn unix_to_close(tree: &FrozenTree) -> Vec<u64> {
    let connections = tree.connections.iter();
    let unix = connections.filter(|c| !c.is_tcp() && c.peer.is_some());
    unix.map(|connection| connection.inode).collect()
}

/// The connections to others that are to go on. Those within the tree do so by themselves, and
/// clients come and go.
fn kept(tree: &FrozenTree) -> Vec<(SocketAddr, SocketAddr)> {
    let outbound = tree
        .connections
        .iter()
        .filter(|c| !c.is_inbound(&tree.listeners));
    let all: Vec<_> = tree.connections.iter().filter_map(ends).collect();
    let is_within = |(local, peer): &(SocketAddr, SocketAddr)| all.contains(&(*peer, *local));
    outbound
        .filter_map(ends)
        .filter(|ends| !is_within(ends))
        .collect()
}

/// Both ends of a connection by TCP, as they are written without IPv6 around them.
fn ends(connection: &Connection) -> Option<(SocketAddr, SocketAddr)> {
    match (&connection.local, &connection.peer) {
        (Listener::Tcp { address }, Some(Listener::Tcp { address: peer })) => {
            Some((listener::canonical(*address), listener::canonical(*peer)))
        }
        _ => None,
    }
}

/// Moves the log out of the folder that is about to be removed.
pub(crate) fn keep_log(store: &Store, error: CriuError) -> CriuError {
    match error {
        CriuError::Failed {
            operation,
            message,
            lines,
            log,
        } => {
            let log = store.keep_log(&log).unwrap_or(log);
            CriuError::Failed {
                operation,
                message,
                lines,
                log,
            }
        }
        other => other,
    }
}
