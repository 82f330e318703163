//! From an image to a running server: fresh namespaces, clocks that go on where they stopped,
//! CRIU, and then a supervisor like any other.

mod checks;
mod fit;
mod memory;
mod scratch;
mod timings;

use std::{
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

pub use self::timings::{Pages, Parts};
pub use self::{
    fit::stale,
    memory::{MemoryMode, MemoryUse, Unmappable},
};
use self::{scratch::Scratch, timings::Stopwatch};
use crate::{
    capture::keep_log,
    cgroup::{self, CgroupError, Memory, Reservation},
    criu::{self, CriuError, Program, ProgramError, RestoreRequest, kerndat::Kerndat},
    edit::{self, EditError},
    fit::{Allowed, Code, Finding, Here},
    hook::{self, Hook, HookError, Variable},
    host::Clocks,
    instance::{Folder, InstanceError, Record},
    listener::{Listener, Publish},
    network::{self, Network, NetworkError},
    output::Output,
    spawn::{
        ClockOffsets, CommandError, Descriptors, Fresh, Place, Plan, STDERR, STDOUT, Sandbox,
        SpawnError,
    },
    store::{Image, Store, StoreError, now_ms},
    tree,
    watch::CapturePoint,
};

/// How long CRIU may take to restore.
const LIMIT: Duration = Duration::from_secs(60);

/// Why an image was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Criu(#[from] CriuError),
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error("cannot make pipes for the server's output")]
    Output(#[source] io::Error),
    #[error("cannot open the image's folder {}", .path.display())]
    Image {
        path: std::path::PathBuf,
        source: io::Error,
    },
    #[error("cannot make a file system in memory for what the restore needs")]
    Scratch(#[source] io::Error),
    #[error("cannot use the cache of CRIU's kernel data")]
    Kerndat(#[source] io::Error),
    #[error("{listener} is taken by {holder}")]
    PortTaken { listener: Listener, holder: String },
    #[error("the image has no listener to publish {publish}")]
    NoListener {
        publish: Publish,
        listeners: Vec<Listener>,
    },
    #[error("{listener} cannot be the place of both {first} and {second}")]
    Clash {
        listener: Listener,
        first: Listener,
        second: Listener,
    },
    #[error("{0} is published twice")]
    Twice(Listener),
    #[error("{0} is no address of this host")]
    NoAddress(Listener),
    #[error("there is no folder for {}", .0.display())]
    NoFolder(std::path::PathBuf),
    #[error("{} is there already, and is no socket", .path.display())]
    NoSocket { path: std::path::PathBuf },
    #[error("the lock on {} that the server has is taken by {holder}", .path.display())]
    Locked {
        path: std::path::PathBuf,
        holder: String,
    },
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("the image holds a hook that is none: {text}")]
    StoredHook {
        text: String,
        source: hook::SpecError,
    },
    #[error("the hook {0} may reach another copy that shares the port")]
    SharedHook(String),
    #[error(transparent)]
    HookCommand(#[from] CommandError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(
        "the connection of {local} to {peer} is taken: another copy of the image has it, or has just ended it"
    )]
    ConnectionTaken { local: SocketAddr, peer: SocketAddr },
    #[error("the connection of {local} to {peer} cannot go on: its other end is gone")]
    ConnectionLost { local: SocketAddr, peer: SocketAddr },
    #[error("the connection of {local} to {peer} cannot go on in another network")]
    ConnectionElsewhere { local: SocketAddr, peer: SocketAddr },
    #[error("the restored server ended before {awaited}: {status}")]
    Ended {
        awaited: &'static str,
        status: String,
    },
    #[error("the restored server does not listen within {} s", .limit.as_secs())]
    DoesNotListen { limit: Duration },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("the server does not fit into its limit of {0} of memory")]
    OutOfMemory(Memory),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("cannot read facts about this host")]
    Host(#[source] io::Error),
    #[error("the image does not fit: {}", first(.findings))]
    Unfit {
        findings: Vec<Finding>,
        /// What the image is called.
        image: String,
    },
    #[error("the image may be stale: {}", first(.findings))]
    Stale {
        findings: Vec<Finding>,
        /// What the image is called.
        image: String,
    },
    #[error("the memory of the image cannot be mapped")]
    Unmappable(#[source] Unmappable),
    #[error("interrupted")]
    Interrupted,
}

fn first(findings: &[Finding]) -> String {
    match findings {
        [] => String::new(),
        [only] => only.to_string(),
        [first, others @ ..] => format!("{first} (and {} more)", others.len()),
    }
}

/// How long a restore took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// The checks, and making the namespaces, with init in them, and their network.
    pub namespaces: Duration,
    /// CRIU, from its start to its answer.
    pub criu: Duration,
    /// Of that, what CRIU itself counts as the restore.
    pub criu_restore: Option<Duration>,
    pub total: Duration,
    /// All of it part by part, from [`Options::timed_since`] to the last hook.
    pub parts: Parts,
}

/// A restored server under supervision. It ends when this is dropped.
pub struct Restored {
    pub sandbox: Sandbox,
    pub record: Record,
    pub timings: Timings,
    /// What the server writes; none if it is detached and writes to its log.
    pub output: Option<Output>,
    pub memory: MemoryUse,
    folder: Folder,
    /// Takes the kernel a while to close, and so not before the end.
    _criu_start: Option<criu::Start>,
}

impl Restored {
    /// Lets the server live on by itself.
    ///
    /// # Errors
    /// [`RestoreError::Ended`] or [`RestoreError::Spawn`].
    pub async fn detach(mut self) -> Result<(), RestoreError> {
        if let Err(error) = self.sandbox.detach().await {
            return Err(match self.sandbox.exit().await {
                Ok(status) => ended(status, "it was left to itself"),
                Err(_) => error.into(),
            });
        }
        self.folder.keep();
        Ok(())
    }
}

/// A listening socket that the server gets in place of one that it had.
#[derive(Clone, Debug)]
pub struct Handed {
    /// The listener of the image.
    pub old: Listener,
    /// Where the socket listens.
    pub new: Listener,
    pub socket: Arc<OwnedFd>,
}

/// How to restore.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub memory: MemoryMode,
    /// The server is to live on by itself, and writes to a log.
    pub detached: bool,
    /// Listeners that are to be elsewhere than in the image.
    pub publish: Vec<Publish>,
    /// Listeners that the server gets from the caller.
    pub handed: Vec<Handed>,
    /// Share the TCP ports with other copies.
    pub reuse_port: bool,
    pub network: Network,
    /// What to do to the restored server, besides what the image says.
    pub after_restore: Vec<Hook>,
    /// What hooks get to know.
    pub variables: Vec<Variable>,
    /// How long each hook may take.
    pub hook_limit: Duration,
    /// A control group of its own.
    pub group: Option<cgroup::Request>,
    /// What to go on with although it is not as it was at the capture.
    pub allowed: Allowed,
    /// Refuse an image that may be stale.
    pub strict: bool,
    /// The site that it is to serve.
    pub site: Option<String>,
    /// It is to be known where the time goes, from this moment on.
    pub timed_since: Option<Instant>,
}

/// Restores an image. It is ready for connections when this returns.
///
/// # Errors
/// See [`RestoreError`]. Nothing is left behind then.
pub async fn restore(
    store: &Store,
    criu: &Program,
    image: &Image,
    options: &Options,
) -> Result<Restored, RestoreError> {
    let begun = Instant::now();
    let mut watch = Stopwatch::since(options.timed_since.unwrap_or(begun));
    // Until the record of the instance tells that it uses the image.
    let _held = image.hold()?;
    image.check()?;
    let manifest = &image.manifest;
    // What is handed over needs no place of its own.
    let is_handed = |old: &&Listener| options.handed.iter().any(|handed| handed.old == **old);
    let bound = manifest.listeners.iter().filter(|old| !is_handed(old));
    let bound: Vec<_> = bound.cloned().collect();
    let mut moves = checks::moves(&bound, &options.publish)?;
    let is_private = options.network == Network::Private;
    if is_private {
        moves
            .iter_mut()
            .for_each(|(_, new)| *new = network::opened(new));
    }
    let (ready, memory) = memory::choose(image, options.memory)?;
    let stored = match ready {
        Some(_) => image.map_folder(),
        None => image.criu_folder(),
    };
    let ready = ready.unwrap_or_default();
    let folder = Folder::create(&store.instances(), image.label())?;
    // The stored image is read in place, unless something differs from it.
    let accepts_changes = options.allowed.contains(Code::UsedChanged);
    let has_deleted = edit::has_deleted(&stored);
    let differs = moves.iter().any(|(old, new)| old != new)
        || !options.handed.is_empty()
        || options.reuse_port
        || accepts_changes
        || has_deleted;
    let scratch = Scratch::new().map_err(RestoreError::Scratch)?;
    let images = match differs {
        true => scratch.image(),
        false => stored.clone(),
    };
    let work = scratch.work();
    // Made before the sandbox, and so dropped after it, when nothing runs in the group any more.
    let mut group = options.group.as_ref().map(Reservation::new).transpose()?;
    let made = group.as_mut().map(|group| group.make(folder.id()));
    let made = made.transpose()?.cloned();
    let kerndat = Kerndat::open(&store.kerndat(), criu).map_err(RestoreError::Kerndat)?;
    let clocks = continue_clocks(manifest.clocks, Clocks::now());
    let plan = Plan {
        command: None,
        criu: criu.c_path(),
        kerndat: kerndat.folder().to_path_buf(),
        kerndat_is_new: !kerndat.is_filled(),
        handed: options.handed.len(),
        bound: vec![],
        guarded: ready.guarded.clone(),
        shared: ready.shared.clone(),
        place: Place::New(Fresh {
            clocks: Some(clocks),
            group: made.clone(),
            network: is_private,
            terminals: edit::has_terminals(&stored),
        }),
    };
    let open = |path: std::path::PathBuf| {
        fs::File::open(&path).map_err(|source| RestoreError::Image { path, source })
    };
    let inventory = stored.join(edit::INVENTORY);
    let (images_folder, work_folder) = (open(images.clone())?, open(work.clone())?);
    let (output, [stdout, stderr]) = outputs(&folder, options.detached)?;
    let descriptors = Descriptors {
        images: images_folder.as_fd(),
        work: work_folder.as_fd(),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        instance: folder.lock().as_fd(),
        handed: options
            .handed
            .iter()
            .map(|handed| handed.socket.as_fd())
            .collect(),
    };
    let out_of_memory = || {
        let limit = group.as_ref().and_then(Reservation::exhausted)?;
        Some(RestoreError::OutOfMemory(limit))
    };
    let mut parts = Parts {
        image_us: watch.lap(),
        ..Parts::default()
    };
    let mut sandbox = Sandbox::create(&plan, &descriptors)
        .await
        .map_err(|error| out_of_memory().unwrap_or_else(|| error.into()))?;
    drop((stdout, stderr));
    let addresses = match is_private {
        true => Some(network::connect(sandbox.init()).await?),
        false => None,
    };
    let namespaces = begun.elapsed();
    parts.namespaces_us = watch.lap();

    let mut criu_start = options
        .timed_since
        .and_then(|_| criu::Start::watch(&work, &inventory).ok());
    let before_criu = Instant::now();
    let worker = criu::start(&mut sandbox, manifest.criu.user)
        .await
        .map_err(|error| out_of_memory().unwrap_or_else(|| error.into()))?;
    if let (Some(set), Some(_)) = (&manifest.working_set, &ready.guarded) {
        set.read_ahead(&image.criu_folder());
    }
    // While CRIU starts, it is seen whether the image can be restored here, and it is made what it is
    // to be.
    checks::refuse_impossible(&moves, options)?;
    checks::refuse_taken(&moves, manifest, options, &store.instances())?;
    checks::refuse_lost(&manifest.connections, options.network)?;
    checks::refuse_locked(manifest)?;
    let hooks = checks::hooks(manifest, options)?;
    if differs {
        edit::move_listeners(&stored, &images, &moves, options.reuse_port)?;
    }
    if !options.handed.is_empty() {
        let handed: Vec<_> = options
            .handed
            .iter()
            .map(|handed| handed.old.clone())
            .collect();
        edit::hand_over(&images, &handed)?;
    }
    if accepts_changes {
        edit::accept_changes(&images)?;
    }
    let passing = match has_deleted {
        true => edit::name_deleted(
            &images,
            &format!(".{}-{:x}-{:x}", folder.id(), std::process::id(), now_ms()),
        )?,
        false => vec![],
    };
    parts.checks_us = watch.lap();
    let here = Here::read(Some(kerndat.version(criu)?)).map_err(RestoreError::Host)?;
    fit::refuse(image, &here, options)?;
    parts.fit_us = watch.lap();

    let request = RestoreRequest {
        inherited: [(&manifest.stdout, STDOUT), (&manifest.stderr, STDERR)]
            .into_iter()
            .filter_map(|(name, fd)| Some((name.clone()?, fd)))
            .chain((1..).map(edit::handed_name).zip(plan.handed()))
            .chain(ready.names().zip(plan.memory().chain(plan.shared())))
            .collect(),
        foreign_session: manifest.criu.foreign_session,
        connections: manifest.criu.connections,
        limit: LIMIT,
    };
    sandbox
        .shared_memory()
        .await
        .map_err(|error| out_of_memory().unwrap_or_else(|| error.into()))?;
    let restoring = criu::restore(&mut sandbox, worker, &request, &work);
    let root = match &mut criu_start {
        Some(start) => start.during(restoring).await,
        None => restoring.await,
    };
    let root = root.map_err(|error| {
        // It may have been killed.
        passing.iter().for_each(|path| drop(fs::remove_file(path)));
        out_of_memory().unwrap_or_else(|| keep_log(store, error).into())
    })?;
    let criu_began = watch.until(criu_start.as_ref().and_then(criu::Start::began));
    let criu_took = watch.lap();
    sandbox.set_main(root).await?;
    group.as_ref().map_or(Ok(()), Reservation::complete)?;
    let handed = options.handed.iter().map(|handed| &handed.new);
    let moved = moves.iter().map(|(_, new)| new);
    let listeners: Vec<Listener> = handed.chain(moved).cloned().collect();
    if manifest.capture.point == CapturePoint::PreListen {
        until_listening(&mut sandbox, &listeners).await?;
        parts.listening_us = Some(watch.lap());
    }
    let counted = edit::restore_statistics(&work);
    parts.split_criu(criu_took, criu_began, counted);
    let mut timings = Timings {
        namespaces,
        criu: before_criu.elapsed(),
        criu_restore: counted.map(|counted| Duration::from_micros(counted.restore_us)),
        total: begun.elapsed(),
        parts,
    };
    if !kerndat.is_filled() {
        // Only a cache: without it the next restore is slower, and tries again.
        let _ = kerndat.fill_from(sandbox.init());
    }
    let reached = |listener: &Listener| match &addresses {
        Some(addresses) => addresses.reach(listener),
        None => listener.clone(),
    };
    let listeners: Vec<Listener> = listeners.iter().map(reached).collect();
    let record = Record {
        id: folder.id().to_owned(),
        image: Some(image.digest.to_string()),
        started_ms: now_ms(),
        init: sandbox.init(),
        detached: options.detached,
        listeners,
        mapped_bytes: memory.mapped_bytes,
        reuse_port: options.reuse_port || !manifest.shared_ports.is_empty(),
        network: addresses,
        group: made,
        site: options.site.clone(),
    };
    folder.publish(&record)?;
    timings.parts.record_us = watch.lap();
    if !hooks.is_empty() {
        let subject = hook::Subject {
            moment: hook::Moment::AfterRestore,
            root: tree::find(sandbox.init(), root),
            name: folder.id(),
            listeners: &record.listeners,
            folder: manifest.command.working_directory.clone(),
            variables: &options.variables,
            limit: options.hook_limit,
        };
        let run_hooks = async {
            for hook in &hooks {
                hook.run(&subject).await?;
            }
            Ok::<(), HookError>(())
        };
        tokio::select! {
            outcome = run_hooks => outcome?,
            status = sandbox.exit() => return Err(ended(status?, "all hooks were through")),
        }
    }
    // From here on it goes with the folder.
    group.into_iter().for_each(Reservation::keep);
    timings.parts.hooks_us = watch.lap();
    timings.parts.finish(watch.total());
    Ok(Restored {
        sandbox,
        record,
        timings,
        output,
        memory,
        folder,
        _criu_start: criu_start,
    })
}

/// Waits until the server listens by itself.
async fn until_listening(
    sandbox: &mut Sandbox,
    listeners: &[Listener],
) -> Result<(), RestoreError> {
    const INTERVAL: Duration = Duration::from_millis(1);
    let init = sandbox.init();
    let listening = async {
        loop {
            let found = tree::listeners(&tree::descendants(init));
            if listeners.iter().all(|listener| found.contains(listener)) {
                return;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        reached = tokio::time::timeout(LIMIT, listening) => {
            reached.map_err(|_| RestoreError::DoesNotListen { limit: LIMIT })
        }
        status = sandbox.exit() => Err(ended(status?, "it listened")),
    }
}

fn ended(status: i32, awaited: &'static str) -> RestoreError {
    RestoreError::Ended {
        awaited,
        status: crate::instance::describe_status(status),
    }
}

/// The offsets with which clocks that show `now` go on from `captured`.
fn continue_clocks(captured: Clocks, now: Clocks) -> ClockOffsets {
    let offset = |captured: u64, now: u64| captured as i64 - now as i64;
    ClockOffsets {
        monotonic_ns: offset(captured.monotonic_ns, now.monotonic_ns),
        boottime_ns: offset(captured.boottime_ns, now.boottime_ns),
    }
}

/// Where the server writes to: pipes of ours, or the log of a detached instance.
fn outputs(
    folder: &Folder,
    detached: bool,
) -> Result<(Option<Output>, [OwnedFd; 2]), RestoreError> {
    if detached {
        let log = folder.open_log()?;
        let again = log.try_clone().map_err(RestoreError::Output)?;
        return Ok((None, [log.into(), again.into()]));
    }
    let (output, writers) = Output::new(true).map_err(RestoreError::Output)?;
    Ok((Some(output), writers.map(OwnedFd::from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_go_on_from_the_captured_value_before_and_after_a_reboot() {
        let captured = Clocks {
            monotonic_ns: 5_000,
            boottime_ns: 6_000,
        };
        let later = Clocks {
            monotonic_ns: 9_000,
            boottime_ns: 9_500,
        };
        let rebooted = Clocks {
            monotonic_ns: 100,
            boottime_ns: 100,
        };
        for now in [later, rebooted] {
            let offsets = continue_clocks(captured, now);
            assert_eq!(now.monotonic_ns as i64 + offsets.monotonic_ns, 5_000);
            assert_eq!(now.boottime_ns as i64 + offsets.boottime_ns, 6_000);
        }
    }
}
