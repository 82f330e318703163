//! Restored servers: a folder each under the store, locked as long as their init lives.
//!
//! ```text
//! instances/ID
//! ├── instance.json   what it is; there once it runs
//! ├── output.log      what the server wrote, if it is detached
//! ├── exit            its wait status, once it ended
//! └── leaving.json    why it is to end, once it takes no more connections
//! ```
//!
//! The lock is on the folder and shared with init, so the kernel itself tells whether an
//! instance runs: no pid is trusted that could have been used again.

mod limit;
mod running;

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::{limit::LimitError, running::Running};
use crate::{
    cgroup::Group,
    guard,
    listener::Listener,
    memory::{self, Memory},
    network::Addresses,
    private,
    spawn::{EXIT_FILE, GUARD_FILE, WORK},
    sys,
    tree::{self, HostPid},
};

const RECORD: &str = "instance.json";
const OUTPUT: &str = "output.log";
const LEAVING: &str = "leaving.json";

/// Why an instance cannot be found or managed.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("no instance is called {wanted:?}")]
    Unknown {
        wanted: String,
        running: Vec<String>,
    },
    #[error("{id} has ended")]
    Ended { id: String },
    #[error("cannot signal {id} (init pid {init})")]
    Signal {
        id: String,
        init: HostPid,
        source: io::Error,
    },
    #[error("{id} (init pid {init}) did not end, even after SIGKILL")]
    DoesNotEnd { id: String, init: HostPid },
    #[error("{id} runs in the foreground: its output goes to the terminal it was started from")]
    NoLog { id: String },
}

/// What is known of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    /// The digest of its image; none if it was started cold.
    #[serde(default)]
    pub image: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// Pid 1 of its namespace, as the host sees it.
    pub init: HostPid,
    pub detached: bool,
    pub listeners: Vec<Listener>,
    /// How much of its memory was mapped from its image, in bytes.
    #[serde(default)]
    pub mapped_bytes: u64,
    /// It shares its ports with other copies.
    #[serde(default)]
    pub reuse_port: bool,
    /// Its addresses in a network of its own.
    #[serde(default)]
    pub network: Option<Addresses>,
    /// Its control group, if it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// The site that it serves, if it is one of `warmimg serve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
}

/// The folder of an instance being started; removed when dropped, unless kept.
#[derive(Debug)]
pub struct Folder {
    id: String,
    path: PathBuf,
    lock: OwnedFd,
    keep: bool,
}

/// Locks a folder, if nobody else has.
fn lock(folder: &Path) -> io::Result<OwnedFd> {
    let lock = OwnedFd::from(fs::File::open(folder)?);
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(lock)
}

impl Folder {
    /// Makes a folder with the first free number behind `label`.
    ///
    /// # Errors
    /// [`InstanceError::Write`].
    pub fn create(parent: &Path, label: &str) -> Result<Self, InstanceError> {
        let fail = write_error(parent);
        let guard = fs::File::open(parent).map_err(&fail)?;
        flock(&guard, FlockOperation::LockExclusive).map_err(|errno| fail(errno.into()))?;
        sweep(parent);
        let mut number = 1_u32;
        let (id, path) = loop {
            let id = format!("{label}-{number}");
            let path = parent.join(&id);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => break (id, path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(fail(error)),
            }
        };
        let lock = lock(&path).map_err(|error| {
            let _ = fs::remove_dir(&path);
            write_error(&path)(error)
        })?;
        Ok(Self {
            id,
            path,
            lock,
            keep: false,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The locked folder itself, to be held by init.
    pub fn lock(&self) -> &OwnedFd {
        &self.lock
    }

    /// Opens the log that the server of a detached instance writes to.
    ///
    /// # Errors
    /// [`InstanceError::Write`].
    pub fn open_log(&self) -> Result<fs::File, InstanceError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.path.join(OUTPUT);
        let mut options = fs::OpenOptions::new();
        options
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(write_error(&path))
    }

    /// The last lines of this log.
    pub fn last_lines(&self) -> String {
        let log = fs::File::open(self.path.join(OUTPUT));
        log.and_then(running::last_lines).unwrap_or_default()
    }

    /// Makes the instance known.
    ///
    /// # Errors
    /// [`InstanceError::Write`].
    pub fn publish(&self, record: &Record) -> Result<(), InstanceError> {
        write(&self.path, RECORD, record)
    }

    /// Leaves the folder to init and to those who stop the instance.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            let _ = discard(&self.path);
        }
    }
}

/// Removes what killed supervisors left: folders that nobody holds and that are not the remains
/// of a detached instance, which are kept for their log.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_remains = read_record(&path).is_some_and(|record| record.detached);
        if !is_remains && crate::store::is_free(&path) {
            let _ = discard(&path);
        }
    }
}

/// Removes an instance that has ended: its control group, then its folder.
fn discard(folder: &Path) -> io::Result<()> {
    if let Some(group) = read_record(folder).and_then(|record| record.group) {
        group.remove();
    }
    fs::remove_dir_all(folder)
}

fn write(folder: &Path, name: &str, value: &impl Serialize) -> Result<(), InstanceError> {
    let path = folder.join(name);
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    // Others may write it at the same time.
    let aside = folder.join(format!(".{name}.{}", std::process::id()));
    private::write(&aside, &bytes)
        .and_then(|()| fs::rename(&aside, &path))
        .map_err(write_error(&path))
}

fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(folder.join(name)).ok()?).ok()
}

fn read_record(folder: &Path) -> Option<Record> {
    read(folder, RECORD)
}

/// An instance found in the store.
#[derive(Clone, Debug)]
pub struct Instance {
    pub record: Record,
    pub state: State,
    folder: PathBuf,
}

/// Whether an instance runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    /// With its wait status; none if it was killed with its init.
    Ended {
        status: Option<i32>,
    },
}

/// All instances, by their names.
pub fn list(parent: &Path) -> Vec<Instance> {
    // Nobody makes a folder while this is held. If somebody does, he clears up himself.
    if let Ok(_guard) = lock(parent) {
        sweep(parent);
    }
    let mut found: Vec<Instance> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Instance::read(entry.path()))
        .collect();
    found.sort_by(|a, b| a.record.id.cmp(&b.record.id));
    found
}

/// Finds an instance by its name.
///
/// # Errors
/// [`InstanceError::Unknown`].
pub fn find(parent: &Path, wanted: &str) -> Result<Instance, InstanceError> {
    let all = list(parent);
    let names = all
        .iter()
        .map(|instance| instance.record.id.clone())
        .collect();
    all.into_iter()
        .find(|instance| instance.record.id == wanted)
        .ok_or_else(|| InstanceError::Unknown {
            wanted: wanted.to_owned(),
            running: names,
        })
}

impl Instance {
    fn read(folder: PathBuf) -> Option<Self> {
        let record = read_record(&folder)?;
        let state = match crate::store::is_free(&folder) {
            false => State::Running,
            true => State::Ended {
                status: read_status(&folder),
            },
        };
        Some(Self {
            record,
            state,
            folder,
        })
    }

    /// The log of a detached instance.
    ///
    /// # Errors
    /// [`InstanceError::NoLog`] for one in the foreground, or [`InstanceError::Read`].
    pub fn log(&self) -> Result<fs::File, InstanceError> {
        if !self.record.detached {
            return Err(InstanceError::NoLog {
                id: self.record.id.clone(),
            });
        }
        let path = self.folder.join(OUTPUT);
        fs::File::open(&path).map_err(|source| InstanceError::Read { path, source })
    }

    /// What the guard of its memory has done, if that is mapped and the instance runs.
    pub fn guard(&self) -> Option<guard::Counters> {
        let init = self.record.init;
        let text = fs::read(format!("/proc/{init}/fd/{WORK}/{GUARD_FILE}")).ok()?;
        Some(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Whether it still runs, looked up anew.
    pub fn is_running(&self) -> bool {
        !crate::store::is_free(&self.folder)
    }

    /// What its processes have of the memory, init left out; none if it has ended.
    pub fn memory(&self) -> Option<Memory> {
        let found: Vec<Memory> = tree::descendants(self.record.init)
            .into_iter()
            .filter_map(memory::of)
            .collect();
        // If the lock is still held, the pid was init's all the while.
        let is_known = self.state == State::Running && self.is_running() && !found.is_empty();
        is_known.then(|| found.into_iter().sum())
    }

    /// Records the control group that it has been put into.
    ///
    /// # Errors
    /// [`InstanceError::Write`].
    pub fn set_group(&mut self, group: Group) -> Result<(), InstanceError> {
        self.record.group = Some(group);
        write(&self.folder, RECORD, &self.record)
    }

    /// Asks the server to end (SIGTERM), kills it if it does not within `grace`, and removes
    /// what is left of a detached instance. Returns whether it had to be killed.
    ///
    /// # Errors
    /// [`InstanceError::Signal`], [`InstanceError::DoesNotEnd`] or [`InstanceError::Write`].
    pub async fn stop(&self, grace: Duration) -> Result<bool, InstanceError> {
        let killed = match self.state {
            State::Running => self.end(grace).await?,
            State::Ended { .. } => false,
        };
        match discard(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(write_error(&self.folder)(error))
            }
            // The supervisor of a foreground instance removes it as well.
            _ => Ok(killed),
        }
    }

    async fn end(&self, grace: Duration) -> Result<bool, InstanceError> {
        /// How long the kernel may take to end a killed namespace.
        const KILL_LIMIT: Duration = Duration::from_secs(10);
        let fail = self.signal_error();
        let Some(pidfd) = self.open_init()? else {
            return Ok(false);
        };
        let ended = sys::readable(pidfd).map_err(&fail)?;
        let send =
            |signal| pidfd_send_signal(ended.get_ref(), signal).map_err(|errno| fail(errno.into()));
        send(Signal::TERM)?;
        if tokio::time::timeout(grace, ended.readable()).await.is_ok() {
            return Ok(false);
        }
        send(Signal::KILL)?;
        tokio::time::timeout(KILL_LIMIT, ended.readable())
            .await
            .map(|_| true)
            .map_err(|_| InstanceError::DoesNotEnd {
                id: self.record.id.clone(),
                init: self.record.init,
            })
    }

    fn signal_error(&self) -> impl Fn(io::Error) -> InstanceError {
        let Record { id, init, .. } = self.record.clone();
        move |source| InstanceError::Signal {
            id: id.clone(),
            init,
            source,
        }
    }

    /// Init, as long as it lives.
    fn open_init(&self) -> Result<Option<OwnedFd>, InstanceError> {
        let Some(pid) = rustix::process::Pid::from_raw(self.record.init.0) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            opened => opened.map_err(|errno| self.signal_error()(errno.into()))?,
        };
        // Opened, then checked: if the lock is still held, the pid was init's at that time.
        Ok(self.is_running().then_some(pidfd))
    }
}

/// The wait status that init has left.
fn read_status(folder: &Path) -> Option<i32> {
    let text = fs::read_to_string(folder.join(EXIT_FILE)).ok()?;
    text.trim().parse().ok()
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> InstanceError {
    move |source| InstanceError::Write {
        path: path.to_path_buf(),
        source,
    }
}

/// The exit code that a shell gives for a wait status: 128 and the signal if one killed it.
pub fn exit_code(status: i32) -> u8 {
    match (libc::WIFEXITED(status), libc::WIFSIGNALED(status)) {
        (true, _) => libc::WEXITSTATUS(status) as u8,
        (_, true) => 128 + libc::WTERMSIG(status) as u8,
        _ => 255,
    }
}

/// A wait status in words.
pub fn describe_status(status: i32) -> String {
    if libc::WIFSIGNALED(status) {
        let signal = nix::sys::signal::Signal::try_from(libc::WTERMSIG(status));
        return match signal {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {}", libc::WTERMSIG(status)),
        };
    }
    format!("exit status {}", libc::WEXITSTATUS(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_read_as_a_shell_shows_them() {
        assert_eq!((exit_code(3 << 8), exit_code(15)), (3, 143));
        assert_eq!(describe_status(3 << 8), "exit status 3");
        assert_eq!(describe_status(9), "killed by SIGKILL");
    }

    #[test]
    fn folders_are_numbered_and_removed_with_their_guard() {
        let parent = tempfile::tempdir().unwrap();
        let first = Folder::create(parent.path(), "web").unwrap();
        let second = Folder::create(parent.path(), "web").unwrap();
        assert_eq!((first.id(), second.id()), ("web-1", "web-2"));
        drop(first);
        let again = Folder::create(parent.path(), "web").unwrap();
        assert_eq!(again.id(), "web-1");
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        let text =
            r#"{"id":"web-1","image":"0","started_ms":0,"init":1,"detached":true,"listeners":[]}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(
            (record.group, record.network, record.reuse_port),
            (None, None, false)
        );
    }

    #[test]
    fn an_instance_runs_as_long_as_its_lock_is_held() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::create(parent.path(), "web").unwrap();
        folder
            .publish(&Record {
                id: "web-1".into(),
                image: Some("0".into()),
                started_ms: 0,
                init: HostPid(1),
                detached: true,
                listeners: vec![],
                mapped_bytes: 0,
                reuse_port: false,
                network: None,
                group: None,
                site: None,
            })
            .unwrap();
        assert_eq!(find(parent.path(), "web-1").unwrap().state, State::Running);
        fs::write(folder.path.join(EXIT_FILE), "256\n").unwrap();
        folder.keep();
        // The remains of a detached instance stay for their log.
        let other = Folder::create(parent.path(), "web").unwrap();
        assert_eq!(other.id(), "web-2");
        let ended = find(parent.path(), "web-1").unwrap();
        assert_eq!(ended.state, State::Ended { status: Some(256) });
        assert!(matches!(
            find(parent.path(), "db"),
            Err(InstanceError::Unknown { .. })
        ));
    }
}
