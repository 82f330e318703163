//! From a command to an image: composes spawn, watch, freeze, dump, edit and store.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use rustix::thread::CapabilitySet;

use crate::{
    carry,
    criu::{self, CriuError, Program, ProgramError, UserError, kerndat::Kerndat},
    edit::{self, EditError},
    freeze::{self, FreezeError, FrozenTree},
    host::{self, Host},
    output::Output,
    spawn::{Command, Descriptors, Plan, Sandbox, SpawnError, Step},
    store::{self, Capture, CommandInfo, CriuInfo, Image, Manifest, Moment, Store, StoreError},
    tree::{self, HostPid, NsPid},
    watch::{CapturePoint, Event, Watch, WatchError, What},
};

/// How long CRIU may take to dump: enough for tens of gigabytes.
const DUMP_LIMIT: Duration = Duration::from_secs(120);

/// Why nothing was captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("cannot execute {command}")]
    Exec { command: String, source: io::Error },
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Criu(#[from] CriuError),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot make pipes for the server's output")]
    Output(#[source] io::Error),
    #[error("cannot delete a temporary file that the image is to carry")]
    Carry(#[source] io::Error),
    #[error("cannot read facts about this host")]
    Host(#[source] io::Error),
    #[error("{command} ended before it {awaited}: {status}")]
    ExitedEarly {
        command: String,
        awaited: &'static str,
        status: String,
        output: Vec<String>,
    },
    #[error("{command} has not {awaited} within {} s", .limit.as_secs_f64())]
    Timeout {
        command: String,
        awaited: &'static str,
        limit: Duration,
        blocked_on: Vec<String>,
        output: Vec<String>,
    },
    #[error("interrupted")]
    Interrupted,
}

/// What to capture, and how.
pub struct Options {
    pub command: Command,
    pub point: CapturePoint,
    /// How long the command may take to the capture point.
    pub limit: Duration,
    pub name: String,
    /// Go on running the captured tree.
    pub leave_running: bool,
}

/// Where a capture is.
#[derive(Clone, Debug)]
pub enum Progress {
    Attaching,
    /// Something happened on the way to the capture point.
    StartingUp {
        after: Duration,
        event: String,
    },
    Freezing,
    Dumping {
        processes: usize,
    },
    Storing,
}

/// What came of it.
pub struct Captured {
    pub image: Image,
    /// The server, if it was left running.
    pub running: Option<(Sandbox, Output)>,
}

/// Starts a command, and makes an image of it at the capture point.
///
/// `interrupted` ends it when it completes. Nothing is left behind, whatever the outcome.
///
/// # Errors
/// See [`CaptureError`].
pub async fn capture(
    store: &Store,
    criu: &Program,
    options: &Options,
    interrupted: impl Future<Output = ()>,
    mut progress: impl FnMut(Progress),
) -> Result<Captured, CaptureError> {
    let begun_at = SystemTime::now();
    let version = criu.check(host::kernel_version())?;
    let staging = store.stage()?;
    let kerndat = Kerndat::open(&store.kerndat(), criu).map_err(CaptureError::Host)?;
    let (mut output, [stdout, stderr]) = Output::new(false).map_err(CaptureError::Output)?;
    let open =
        |path: PathBuf| fs::File::open(&path).map_err(|source| StoreError::Read { path, source });
    let (images, work) = (open(staging.criu())?, open(staging.work())?);
    let plan = Plan {
        command: Some(options.command.clone()),
        criu: criu.c_path(),
        kerndat: kerndat.folder().to_path_buf(),
        kerndat_is_new: !kerndat.is_filled(),
    };
    let descriptors = Descriptors {
        images: images.as_fd(),
        work: work.as_fd(),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        instance: work.as_fd(),
    };
    let mut sandbox = Sandbox::create(&plan, &descriptors, None).await?;
    drop((stdout, stderr));

    progress(Progress::Attaching);
    let mut watch = Watch::attach(Some(options.point))?;
    let mut start_up = StartUp::new(options);
    let reached = async {
        start_up
            .run(&mut sandbox, &mut watch, &mut output, &mut progress)
            .await?;
        progress(Progress::Freezing);
        let begun = Instant::now();
        let tree = freeze::freeze(&mut sandbox).await?;
        Ok::<_, CaptureError>((tree, begun.elapsed()))
    };
    let (tree, freeze_time) = tokio::select! {
        reached = reached => reached?,
        () = interrupted => return Err(CaptureError::Interrupted),
    };
    let dropped_events = watch.dropped()?;
    // Detached before CRIU works in the tree: what it does there is not the server's doing.
    drop(watch);

    progress(Progress::Dumping {
        processes: tree.members.len(),
    });
    let has_sys_resource = host::capabilities().contains(CapabilitySet::SYS_RESOURCE);
    let user = criu::choose_user(&tree.members, has_sys_resource)?;
    carry::delete_mapped(&tree.members, begun_at).map_err(CaptureError::Carry)?;
    let request = criu::DumpRequest {
        root: tree.root,
        foreign_session: tree.foreign_session,
        after: match options.leave_running {
            true => criu::AfterDump::LeaveStopped,
            false => criu::AfterDump::Kill,
        },
        limit: DUMP_LIMIT,
    };
    let begun = Instant::now();
    criu::dump(&mut sandbox, user, &request, &staging.work())
        .await
        .map_err(|error| keep_log(store, error))?;
    let dump_time = begun.elapsed();
    if !kerndat.is_filled() {
        // Only a cache: without it the next restore is slower, and tries again.
        let _ = kerndat.fill_from(sandbox.init());
    }
    let running = if options.leave_running {
        sandbox.set_main(tree.root).await?;
        sandbox.signal_all(libc::SIGCONT).await?;
        Some((sandbox, output))
    } else {
        drop(sandbox);
        None
    };

    progress(Progress::Storing);
    edit::make_reusable(&staging.criu())?;
    let capture = Capture {
        point: options.point,
        start_up_us: start_up.duration_us(),
        freeze_us: freeze_time.as_micros() as u64,
        dump_us: dump_time.as_micros() as u64,
        time_line: start_up.time_line(&tree),
        dropped_events,
    };
    let names = start_up.pipe_names;
    let [stdout, stderr] = names;
    let manifest = Manifest {
        schema: store::SCHEMA,
        created_ms: store::now_ms(),
        command: CommandInfo {
            words: options.command.words(),
            working_directory: options.command.working_directory.clone(),
            user: options.command.user.as_ref().map(|user| user.name.clone()),
            environment: options.command.environment(),
        },
        capture,
        listeners: tree.listeners,
        shared_ports: edit::shared_ports(&staging.criu())?,
        root: tree.root,
        processes: tree.members.into_iter().map(|member| member.info).collect(),
        memory_bytes: memory_bytes(&staging.work()),
        stdout,
        stderr,
        clocks: tree.clocks,
        host: Host::read().map_err(CaptureError::Host)?,
        criu: CriuInfo {
            version,
            user,
            foreign_session: tree.foreign_session,
        },
        dependencies: store::dependencies(edit::files(&staging.criu())?),
        files: vec![],
    };
    let image = store.commit(staging, manifest, &options.name)?;
    Ok(Captured { image, running })
}

fn memory_bytes(work: &Path) -> u64 {
    edit::pages_written(work).unwrap_or(0) * rustix::param::page_size() as u64
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

/// The way of a command to its capture point.
struct StartUp<'a> {
    options: &'a Options,
    pipe_names: [String; 2],
    root: Option<HostPid>,
    /// When the command was executed; the time line begins here.
    exec_ns: Option<u64>,
    stop_ns: u64,
    moments: Vec<(u64, HostPid, String)>,
}

impl<'a> StartUp<'a> {
    fn new(options: &'a Options) -> Self {
        Self {
            options,
            pipe_names: [String::new(), String::new()],
            root: None,
            exec_ns: None,
            stop_ns: 0,
            moments: vec![],
        }
    }

    /// Starts the command and waits until a process of it was stopped at the capture point.
    async fn run(
        &mut self,
        sandbox: &mut Sandbox,
        watch: &mut Watch,
        output: &mut Output,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), CaptureError> {
        self.pipe_names = output.names().clone();
        sandbox.start().await?;
        let root = tree::children(sandbox.init());
        let root = *root.first().ok_or(FreezeError::Gone)?;
        self.root = Some(root);
        watch.follow(root)?;
        sandbox.go().await.map_err(|error| self.exec_error(error))?;
        let deadline = tokio::time::sleep(self.options.limit);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                event = watch.next() => {
                    if self.take(event?, progress) {
                        return Ok(());
                    }
                }
                status = sandbox.exit() => {
                    output.drained().await;
                    return Err(CaptureError::ExitedEarly {
                        command: self.command(),
                        awaited: self.awaited(),
                        status: crate::instance::describe_status(status?),
                        output: output.last_lines(),
                    });
                }
                () = &mut deadline => {
                    return Err(CaptureError::Timeout {
                        command: self.command(),
                        awaited: self.awaited(),
                        limit: self.options.limit,
                        blocked_on: tree::blocked_on(&tree::descendants(sandbox.init())),
                        output: output.last_lines(),
                    });
                }
            }
        }
    }

    fn command(&self) -> String {
        self.options
            .command
            .words()
            .first()
            .cloned()
            .unwrap_or_default()
    }

    fn awaited(&self) -> &'static str {
        match self.options.point {
            CapturePoint::Ready => "waited for a connection",
            CapturePoint::Listen => "listened",
            CapturePoint::Accept => "called accept",
        }
    }

    fn exec_error(&self, error: SpawnError) -> CaptureError {
        match error {
            SpawnError::Init {
                step: Step::Exec,
                source,
            } => CaptureError::Exec {
                command: self.command(),
                source,
            },
            other => CaptureError::Spawn(other),
        }
    }

    /// Takes an event into account; returns whether it was the capture point.
    fn take(&mut self, event: Event, progress: &mut impl FnMut(Progress)) -> bool {
        let at = |listener: Option<crate::listener::Listener>| {
            listener.map_or_else(|| "a socket".to_owned(), |listener| listener.to_string())
        };
        let text = match event.what {
            What::Fork { .. } | What::Exit { .. } => return false,
            What::Exec { path } => {
                if Some(event.pid) == self.root && self.exec_ns.is_none() {
                    self.exec_ns = Some(event.time_ns);
                }
                let cut = if event.truncated { "…" } else { "" };
                format!(
                    "exec {}{cut}",
                    String::from_utf8_lossy(path.as_os_str().as_bytes())
                )
            }
            What::Bind { at: listener } => format!("bind {}", at(listener)),
            What::Listen { at: listener } => format!("listen {}", at(listener)),
            What::Accept { at: listener } => format!("accept {}", at(listener)),
            What::Wait { at: listener } => format!("wait {}", at(listener)),
        };
        let after = event
            .time_ns
            .saturating_sub(self.exec_ns.unwrap_or(event.time_ns));
        progress(Progress::StartingUp {
            after: Duration::from_nanos(after),
            event: text.clone(),
        });
        self.moments.push((event.time_ns, event.pid, text));
        self.stop_ns = event.time_ns;
        event.stopped
    }

    fn since_exec_us(&self, time_ns: u64) -> u64 {
        time_ns.saturating_sub(self.exec_ns.unwrap_or(time_ns)) / 1000
    }

    fn duration_us(&self) -> u64 {
        self.since_exec_us(self.stop_ns)
    }

    fn time_line(&self, tree: &FrozenTree) -> Vec<Moment> {
        let in_image = |host: HostPid| -> Option<NsPid> {
            let member = tree.members.iter().find(|member| member.host == host)?;
            Some(member.info.pid)
        };
        self.moments
            .iter()
            .map(|(time, pid, event)| Moment {
                at_us: self.since_exec_us(*time),
                pid: in_image(*pid),
                event: event.clone(),
            })
            .collect()
    }
}
