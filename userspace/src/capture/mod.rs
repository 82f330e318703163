//! From a command to an image: composes spawn, watch, freeze, dump, edit and store.

mod check;
pub mod checkpoint;
mod dump;
mod reads;
pub(crate) mod start_up;
mod warm;

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    client::AskError,
    criu::{
        AfterDump, CriuError, Program, ProgramError, TcpConnections, UserError, Version,
        kerndat::Kerndat,
    },
    edit::{self, EditError},
    elsewhere::Elsewhere,
    freeze::{self, FreezeError, FrozenTree},
    hook::{Hook, HookError},
    host,
    listener::{self, Listener, Wanted},
    obstacle::Obstacles,
    output::Output,
    profile::{Profile, Recorder, Subject},
    spawn::{Bound, Command, Instead, Sandbox, SpawnError},
    store::{Capture, CommandInfo, Image, Recipe, Staging, Store, StoreError},
    tree::{Connection, HostPid, Top},
    warmup::{Warmup, WarmupError},
    watch::{CapturePoint, Watch, WatchError},
};

use rustix::process::Signal;

pub use self::check::check;
pub(crate) use self::dump::keep_log;
use self::{
    reads::{Read, Reads},
    start_up::StartUp,
};

/// How long init may take to tell that the server has ended.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

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
    Obstacles(#[from] Obstacles),
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
    #[error(transparent)]
    Timeout(Box<NotReached>),
    #[error(transparent)]
    Warmup(#[from] WarmupError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("the server listens nowhere that could be asked")]
    NoListener,
    #[error("the server still has connections after {} s", .limit.as_secs_f64())]
    Busy {
        connections: Vec<Connection>,
        limit: Duration,
    },
    #[error("the server is connected to others")]
    Connected { connections: Vec<Connection> },
    #[error("there is no process {0}")]
    NoProcess(HostPid),
    #[error("cannot read what process {pid} is")]
    Unreadable {
        pid: HostPid,
        source: procfs::ProcError,
    },
    #[error("warmimg itself runs below {process}, and would be stopped with it")]
    Own { process: String },
    #[error("{process} has the terminal {} open", .terminal.display())]
    Terminal { process: String, terminal: PathBuf },
    #[error("{url} was not answered within {} s", .limit.as_secs_f64())]
    NoResponse {
        url: String,
        limit: Duration,
        source: Option<AskError>,
    },
    #[error("interrupted")]
    Interrupted,
}

/// A capture point that was not reached in time.
#[derive(Debug, thiserror::Error)]
#[error("{command} has not {awaited} within {} s", .limit.as_secs_f64())]
pub struct NotReached {
    pub command: String,
    pub awaited: &'static str,
    pub limit: Duration,
    /// The listener that counts, if one was named.
    pub wanted: Option<Wanted>,
    /// Where it does listen.
    pub listens: Vec<Listener>,
    pub blocked_on: Vec<String>,
    /// The end of what it wrote.
    pub output: Vec<String>,
}

/// What more there is to say about a capture.
#[derive(Clone, Default)]
pub struct How {
    /// The listener that counts, if not any.
    pub listener: Option<Wanted>,
    /// What to ask before the capture at [`CapturePoint::Warm`].
    pub warmups: Vec<Warmup>,
    /// What to do before the freeze, while the server runs.
    pub before_freeze: Vec<Hook>,
    /// What to do after each restore.
    pub after_restore: Vec<Hook>,
    /// How long each hook may take.
    pub hook_limit: Duration,
    /// What becomes of the connections that the server has to others; refused if there is nothing
    /// said.
    pub outbound: TcpConnections,
}

impl How {
    /// The same of a server whose listeners are elsewhere until its image is made.
    #[must_use]
    pub fn elsewhere(self, elsewhere: &Elsewhere) -> Self {
        let wanted = self.listener.as_ref();
        let listener = wanted.and_then(|wanted| elsewhere.wanted(wanted));
        let (warmups, hooks) = (self.warmups.into_iter(), self.before_freeze.into_iter());
        Self {
            listener: listener.or(self.listener),
            warmups: warmups.map(|warmup| warmup.elsewhere(elsewhere)).collect(),
            before_freeze: hooks.map(|hook| hook.elsewhere(elsewhere)).collect(),
            ..self
        }
    }

    /// What of it has a meaning at a point.
    #[must_use]
    pub fn at(mut self, point: CapturePoint) -> Self {
        if point != CapturePoint::Warm {
            self.warmups.clear();
        }
        if !point.can_run_on() {
            self.before_freeze.clear();
        }
        self
    }
}

/// What to capture, and how.
pub struct Options {
    pub command: Command,
    pub point: CapturePoint,
    /// How long the command may take to the capture point.
    pub limit: Duration,
    pub name: String,
    pub how: How,
    /// Go on running the captured tree.
    pub leave_running: bool,
    /// Record a profile of the start-up, with as many stacks per second; 0 for none.
    pub profiled: Option<u32>,
    /// Where the server listens until the image is made, as something else listens at its own places.
    pub elsewhere: Elsewhere,
}

impl Options {
    fn recipe(&self) -> Recipe {
        let How {
            listener,
            warmups,
            before_freeze,
            hook_limit,
            outbound,
            ..
        } = &self.how;
        let back = self.elsewhere.back();
        let listener = listener.as_ref().map(|wanted| {
            let own = back.iter().find(|(new, _)| wanted.is(new));
            own.map_or_else(|| wanted.spec(), |(_, old)| old.to_string())
        });
        Recipe {
            listener,
            warmups: warmups.iter().map(ToString::to_string).collect(),
            before_freeze: before_freeze.iter().map(ToString::to_string).collect(),
            outbound: *outbound,
            limit_ms: self.limit.as_millis() as u64,
            hook_limit_ms: hook_limit.as_millis() as u64,
        }
    }

    /// Whether the server is to run on when it is ready: then it is not stopped in the kernel.
    fn runs_on(&self) -> bool {
        self.point == CapturePoint::Warm || !self.how.before_freeze.is_empty()
    }
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
    WarmingUp {
        warmup: usize,
        warmups: usize,
    },
    Hook {
        hook: String,
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
    /// A process of it forked after a socket had listened.
    pub forked_after_listen: bool,
    /// The server, if it was left running.
    pub running: Option<(Sandbox, Output)>,
    /// Of the start-up until the server was ready or at the capture point, if it was to be recorded.
    pub profile: Option<Profile>,
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
    progress: impl FnMut(Progress),
) -> Result<Captured, CaptureError> {
    let mut attempt = Attempt::new(store, criu, options).await?;
    let made = tokio::select! {
        made = attempt.make(progress) => made?,
        () = interrupted => return Err(CaptureError::Interrupted),
    };
    let running = match options.leave_running {
        true => Some(attempt.into_running()),
        false => None,
    };
    Ok(Captured {
        image: made.image,
        forked_after_listen: made.forked_after_listen,
        running,
        profile: made.profile,
    })
}

/// A command that is to become an image, in its sandbox.
pub struct Attempt<'a> {
    store: &'a Store,
    options: &'a Options,
    begun_at: SystemTime,
    version: Version,
    staging: Option<Staging>,
    kerndat: Kerndat,
    sandbox: Sandbox,
    output: Output,
}

/// What an attempt has made.
pub struct Made {
    pub image: Image,
    forked_after_listen: bool,
    profile: Option<Profile>,
}

/// A command that stands still at its capture point.
struct Frozen<'a> {
    start_up: StartUp<'a>,
    tree: FrozenTree,
    /// How long it took to freeze it.
    time: Duration,
    read: Read,
    profile: Option<Profile>,
    dropped_events: u64,
}

impl<'a> Attempt<'a> {
    /// Prepares everything; the command does not run yet.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub async fn new(
        store: &'a Store,
        criu: &Program,
        options: &'a Options,
    ) -> Result<Self, CaptureError> {
        let begun_at = SystemTime::now();
        let version = criu.check(host::kernel_version())?;
        let staging = store.stage()?;
        let kerndat = Kerndat::open(&store.kerndat(), criu).map_err(CaptureError::Host)?;
        let open = |path: PathBuf| {
            fs::File::open(&path).map_err(|source| StoreError::Read { path, source })
        };
        let (images, work) = (open(staging.criu())?, open(staging.work())?);
        let criu = (criu.c_path(), Some(&kerndat));
        let folders = [images.as_fd(), work.as_fd()];
        let bound = options.elsewhere.places().iter().map(|(asked, new)| Bound {
            asked: asked.clone(),
            instead: Instead::At(new.clone()),
        });
        let command = (&options.command, bound.collect());
        let (sandbox, output) = start_up::sandbox(command, criu, folders).await?;
        Ok(Self {
            store,
            options,
            begun_at,
            version,
            staging: Some(staging),
            kerndat,
            sandbox,
            output,
        })
    }

    /// The init that the command runs below.
    pub fn init(&self) -> HostPid {
        self.sandbox.init()
    }

    /// From now on, passes on what the server writes.
    pub fn forward_output(&self) {
        self.output.forward();
    }

    /// Starts the command, and makes an image of it at the capture point.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub async fn make(&mut self, mut progress: impl FnMut(Progress)) -> Result<Made, CaptureError> {
        let staging = self.staging.take().expect("an attempt is made once");
        let mut frozen = self.freeze(&mut progress).await?;
        let dumped = self.dump(&staging, &mut frozen, &mut progress).await?;
        let Self {
            store,
            options,
            sandbox,
            ..
        } = self;
        if options.leave_running {
            sandbox.set_main(frozen.tree.root).await?;
            frozen.tree.signal(Signal::CONT);
        }

        progress(Progress::Storing);
        if !options.elsewhere.places().is_empty() {
            let back = options.elsewhere.back();
            edit::rename_listeners(&staging.criu(), &back, false)?;
            frozen.start_up.rename(&back);
            listener::rename(&mut frozen.tree.listeners, &back);
        }
        if options.point == CapturePoint::PreListen {
            let listener = frozen
                .start_up
                .listens
                .last()
                .ok_or(CaptureError::NoListener)?;
            edit::before_listen(&staging.criu(), listener)?;
        }
        let after_restore = options.how.after_restore.iter().map(ToString::to_string);
        let origin = dump::Origin {
            version: self.version,
            command: CommandInfo {
                words: options.command.words(),
                working_directory: options.command.working_directory.clone(),
                user: options.command.user.as_ref().map(|user| user.name.clone()),
                environment: options.command.environment(),
            },
            capture: Capture {
                point: options.point,
                start_up_us: frozen.start_up.duration_us(),
                freeze_us: frozen.time.as_micros() as u64,
                dump_us: dumped.time.as_micros() as u64,
                time_line: frozen.start_up.time_line(&frozen.tree),
                dropped_events: frozen.dropped_events,
            },
            recipe: Some(options.recipe()),
            after_restore: after_restore.collect(),
            outputs: frozen.start_up.pipe_names.clone().map(Some),
            read: dump::FilesRead::Seen(frozen.read),
        };
        let image = dump::keep(store, staging, frozen.tree, dumped, origin, &options.name)?;
        Ok(Made {
            image,
            forked_after_listen: frozen.start_up.forked_after_listen,
            profile: frozen.profile,
        })
    }

    /// Starts the command, and freezes it at the capture point.
    async fn freeze(
        &mut self,
        mut progress: impl FnMut(Progress),
    ) -> Result<Frozen<'a>, CaptureError> {
        let Self {
            options,
            sandbox,
            output,
            ..
        } = self;
        let options = *options;
        progress(Progress::Attaching);
        let stop_at = Some(options.point).filter(|_| !options.runs_on());
        let listener = options.how.listener.as_ref();
        let (mut watch, mut recorder) = match options.profiled {
            None => (Watch::attach(stop_at, listener)?, None),
            Some(frequency) => {
                let (watch, recording) = Watch::attach_recording(stop_at, listener)?;
                (watch, Some(Recorder::new(recording, frequency)))
            }
        };
        let mut reads = Reads::new(watch.opens()?, &options.command.working_directory);
        let mut start_up = StartUp::new(options);
        start_up
            .run(
                sandbox,
                (&mut watch, Some(&mut reads)),
                output,
                recorder.as_mut(),
                &mut progress,
            )
            .await?;
        let profile = recorder.map(|recorder| {
            recorder.finish(Subject {
                command: options.command.words(),
                point: options.point,
                end_ns: start_up.stop_ns,
                restored_ns: None,
                response_ns: None,
            })
        });
        let profile = profile.transpose()?;
        let dropped_events = watch.dropped()?;
        let (tree, freeze_time) = if options.runs_on() {
            // The events to come would be those of the requests; files are still read.
            watch.look_away()?;
            let steps = (&mut *sandbox, &mut *output, &mut start_up);
            let asked = warm::warm_up(steps, options, &mut progress).await?;
            progress(Progress::Freezing);
            start_up.mark("freeze");
            match warm::freeze_idle(sandbox, &asked).await {
                Err(CaptureError::Freeze(FreezeError::Gone)) => {
                    let status = tokio::time::timeout(EXIT_LIMIT, sandbox.exit()).await;
                    let status = status.ok().and_then(Result::ok);
                    return Err(start_up.ended(status, output, "was frozen").await);
                }
                frozen => frozen?,
            }
        } else {
            progress(Progress::Freezing);
            start_up.mark("freeze");
            let begun = Instant::now();
            let tree = freeze::freeze(Top::Init(sandbox.init()), start_up.stopped).await?;
            (tree, begun.elapsed())
        };
        let read = reads.finish()?;
        // Detached before CRIU works in the tree: what it does there is not the server's doing.
        drop(watch);
        Ok(Frozen {
            start_up,
            tree,
            time: freeze_time,
            read,
            profile,
            dropped_events,
        })
    }

    /// Lets CRIU dump what is frozen.
    async fn dump(
        &mut self,
        staging: &Staging,
        frozen: &mut Frozen<'_>,
        mut progress: impl FnMut(Progress),
    ) -> Result<dump::Dumped, CaptureError> {
        progress(Progress::Dumping {
            processes: frozen.tree.members.len(),
        });
        let wanted = dump::Wanted {
            made_since: self.begun_at,
            exec_at: frozen.start_up.exec_at(),
            outbound: self.options.how.outbound,
            after: match self.options.leave_running {
                true => AfterDump::LeaveStopped,
                false => AfterDump::Kill,
            },
            outputs: frozen.start_up.pipe_names.clone().map(Some),
        };
        frozen.start_up.mark("dump");
        let place = (self.store, &self.kerndat);
        dump::dump(place, &mut self.sandbox, staging, &frozen.tree, &wanted).await
    }

    /// The server, which goes on running if it was to be left running.
    pub fn into_running(self) -> (Sandbox, Output) {
        (self.sandbox, self.output)
    }
}
