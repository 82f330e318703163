//! The way of a command to its capture point: what happened on it, and when it is reached.

use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::{CaptureError, NotReached, Options, Progress, reads::Reads};
use crate::{
    criu::kerndat::Kerndat,
    freeze::{FreezeError, FrozenTree},
    listener::{self, Listener},
    output::Output,
    profile::Recorder,
    spawn::{Bound, Command, Descriptors, Fresh, Place, Plan, Sandbox, SpawnError, Step},
    store::Moment,
    tree::{self, HostPid, NsPid},
    watch::{CapturePoint, Event, Watch, What},
};

/// A sandbox for a command, which does not run yet, and what reads its output. With the command comes
/// where it is to listen instead of where it asks to. `criu` is the program and
/// where its kernel data is cached; the folders are those of CRIU's images and logs.
///
/// # Errors
/// See [`CaptureError`].
pub async fn sandbox(
    (command, bound): (&Command, Vec<Bound>),
    (criu, kerndat): (CString, Option<&Kerndat>),
    [images, work]: [BorrowedFd<'_>; 2],
) -> Result<(Sandbox, Output), CaptureError> {
    let (output, [stdout, stderr]) = Output::new(false).map_err(CaptureError::Output)?;
    let plan = Plan {
        command: Some(command.clone()),
        criu,
        kerndat: kerndat.map_or_else(PathBuf::new, |cache| cache.folder().to_path_buf()),
        kerndat_is_new: kerndat.is_some_and(|cache| !cache.is_filled()),
        handed: 0,
        bound,
        guarded: None,
        shared: vec![],
        place: Place::New(Fresh {
            terminals: true,
            ..Fresh::default()
        }),
    };
    let descriptors = Descriptors {
        images,
        work,
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        instance: work,
        handed: vec![],
    };
    Ok((Sandbox::create(&plan, &descriptors).await?, output))
}

/// The same for a command of which no image is to be made.
///
/// # Errors
/// See [`CaptureError`].
pub async fn sandbox_without_images(command: &Command) -> Result<(Sandbox, Output), CaptureError> {
    let nowhere = fs::File::open("/proc/self").map_err(CaptureError::Host)?;
    let command = (command, vec![]);
    sandbox(command, (c"".to_owned(), None), [nowhere.as_fd(); 2]).await
}

/// What it means that a command was not executed.
pub fn exec_error(command: &Command, error: SpawnError) -> CaptureError {
    match error {
        SpawnError::Init {
            step: Step::Exec,
            source,
        } => CaptureError::Exec {
            command: command.words().first().cloned().unwrap_or_default(),
            source,
        },
        other => CaptureError::Spawn(other),
    }
}

/// The way of a command to its capture point.
pub struct StartUp<'a> {
    options: &'a Options,
    pub pipe_names: [String; 2],
    root: Option<HostPid>,
    /// When the command was executed; the time line begins here.
    exec_ns: Option<u64>,
    pub stop_ns: u64,
    /// The process that the probe stopped.
    pub stopped: Option<HostPid>,
    /// Where it listens, in the order in which it began to.
    pub listens: Vec<Listener>,
    /// What it first waited on.
    pub ready_on: Option<Listener>,
    pub forked_after_listen: bool,
    /// The server is not stopped at the point.
    pub runs_on: bool,
    moments: Vec<(u64, HostPid, String)>,
}

impl<'a> StartUp<'a> {
    pub fn new(options: &'a Options) -> Self {
        Self {
            options,
            pipe_names: [String::new(), String::new()],
            root: None,
            exec_ns: None,
            stop_ns: 0,
            stopped: None,
            listens: vec![],
            ready_on: None,
            forked_after_listen: false,
            runs_on: options.runs_on(),
            moments: vec![],
        }
    }

    /// Starts the command and waits until a process of it was stopped at the capture point.
    pub async fn run(
        &mut self,
        sandbox: &mut Sandbox,
        (watch, mut reads): (&mut Watch, Option<&mut Reads>),
        output: &mut Output,
        mut recorder: Option<&mut Recorder>,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), CaptureError> {
        self.pipe_names = output.names().clone();
        sandbox.start().await?;
        let root = tree::children(sandbox.init());
        let root = *root.first().ok_or(FreezeError::Gone)?;
        self.root = Some(root);
        watch.follow(root)?;
        if let Some(recorder) = &mut recorder {
            recorder.sample(root);
        }
        let executed = sandbox.go().await;
        executed.map_err(|error| exec_error(&self.options.command, error))?;
        let deadline = tokio::time::sleep(self.options.limit);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                event = watch.next() => {
                    let event = event?;
                    if let Some(recorder) = &mut recorder {
                        recorder.event(&event);
                    }
                    if let (What::Exec { path }, Some(reads)) = (&event.what, &mut reads) {
                        reads.executed(event.pid, path, event.truncated);
                    }
                    if self.take(event, progress) {
                        return Ok(());
                    }
                    // A server that never rests must not keep the others from their turn.
                    tokio::task::yield_now().await;
                }
                read = async {
                    match &mut reads {
                        Some(reads) => reads.turn().await,
                        None => std::future::pending().await,
                    }
                } => read?,
                recorded = async {
                    match &mut recorder {
                        Some(recorder) => recorder.turn().await,
                        None => std::future::pending().await,
                    }
                } => recorded?,
                status = sandbox.exit() => {
                    return Err(self.ended(Some(status?), output, self.awaited()).await);
                }
                () = &mut deadline => {
                    return Err(CaptureError::Timeout(Box::new(NotReached {
                        command: self.command(),
                        awaited: self.awaited(),
                        limit: self.options.limit,
                        wanted: self.options.how.listener.clone(),
                        listens: self.listens.clone(),
                        blocked_on: tree::blocked_on(&tree::descendants(sandbox.init())),
                        output: output.last_lines(),
                    })));
                }
            }
        }
    }

    /// What became of a server that has ended, with its wait status if that is known.
    pub async fn ended(
        &self,
        status: Option<i32>,
        output: &mut Output,
        awaited: &'static str,
    ) -> CaptureError {
        output.drained().await;
        CaptureError::ExitedEarly {
            command: self.command(),
            awaited,
            status: match status {
                Some(status) => crate::instance::describe_status(status),
                None => "none of its processes is left".to_owned(),
            },
            output: output.last_lines(),
        }
    }

    pub fn command(&self) -> String {
        self.options
            .command
            .words()
            .first()
            .cloned()
            .unwrap_or_default()
    }

    fn awaited(&self) -> &'static str {
        match self.options.point {
            CapturePoint::Ready | CapturePoint::Warm | CapturePoint::Checkpoint => {
                "waited for a connection"
            }
            CapturePoint::Listen | CapturePoint::PreListen => "listened",
            CapturePoint::Accept => "called accept",
            CapturePoint::Fork => "listened and forked",
        }
    }

    /// Takes an event into account; returns whether it was the capture point, or what warming up
    /// begins with.
    fn take(&mut self, event: Event, progress: &mut impl FnMut(Progress)) -> bool {
        let at = |listener: Option<Listener>| {
            listener.map_or_else(|| "a socket".to_owned(), |listener| listener.to_string())
        };
        match &event.what {
            What::Listen { at: Some(listener) } => self.listens.push(listener.clone()),
            What::Accept { at } | What::Wait { at } => self.ready_on.clone_from(at),
            _ => {}
        }
        let is_at_point = self.runs_on && self.is_at_point(&event.what);
        let text = match event.what {
            What::Fork { .. } => {
                self.forked_after_listen |= !self.listens.is_empty();
                if is_at_point {
                    self.stop_ns = event.time_ns;
                }
                return is_at_point;
            }
            What::Exit { .. } => return false,
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
            What::Forking => "fork".to_owned(),
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
        if event.stopped {
            self.stopped = Some(event.pid);
        }
        event.stopped || is_at_point
    }

    /// Whether this is the point, of a server that is not stopped there.
    fn is_at_point(&self, what: &What) -> bool {
        match self.options.point {
            CapturePoint::Listen | CapturePoint::PreListen => matches!(what, What::Listen { .. }),
            CapturePoint::Accept => matches!(what, What::Accept { .. }),
            CapturePoint::Fork => {
                matches!(what, What::Fork { .. } if !self.listens.is_empty())
            }
            CapturePoint::Ready | CapturePoint::Warm | CapturePoint::Checkpoint => {
                matches!(what, What::Accept { .. } | What::Wait { .. })
            }
        }
    }

    /// Adds a step of the start-up that is known without the probe.
    pub fn add(&mut self, event: &str) {
        self.stop_ns = self.mark(event);
    }

    /// Adds what is known without the probe; returns when it was.
    pub fn mark(&mut self, event: &str) -> u64 {
        let now = crate::host::Clocks::now().monotonic_ns;
        let root = self.root.unwrap_or(HostPid(0));
        self.moments.push((now, root, event.to_owned()));
        now
    }

    /// When the command was executed, by the clock on the wall.
    pub fn exec_at(&self) -> Option<SystemTime> {
        let now = crate::host::Clocks::now().monotonic_ns;
        let ago = now.checked_sub(self.exec_ns?)?;
        SystemTime::now().checked_sub(Duration::from_nanos(ago))
    }

    /// Has listeners be called as they are in the image.
    pub fn rename(&mut self, names: &[(Listener, Listener)]) {
        listener::rename(&mut self.listens, names);
        for (_, _, event) in &mut self.moments {
            for (before, after) in names {
                *event = event.replace(&before.to_string(), &after.to_string());
            }
        }
    }

    fn since_exec_us(&self, time_ns: u64) -> u64 {
        time_ns.saturating_sub(self.exec_ns.unwrap_or(time_ns)) / 1000
    }

    pub fn duration_us(&self) -> u64 {
        self.since_exec_us(self.stop_ns)
    }

    pub fn time_line(&self, tree: &FrozenTree) -> Vec<Moment> {
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
