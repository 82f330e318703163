//! What an image is: `manifest.json`, whose digest names the image.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::Dependency;
use crate::{
    criu::{TcpConnections, User, Version},
    edit::Mapped,
    host::{Clocks, Host, Surroundings},
    listener::Listener,
    lock::FileLock,
    tree::{NsPid, ProcessInfo},
    watch::CapturePoint,
    working_set::WorkingSet,
};

/// The version of this format. Raised when a reader of the older one would go wrong.
pub const SCHEMA: u32 = 2;

/// Everything about an image but its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub schema: u32,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    pub command: CommandInfo,
    pub capture: Capture,
    pub listeners: Vec<Listener>,
    /// TCP ports of them that the server shares with others by SO_REUSEPORT.
    pub shared_ports: BTreeSet<u16>,
    /// TCP connections that are restored as they were: the own end, and the other.
    #[serde(default)]
    pub connections: Vec<(SocketAddr, SocketAddr)>,
    /// How it was captured, to do so again; none of an image of a tree that ran already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
    /// What is done to each copy after its restore, as it was given on the command line.
    #[serde(default)]
    pub after_restore: Vec<String>,
    /// Locks on files, which no other may have at a restore.
    #[serde(default)]
    pub locks: BTreeSet<FileLock>,
    /// The process that the tree is restored from.
    pub root: NsPid,
    /// Parents before children.
    pub processes: Vec<ProcessInfo>,
    /// Memory that the image holds, in bytes.
    pub memory_bytes: u64,
    /// What of it can be mapped instead of copied, by the images in the folder `map`.
    #[serde(default)]
    pub mapped: Option<Mapped>,
    /// What of it is needed first, if the image was rehearsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_set: Option<WorkingSet>,
    /// CRIU's names of the pipes or files that were standard output and standard error, if they
    /// were any.
    pub stdout: Option<String>,
    pub stderr: Option<String>,
    pub clocks: Clocks,
    pub host: Host,
    pub criu: CriuInfo,
    /// What is not told of the host, and what a server may have made something of.
    #[serde(default)]
    pub surroundings: Option<Surroundings>,
    /// Files outside the image that a restore opens.
    pub dependencies: Vec<Dependency>,
    /// The private keys among the files that were read or are held.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private_keys: Vec<PathBuf>,
    /// The files of the image.
    pub files: Vec<ImageFile>,
}

/// The command that was captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    pub words: Vec<String>,
    pub working_directory: PathBuf,
    /// The user it was told to run as, if any.
    pub user: Option<String>,
    /// `NAME=VALUE`.
    pub environment: Vec<String>,
}

/// What was asked of a capture, as it was given on the command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The listener that counts, if not any.
    pub listener: Option<String>,
    pub warmups: Vec<String>,
    pub before_freeze: Vec<String>,
    pub outbound: TcpConnections,
    /// How long the server may take to the capture point, and each hook.
    pub limit_ms: u64,
    pub hook_limit_ms: u64,
}

/// How the capture went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    pub point: CapturePoint,
    /// From the exec of the command to the capture point.
    pub start_up_us: u64,
    pub freeze_us: u64,
    pub dump_us: u64,
    pub time_line: Vec<Moment>,
    /// Events that the probe could not record.
    pub dropped_events: u64,
}

/// Something that happened on the way to the capture point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Since the exec of the command.
    pub at_us: u64,
    /// The process, by its pid in the image, if it still ran at the end.
    pub pid: Option<NsPid>,
    /// `exec PATH`, `bind ADDRESS`, `listen ADDRESS`, `accept ADDRESS`, `wait ADDRESS`, `fork`,
    /// `warm-up done`, `hook HOOK`, `freeze` (it has begun) or `dump` (it has).
    pub event: String,
}

/// The CRIU that made the images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CriuInfo {
    pub version: Version,
    /// Whom it ran as, and must run as again.
    pub user: User,
    /// What became of the TCP connections of the tree.
    #[serde(default)]
    pub connections: TcpConnections,
    /// The leader of the root's session was gone, as that of a daemon is: CRIU restores the root
    /// into the session of init.
    pub foreign_session: bool,
}

/// A file of the image: a regular one, or a link to one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// See [`ImageFile::path`].
    pub name: String,
    /// 0 for a link.
    #[serde(default)]
    pub bytes: u64,
    /// BLAKE3, in hexadecimal; empty for a link.
    #[serde(default)]
    pub blake3: String,
    /// What a symbolic link has in it: a path to a regular file of the image, relative to the
    /// link's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

impl ImageFile {
    pub(super) fn link(name: &str, target: &str) -> Self {
        Self {
            name: name.to_owned(),
            bytes: 0,
            blake3: String::new(),
            link: Some(target.to_owned()),
        }
    }

    /// Its path in the folder of the image. Earlier versions stored names alone, of files in
    /// `criu`.
    pub fn path(&self) -> Cow<'_, str> {
        match self.name.contains('/') {
            true => Cow::Borrowed(&self.name),
            false => Cow::Owned(format!("criu/{}", self.name)),
        }
    }
}

impl Manifest {
    /// The size of the image on disk, in bytes.
    pub fn image_bytes(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.bytes);
        sizes.fold(0, u64::saturating_add)
    }

    pub fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.created_ms)
    }
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64
}
