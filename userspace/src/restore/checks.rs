//! What a restore is refused for before anything runs: CRIU would fail, wait, or not notice.

use std::{net::SocketAddr, os::unix::fs::FileTypeExt as _, path::Path};

use super::{Options, RestoreError};
use crate::{
    hook::Hook,
    instance::{self, State},
    listener::{self, Listener, Publish},
    lock,
    network::Network,
    store::Manifest,
    tree,
};

/// Where each listener was, and where it is to be.
pub fn moves(
    listeners: &[Listener],
    publish: &[Publish],
) -> Result<Vec<(Listener, Listener)>, RestoreError> {
    let meant = |publish: &&Publish| listeners.iter().any(|old| publish.moves(old).is_some());
    if let Some(publish) = publish.iter().find(|publish| !meant(publish)) {
        return Err(RestoreError::NoListener {
            publish: publish.clone(),
            listeners: listeners.to_vec(),
        });
    }
    for old in listeners {
        let moves = publish
            .iter()
            .filter(|publish| publish.moves(old).is_some());
        if moves.count() > 1 {
            return Err(RestoreError::Twice(old.clone()));
        }
    }
    let new = |old: &Listener| publish.iter().find_map(|publish| publish.moves(old));
    let moved = listeners
        .iter()
        .map(|old| (old.clone(), new(old).unwrap_or_else(|| old.clone())));
    Ok(moved.collect())
}

/// Refuses places where nothing can listen.
pub fn refuse_impossible(
    moves: &[(Listener, Listener)],
    options: &Options,
) -> Result<(), RestoreError> {
    for (number, (old, new)) in moves.iter().enumerate() {
        let before = &moves[..number];
        let clash = |(other_old, other_new): &&(Listener, Listener)| {
            other_new.clashes_with(new) && !other_old.clashes_with(old)
        };
        if let Some((other, _)) = before.iter().find(clash) {
            return Err(RestoreError::Clash {
                listener: new.clone(),
                first: other.clone(),
                second: old.clone(),
            });
        }
        match new {
            Listener::Tcp { address }
                if old != new
                    && options.network == Network::Host
                    && !listener::is_own(address.ip()) =>
            {
                return Err(RestoreError::NoAddress(new.clone()));
            }
            Listener::Unix { path }
                if old != new && path.has_root() && !path.parent().is_some_and(Path::is_dir) =>
            {
                return Err(RestoreError::NoFolder(path.clone()));
            }
            _ => {}
        }
        // CRIU removes what is at the path of a socket before it binds to it.
        if let Listener::Unix { path } = new
            && old != new
            && path
                .symlink_metadata()
                .is_ok_and(|found| !found.file_type().is_socket())
        {
            return Err(RestoreError::NoSocket { path: path.clone() });
        }
    }
    Ok(())
}

/// Refuses an image whose addresses are taken, and says by whom. CRIU would not always: it
/// removes a socket's path before it binds to it, and it binds with SO_REUSEPORT, by which a
/// second copy can come to listen on a port that another one restored by it has.
pub fn refuse_taken(
    moves: &[(Listener, Listener)],
    manifest: &Manifest,
    options: &Options,
    instances: &Path,
) -> Result<(), RestoreError> {
    let is_shared = |old: &Listener| match old {
        Listener::Tcp { address } => {
            options.reuse_port || manifest.shared_ports.contains(&address.port())
        }
        Listener::Unix { .. } => false,
    };
    // CRIU makes the sockets.
    let user = manifest.criu.user.ids().map_or(0, |(uid, _)| uid);
    let is_taken = |old: &Listener, new: &Listener| match new {
        // In a network of its own, nobody else listens.
        Listener::Tcp { .. } if options.network == Network::Private => false,
        Listener::Tcp { address } => listener::is_taken(*address, is_shared(old).then_some(user)),
        Listener::Unix { .. } => tree::holder(new).is_some(),
    };
    let taken = moves.iter().find(|(old, new)| is_taken(old, new));
    if let Some((_, listener)) = taken {
        return Err(RestoreError::PortTaken {
            listener: listener.clone(),
            holder: tree::holder(listener).unwrap_or_else(|| "another process".to_owned()),
        });
    }
    match options.reuse_port {
        true => refuse_unshared(moves, instances),
        false => Ok(()),
    }
}

/// Refuses to share a port with an instance that does not share it. The kernel does not tell: by the
/// way CRIU binds, it looks as if it did.
fn refuse_unshared(moves: &[(Listener, Listener)], instances: &Path) -> Result<(), RestoreError> {
    for instance::Instance { record, state, .. } in instance::list(instances) {
        if state != State::Running || record.reuse_port || record.network.is_some() {
            continue;
        }
        let is_wanted = |held: &&Listener| moves.iter().any(|(_, new)| new.clashes_with(held));
        if let Some(listener) = record.listeners.iter().find(is_wanted) {
            return Err(RestoreError::PortTaken {
                listener: listener.clone(),
                holder: format!("{}, which does not share it", record.id),
            });
        }
    }
    Ok(())
}

/// Refuses an image whose connections cannot go on: another copy has them, or the other end, if it
/// is on this host, is gone.
pub fn refuse_lost(
    connections: &[(SocketAddr, SocketAddr)],
    network: Network,
) -> Result<(), RestoreError> {
    let Some(&(local, peer)) = connections.first() else {
        return Ok(());
    };
    if network == Network::Private {
        return Err(RestoreError::ConnectionElsewhere { local, peer });
    }
    let found: Vec<_> = listener::connected()
        .into_iter()
        .filter_map(|socket| match (socket.local, socket.peer?) {
            (Listener::Tcp { address }, Listener::Tcp { address: peer }) => {
                Some((listener::canonical(address), listener::canonical(peer)))
            }
            _ => None,
        })
        .collect();
    for &(local, peer) in connections {
        if listener::is_own(peer.ip()) && !found.contains(&(peer, local)) {
            return Err(RestoreError::ConnectionLost { local, peer });
        }
        if found.contains(&(local, peer)) {
            return Err(RestoreError::ConnectionTaken { local, peer });
        }
    }
    Ok(())
}

/// What is to be done to the restored server: what the image says, then what was asked for.
pub fn hooks(manifest: &Manifest, options: &Options) -> Result<Vec<Hook>, RestoreError> {
    let stored = manifest.after_restore.iter().map(|text| {
        text.parse().map_err(|source| RestoreError::StoredHook {
            text: text.clone(),
            source,
        })
    });
    let mut hooks = stored.collect::<Result<Vec<Hook>, _>>()?;
    hooks.extend_from_slice(&options.after_restore);
    let is_shared = options.reuse_port && options.network == Network::Host;
    for hook in &hooks {
        hook.check()?;
        if is_shared && hook.asks_server() {
            return Err(RestoreError::SharedHook(hook.to_string()));
        }
    }
    Ok(hooks)
}

/// Refuses an image whose locks somebody else has: CRIU would wait for them.
pub fn refuse_locked(manifest: &Manifest) -> Result<(), RestoreError> {
    match lock::find_taken(&manifest.locks) {
        None => Ok(()),
        Some((wanted, holder)) => Err(RestoreError::Locked {
            path: wanted.path.clone(),
            holder,
        }),
    }
}
