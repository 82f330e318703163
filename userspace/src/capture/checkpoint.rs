//! `warmimg checkpoint`: an image of a tree that runs already, of an instance or of any other.

use std::{
    fs,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use procfs::{ProcError, process::Process};
use rustix::process::Signal;

use super::{
    CaptureError, Progress,
    dump::{self, Origin, Wanted},
};
use crate::{
    criu::{self, AfterDump, Program, TcpConnections, kerndat::Kerndat},
    freeze, host,
    spawn::{Descriptors, Namespaces, Place, Plan, Sandbox, Visit},
    store::{Capture, CommandInfo, Image, Moment, Store, StoreError},
    tree::{self, HostPid, Top},
    watch::CapturePoint,
};

/// What to make an image of, and how.
pub struct Options {
    pub top: Top,
    pub name: String,
    /// The image that the tree was restored from, if it was.
    pub image: Option<Image>,
    pub outbound: TcpConnections,
    /// Go on running the tree.
    pub leave_running: bool,
}

/// Makes an image of a tree that runs. It is killed then, unless it is to be left running; if
/// anything fails, it goes on.
///
/// # Errors
/// See [`CaptureError`].
pub async fn checkpoint(
    store: &Store,
    criu: &Program,
    options: &Options,
    mut progress: impl FnMut(Progress),
) -> Result<Image, CaptureError> {
    let version = criu.check(host::kernel_version())?;
    let root = match options.top {
        Top::Root(root) => root,
        Top::Init(init) => only_child(init, criu).await?,
    };
    if options
        .top
        .pids()
        .contains(&HostPid(std::process::id() as i32))
    {
        return Err(CaptureError::Own {
            process: tree::label(root),
        });
    }
    // Read while it runs: what is read of a process that is gone is nothing.
    let unreadable = |source| match source {
        ProcError::NotFound(_) => CaptureError::NoProcess(root),
        source => CaptureError::Unreadable { pid: root, source },
    };
    let process = Process::new(root.0).map_err(unreadable)?;
    let begun_at = begun_at(&process).map_err(unreadable)?;
    // Neither the init of the machine nor a kernel thread has one that can be read.
    process
        .exe()
        .map_err(|source| CaptureError::Unreadable { pid: root, source })?;
    let command = match &options.image {
        Some(image) => image.manifest.command.clone(),
        None => command_of(&process).map_err(unreadable)?,
    };
    refuse_terminals(root)?;

    let staging = store.stage()?;
    let kerndat = Kerndat::open(&store.kerndat(), criu).map_err(CaptureError::Host)?;
    let plan = Plan {
        command: None,
        criu: criu.c_path(),
        kerndat: kerndat.folder().to_path_buf(),
        // Nothing is mounted where the tree is: without the cache, CRIU takes longer.
        kerndat_is_new: false,
        handed: 0,
        bound: vec![],
        guarded: None,
        shared: vec![],
        place: Place::Of(Visit {
            namespaces: Namespaces::of(root)?,
            top: seen_there(options.top).ok_or(CaptureError::NoProcess(root))?,
        }),
    };
    let open =
        |path: PathBuf| fs::File::open(&path).map_err(|source| StoreError::Read { path, source });
    let (images, work) = (open(staging.criu())?, open(staging.work())?);
    let null = open("/dev/null".into())?;
    let descriptors = Descriptors {
        images: images.as_fd(),
        work: work.as_fd(),
        stdout: null.as_fd(),
        stderr: null.as_fd(),
        instance: work.as_fd(),
        handed: vec![],
    };
    let mut sandbox = Some(Sandbox::create(&plan, &descriptors).await?);

    progress(Progress::Freezing);
    let since = |begun: SystemTime| begun.elapsed().unwrap_or_default().as_micros() as u64;
    let (freeze_at, begun) = (since(begun_at), Instant::now());
    let tree = freeze::freeze(options.top, None).await?;
    let freeze_time = begun.elapsed();
    progress(Progress::Dumping {
        processes: tree.members.len(),
    });
    let dump_at = since(begun_at);
    let wanted = Wanted {
        made_since: begun_at,
        exec_at: Some(begun_at),
        outbound: options.outbound,
        // Killed by CRIU, the root of an instance would take the whole namespace with it, and CRIU.
        after: AfterDump::LeaveStopped,
        outputs: outputs_of(root),
        version,
    };
    let visit = sandbox.as_mut().expect("it is given up after the dump");
    let dumped = dump::dump((store, &kerndat), visit, &staging, &tree, &wanted).await?;
    if options.leave_running {
        // The end of the visit lets the tree go on.
        drop(sandbox.take());
    }
    progress(Progress::Storing);
    let moment = |at_us, event: &str| Moment {
        at_us,
        pid: Some(tree.root),
        event: event.to_owned(),
    };
    let image = options.image.as_ref();
    let origin = Origin {
        version,
        command,
        capture: Capture {
            point: CapturePoint::Checkpoint,
            start_up_us: freeze_at,
            freeze_us: freeze_time.as_micros() as u64,
            dump_us: dumped.time.as_micros() as u64,
            time_line: vec![moment(freeze_at, "freeze"), moment(dump_at, "dump")],
            dropped_events: 0,
        },
        // Of the image that it was restored from: it is captured anew from the start.
        recipe: None,
        after_restore: image.map_or_else(Vec::new, |image| image.manifest.after_restore.clone()),
        outputs: wanted.outputs,
        read: match image {
            Some(image) => dump::FilesRead::OfOrigin(image.read_files()?),
            None => dump::FilesRead::OfOrigin(None),
        },
    };
    let members: Vec<HostPid> = tree.members.iter().map(|member| member.host).collect();
    let image = dump::keep(store, staging, tree, dumped, origin, &options.name)?;
    if !options.leave_running {
        // Only now that there is an image of it; until here, whatever fails lets it go on.
        for pid in members {
            tree::signal(pid, Signal::KILL);
        }
    }
    Ok(image)
}

/// The root below an init, once the CRIU that restored it is gone.
async fn only_child(init: HostPid, criu: &Program) -> Result<HostPid, CaptureError> {
    /// CRIU answers before it ends; that takes it some milliseconds.
    const LIMIT: Duration = Duration::from_secs(5);
    const INTERVAL: Duration = Duration::from_millis(1);
    let is_criu = |pid: &HostPid| {
        let exe = fs::read_link(format!("/proc/{pid}/exe"));
        exe.is_ok_and(|exe| fs::canonicalize(&criu.path).is_ok_and(|criu| exe == criu))
    };
    let deadline = Instant::now() + LIMIT;
    while tree::children(init).iter().any(is_criu) && Instant::now() < deadline {
        tokio::time::sleep(INTERVAL).await;
    }
    let children = tree::children(init);
    children
        .first()
        .copied()
        .ok_or(CaptureError::NoProcess(init))
}

/// A tree by the pids of its own namespace.
fn seen_there(top: Top) -> Option<Top> {
    let seen = |pid| Some(HostPid(tree::ns_pid(pid)?.0));
    Some(match top {
        Top::Init(init) => Top::Init(seen(init)?),
        Top::Root(root) => Top::Root(seen(root)?),
    })
}

/// When a process was started.
fn begun_at(process: &Process) -> procfs::ProcResult<SystemTime> {
    let ticks = process.stat()?.starttime;
    let started = Duration::from_millis(ticks * 1000 / procfs::ticks_per_second());
    let now = Duration::from_nanos(host::Clocks::now().boottime_ns);
    Ok(SystemTime::now() - now.saturating_sub(started))
}

/// What a process was started as.
fn command_of(process: &Process) -> procfs::ProcResult<CommandInfo> {
    let environment = process.environ()?.into_iter();
    let status = process.status()?;
    Ok(CommandInfo {
        words: process.cmdline()?,
        working_directory: process.cwd()?,
        user: (status.euid != 0).then(|| status.euid.to_string()),
        environment: environment
            .map(|(name, value)| {
                let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
                format!("{}={}", text(name), text(value))
            })
            .collect(),
    })
}

/// CRIU's names of what standard output and standard error are, if they are to be replaced: pipes,
/// and the log of an instance, which was opened in a mount that the instance does not see. A file
/// that it does see stays what it is.
fn outputs_of(root: HostPid) -> [Option<String>; 2] {
    let read = |name: &str| fs::read_to_string(format!("/proc/{root}/{name}"));
    let mounts = read("mountinfo").unwrap_or_default();
    [1, 2].map(|fd| {
        let path = format!("/proc/{root}/fd/{fd}");
        let target = fs::read_link(&path).ok()?;
        let name = target.to_str()?;
        if name.starts_with("pipe:") {
            return Some(name.to_owned());
        }
        let file = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let info = read(&format!("fdinfo/{fd}")).ok()?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        let mount = mount?.trim();
        let mut seen = mounts.lines().filter_map(|line| line.split(' ').next());
        if seen.any(|seen| seen == mount) {
            return None;
        }
        Some(criu::external_file(mount.parse().ok()?, file.ino()))
    })
}

/// Refuses a tree whose root has the terminal of the one who started it: it could not be brought
/// back to it.
fn refuse_terminals(root: HostPid) -> Result<(), CaptureError> {
    for fd in 0..3 {
        let target = fs::read_link(format!("/proc/{root}/fd/{fd}"));
        let is_terminal = |path: &PathBuf| {
            path.starts_with("/dev/pts/")
                || path.starts_with("/dev/tty")
                || path == Path::new("/dev/console")
        };
        if let Some(terminal) = target.ok().filter(is_terminal) {
            return Err(CaptureError::Terminal {
                process: tree::label(root),
                terminal,
            });
        }
    }
    Ok(())
}
