//! Every way a command can fail, with its exit code (`code.rs`) and what to try (`hint.rs`).

mod code;
mod encryption;
mod hint;
mod serve;

use std::{io, path::PathBuf};

pub use self::code::ExitCode;
use crate::{
    archive::ArchiveError,
    bench::{BenchError, gate::GateError, results::ResultsError},
    capture::CaptureError,
    cgroup::CgroupError,
    criu::{CriuError, ProgramError},
    encryption::{EncryptionError, KeyError},
    instance::{InstanceError, LimitError},
    proxy::ProxyError,
    report::profile::json::ReadError,
    requirements::RequirementError,
    restore::RestoreError,
    serve::{ConfigError, GatewayError, admin::AdminError},
    spawn::CommandError,
    store::StoreError,
};

/// What a command failed with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Requirement(#[from] RequirementError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
    /// While an encrypted image is made.
    #[error("there is not enough memory for the image")]
    MemoryFull(#[source] Box<Error>),
    #[error("the image {0} is not encrypted")]
    NotEncrypted(String),
    #[error("{0} is encrypted, and the new image would not be")]
    WouldBePlain(String),
    #[error("{0} was not captured from its start, and is not known how to be")]
    NoRecipe(String),
    #[error("{0} has no name, which the new image would take")]
    Unnamed(String),
    #[error("another makes an image of the name {0} right now")]
    CapturedAlready(String),
    #[error("the image {image} is in use{}", used_by(.by))]
    InUse {
        image: String,
        /// The instances; none while it is being restored, exported, compared or removed.
        by: Vec<String>,
    },
    #[error("an archive is nothing for a terminal")]
    Terminal,
    #[error("--json has no place when the archive goes to standard output")]
    JsonWithArchive,
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Of `capture --at auto`.
    #[error("the images cannot be compared")]
    Compare(#[source] BenchError),
    #[error(transparent)]
    Results(#[from] ResultsError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error("cannot write {}", .path.display())]
    Export { path: PathBuf, source: io::Error },
    #[error("cannot read {}", .path.display())]
    Import { path: PathBuf, source: io::Error },
    #[error("{} holds no profile", .path.display())]
    NoProfile { path: PathBuf, source: ReadError },
    #[error("{} holds the results to compare with, and would be overwritten", .0.display())]
    Overwrite(PathBuf),
    #[error("{option} is for {url} without meaning")]
    Meaningless { option: &'static str, url: String },
    #[error("the text to send has a bad escape: {0}")]
    Escape(String),
    #[error("the server listens nowhere that could be asked")]
    NothingToAsk,
    #[error("the image has no listener to ask in a rehearsal")]
    NothingToRehearse,
    #[error("{0} is asked at a fixed address, and a rehearsal is elsewhere")]
    RehearsalElsewhere(String),
    #[error("the image has connections to others, which can be restored once only")]
    RehearsalConnected,
    #[error("--warmup has no meaning without --at warm")]
    WarmupWithoutPoint,
    #[error("{0} has no meaning with --at auto, which starts the server several times")]
    AutoOnce(&'static str),
    #[error("--tcp-established is for a single restore, and {0} restores again and again")]
    EstablishedAgain(&'static str),
    #[error("the process has the instance {0} below it")]
    Supervisor(String),
    #[error("several copies cannot listen on the same port")]
    CountOnOnePort,
    #[error("--before-freeze has no meaning but with --at ready or warm")]
    HookWithoutPoint,
    #[error("cannot start the asynchronous runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    #[error("nothing to stop: name an instance, or give --all")]
    NothingNamed,
}

impl From<LimitError> for Error {
    fn from(error: LimitError) -> Self {
        match error {
            LimitError::Instance(error) => error.into(),
            LimitError::Cgroup(error) => error.into(),
        }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        EncryptionError::from(error).into()
    }
}

fn used_by(instances: &[String]) -> String {
    match instances {
        [] => ": something reads it right now".to_owned(),
        some => format!(" by {}", some.join(", ")),
    }
}

/// CRIU's protocol has no code for it; its log has the text of `ENOSPC`.
fn is_disk_full(error: &CriuError) -> bool {
    const TEXT: &str = "No space left on device";
    match error {
        CriuError::Failed { message, lines, .. } => {
            message.contains(TEXT) || lines.iter().any(|line| line.contains(TEXT))
        }
        _ => false,
    }
}
