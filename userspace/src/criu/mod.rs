//! Speaks with CRIU: the only module that knows its protocol (`images/rpc.proto`).
//!
//! `criu swrk` is used as a worker on one end of a socket: one request, one answer. The crate
//! rust-criu provides the messages; its own client drops the restored pid and CRIU's error text,
//! so the exchange is done here.

pub mod kerndat;
mod log;
mod program;
mod start;
mod user;

use std::{
    ffi::OsString,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use protobuf::Message as _;
use rust_criu::rust_criu_protobuf::rpc;
use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;

pub use self::{
    log::last_lines,
    program::{PRIVATE_PREFIX, Program, ProgramError, Version, required_version},
    start::Start,
    user::{User, UserError, WITHHELD, choose_user},
};
use crate::{
    spawn::{self, Sandbox, SpawnError},
    sys,
    tree::NsPid,
};

/// Where CRIU's standard output and error go, in the work folder.
pub const STDERR_FILE: &str = "criu.stderr";
/// CRIU's log of a dump, in the work folder.
pub const DUMP_LOG: &str = "dump.log";
/// CRIU's log of a restore, in the work folder.
pub const RESTORE_LOG: &str = "restore.log";

/// Deleted files up to this size in bytes are carried in the image; CRIU's default is 1 MiB.
pub const GHOST_LIMIT: u32 = 64 << 20;

/// How much of CRIU's log an error shows.
const LOG_LINES: usize = 8;

/// What CRIU was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Dump,
    Restore,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dump => "dump",
            Self::Restore => "restore",
        })
    }
}

/// Why CRIU did not do it.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("cannot talk to CRIU")]
    Socket(#[source] io::Error),
    #[error("CRIU's answer is not one of its protocol's")]
    Protocol(#[from] protobuf::Error),
    #[error("CRIU did not finish the {operation} within {} s", .limit.as_secs())]
    Timeout {
        operation: Operation,
        limit: Duration,
    },
    #[error("CRIU failed to {operation}: {message}")]
    Failed {
        operation: Operation,
        /// CRIU's own words, or the errno it gave.
        message: String,
        /// The last lines of its log that are errors or warnings.
        lines: Vec<String>,
        /// The whole log.
        log: PathBuf,
    },
}

/// What to do with the tree once it is dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDump {
    Kill,
    LeaveStopped,
}

/// What becomes of the TCP connections of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TcpConnections {
    /// There are none.
    #[default]
    None,
    /// They are restored as closed.
    Closed,
    /// They are restored as they were.
    Established,
}

/// A dump to be made.
pub struct DumpRequest {
    pub root: NsPid,
    /// The root is no session leader.
    pub foreign_session: bool,
    /// CRIU's names of the files that are replaced at the restore.
    pub replaced: Vec<String>,
    /// The inodes of Unix sockets whose other end is not in the tree.
    pub unix_close: Vec<u64>,
    pub connections: TcpConnections,
    pub after: AfterDump,
    pub limit: Duration,
}

/// A restore to be made.
pub struct RestoreRequest {
    /// Descriptors that take the place of captured files: CRIU's name of the file, and the
    /// number in init.
    pub inherited: Vec<(String, i32)>,
    /// As at the dump.
    pub foreign_session: bool,
    pub connections: TcpConnections,
    pub limit: Duration,
}

/// A CRIU that has been started, and waits for what it is to do.
pub struct Worker(OwnedFd);

/// Starts CRIU, which takes it some milliseconds, in a sandbox.
///
/// # Errors
/// [`CriuError::Spawn`].
pub async fn start(sandbox: &mut Sandbox, user: User) -> Result<Worker, CriuError> {
    Ok(Worker(sandbox.start_criu(user.ids()).await?))
}

/// CRIU's name of a file that it leaves to its caller, by the mount it was opened in.
pub fn external_file(mount: u32, inode: u64) -> String {
    format!("file[{mount:x}:{inode:x}]")
}

/// Dumps a tree of the sandbox to its images folder.
///
/// # Errors
/// See [`CriuError`].
pub async fn dump(
    sandbox: &mut Sandbox,
    user: User,
    request: &DumpRequest,
    work: &Path,
) -> Result<(), CriuError> {
    let mut options = options(DUMP_LOG, LogLevel::Debug);
    options.set_pid(request.root.0);
    options.set_leave_stopped(request.after == AfterDump::LeaveStopped);
    options.set_shell_job(request.foreign_session);
    // A pipe needs not be named: that its other end is outside is no hindrance.
    let files = request
        .replaced
        .iter()
        .filter(|name| name.starts_with("file["));
    let sockets = request.unix_close.iter();
    let sockets = sockets.map(|inode| format!("unix[{inode}]"));
    options.external = files.cloned().chain(sockets).collect();
    // A client that connects to the frozen server is not part of it.
    options.set_tcp_skip_in_flight(true);
    match request.connections {
        TcpConnections::None => {}
        TcpConnections::Closed => options.set_tcp_close(true),
        TcpConnections::Established => options.set_tcp_established(true),
    }
    options.set_ghost_limit(GHOST_LIMIT);
    let message = message(rpc::Criu_req_type::DUMP, options);
    let worker = start(sandbox, user).await?;
    exchange(
        sandbox,
        worker,
        Operation::Dump,
        &message,
        request.limit,
        work,
    )
    .await
    .map(drop)
}

/// Restores the images of the sandbox; returns the pid of the root in its namespace.
///
/// # Errors
/// See [`CriuError`].
pub async fn restore(
    sandbox: &mut Sandbox,
    worker: Worker,
    request: &RestoreRequest,
    work: &Path,
) -> Result<NsPid, CriuError> {
    let mut options = options(RESTORE_LOG, LogLevel::Warning);
    options.set_rst_sibling(true);
    match request.connections {
        TcpConnections::Established => options.set_tcp_established(true),
        // Some may have been closed already, with only their descriptors left: CRIU would refuse
        // those too.
        TcpConnections::None | TcpConnections::Closed => options.set_tcp_close(true),
    }
    options.set_shell_job(request.foreign_session);
    for (key, fd) in &request.inherited {
        let mut inherit = rpc::Inherit_fd::new();
        inherit.set_key(key.clone());
        inherit.set_fd(*fd);
        options.inherit_fd.push(inherit);
    }
    let message = message(rpc::Criu_req_type::RESTORE, options);
    let answer = exchange(
        sandbox,
        worker,
        Operation::Restore,
        &message,
        request.limit,
        work,
    )
    .await?;
    Ok(NsPid(answer.restore.pid()))
}

/// The arguments with which criu(8) itself restores an image, in the foreground.
pub fn plain_restore(
    images: &Path,
    work: &Path,
    outputs: [Option<&str>; 2],
    foreign_session: bool,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["restore".into()];
    words.extend(["--images-dir".into(), images.into()]);
    words.extend(["--work-dir".into(), work.into()]);
    for (fd, output) in [1, 2].into_iter().zip(outputs) {
        let inherited = output.map(|output| format!("fd[{fd}]:{output}").into());
        words.extend(
            inherited
                .into_iter()
                .flat_map(|fd| ["--inherit-fd".into(), fd]),
        );
    }
    let flags = [
        "--log-file",
        RESTORE_LOG,
        "--ext-unix-sk",
        "--file-locks",
        "--tcp-close",
    ];
    words.extend(flags.map(OsString::from));
    if foreign_session {
        words.push("--shell-job".into());
    }
    words
}

/// The levels of `criu/include/log.h` that are used here.
enum LogLevel {
    Warning = 2,
    Debug = 4,
}

fn options(log: &str, level: LogLevel) -> rpc::Criu_opts {
    let mut options = rpc::Criu_opts::new();
    options.set_images_dir_fd(spawn::IMAGES);
    options.set_work_dir_fd(spawn::WORK);
    options.set_log_file(log.to_owned());
    options.set_log_level(level as i32);
    // For root too: CRIU then takes its kernel data cache from a folder of ours instead of
    // /run, and does not run iptables.
    options.set_unprivileged(true);
    options.set_file_locks(true);
    options.set_ext_unix_sk(true);
    // Nothing to protect: a connection that is to go on has no packet under way, or CRIU says so.
    options.set_network_lock(rpc::Criu_network_lock_method::SKIP);
    options.set_manage_cgroups_mode(rpc::Criu_cg_mode::IGNORE);
    options
}

fn message(kind: rpc::Criu_req_type, options: rpc::Criu_opts) -> rpc::Criu_req {
    let mut request = rpc::Criu_req::new();
    request.set_type(kind);
    request.opts = protobuf::MessageField::some(options);
    request
}

async fn exchange(
    sandbox: &mut Sandbox,
    worker: Worker,
    operation: Operation,
    request: &rpc::Criu_req,
    limit: Duration,
    work: &Path,
) -> Result<rpc::Criu_resp, CriuError> {
    let answer = tokio::time::timeout(limit, ask(worker.0, request))
        .await
        .map_err(|_| CriuError::Timeout { operation, limit })?;
    let failed = |message: String| {
        let log = match operation {
            Operation::Dump => work.join(DUMP_LOG),
            Operation::Restore => work.join(RESTORE_LOG),
        };
        let mut lines = last_lines(&log, LOG_LINES);
        let errors = work.join(STDERR_FILE);
        if lines.is_empty() {
            lines = crate::output::tail(&fs::read(&errors).unwrap_or_default(), LOG_LINES);
        }
        // One that ended early has no log.
        let log = if log.exists() { log } else { errors };
        CriuError::Failed {
            operation,
            message,
            lines,
            log,
        }
    };
    match answer? {
        // Its own end, which takes it some milliseconds, is not waited for: init reaps it.
        Some(answer) if answer.success() => Ok(answer),
        Some(answer) => {
            let errno = io::Error::from_raw_os_error(answer.cr_errno());
            let message = match answer.cr_errmsg() {
                "" if answer.cr_errno() != 0 => errno.to_string(),
                "" => "no reason given".to_owned(),
                text => text.trim().to_owned(),
            };
            Err(failed(message))
        }
        None => {
            let status = tokio::time::timeout(limit, sandbox.criu_exit()).await;
            let status = match status {
                Ok(Ok(status)) => crate::instance::describe_status(status),
                _ => "without an exit status".to_owned(),
            };
            Err(failed(format!("it ended before it answered ({status})")))
        }
    }
}

/// Sends a request; returns the answer, or nothing if CRIU closed the socket.
async fn ask(
    socket: OwnedFd,
    request: &rpc::Criu_req,
) -> Result<Option<rpc::Criu_resp>, CriuError> {
    /// More than any answer; a message longer than the buffer would be cut.
    const LARGEST: usize = 1 << 16;
    let fail = |errno: rustix::io::Errno| CriuError::Socket(errno.into());
    rustix::net::send(&socket, &request.write_to_bytes()?, SendFlags::NOSIGNAL).map_err(fail)?;
    rustix::io::ioctl_fionbio(&socket, true).map_err(fail)?;
    let socket = sys::readable(socket).map_err(CriuError::Socket)?;
    let mut bytes = vec![0; LARGEST];
    let received = socket
        .async_io(Interest::READABLE, |socket| {
            let (len, _) = rustix::net::recv(socket.as_fd(), &mut bytes[..], RecvFlags::empty())?;
            Ok(len)
        })
        .await;
    match received {
        Ok(0) => Ok(None),
        Ok(len) => Ok(Some(rpc::Criu_resp::parse_from_bytes(&bytes[..len])?)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(CriuError::Socket(error)),
    }
}
