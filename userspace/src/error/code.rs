//! The exit code of every failure.

use std::io;

use super::{Error, is_disk_full};
use crate::{
    archive::ArchiveError,
    bench::{BenchError, RunError},
    capture::CaptureError,
    cgroup::CgroupError,
    criu::{CriuError, Operation},
    edit::EditError,
    encryption::EncryptionError,
    freeze::FreezeError,
    hook::HookError,
    instance::InstanceError,
    obstacle,
    restore::RestoreError,
    serve::{FrontError, GatewayError, admin::AdminError},
    spawn::{CommandError, SpawnError, Step},
    store::StoreError,
    warmup::WarmupError,
};

/// The exit codes of warmimg. `restore` and `capture --leave-running` otherwise exit with the
/// status of the server, hence the numbers above those that servers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    Success = 0,
    /// The command line was wrong.
    Usage = 2,
    /// A failure that has no code of its own.
    Failure = 100,
    /// The command to capture is not there or cannot be executed.
    CommandNotFound = 101,
    /// The command ended before its capture point.
    ExitedEarly = 102,
    /// The command did not reach its capture point in time.
    Timeout = 103,
    /// A capability is missing, or this is the wrong pid namespace.
    MissingCapability = 104,
    /// CRIU is not installed or too old.
    NoCriu = 105,
    /// CRIU failed.
    CriuFailed = 106,
    /// No image is called so.
    UnknownImage = 107,
    /// The store or an image cannot be read or written, or an image is damaged.
    StoreUnusable = 108,
    /// An address that the image listens on, or a file that it locks, is taken.
    PortTaken = 109,
    /// The disk is full, or memory is, which an encrypted image is made and opened in.
    DiskFull = 110,
    /// The process tree is of a kind that cannot be captured here.
    UnsupportedTree = 111,
    /// No instance is called so, or it has ended; there is no such process.
    UnknownInstance = 112,
    /// `doctor` found that capture and restore will not work; memory cannot be mapped here; an image
    /// does not fit this host, or files that its processes hold are others.
    Unfit = 113,
    /// `bench`, `--at warm`, hooks: the server answered otherwise than expected.
    UnexpectedAnswer = 114,
    /// `bench`: slower than `--against` or `--min-speedup` allows.
    GateFailed = 115,
    /// The server has connections that cannot be part of an image, or cannot go on.
    Connected = 116,
    /// A hook failed.
    HookFailed = 117,
    /// An archive is damaged, cut short, or not what it says.
    ArchiveRefused = 118,
    /// A running instance uses the image.
    InUse = 119,
    /// `verify`, `restore --strict`: an image may be stale.
    Stale = 120,
    /// The key of an encrypted image is missing, or another.
    NoKey = 121,
    /// Interrupted by a signal.
    Interrupted = 130,
}

impl Error {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Command(CommandError::NotFound(_) | CommandError::NotExecutable(_)) => {
                ExitCode::CommandNotFound
            }
            Self::Command(_) | Self::NothingNamed | Self::Escape(_) | Self::Gate(_) => {
                ExitCode::Usage
            }
            Self::Results(_)
            | Self::NothingToAsk
            | Self::NothingToRehearse
            | Self::RehearsalElsewhere(_)
            | Self::RehearsalConnected
            | Self::NotEncrypted(_)
            | Self::WouldBePlain(_)
            | Self::NoRecipe(_)
            | Self::Unnamed(_)
            | Self::WarmupWithoutPoint
            | Self::HookWithoutPoint
            | Self::AutoOnce(_)
            | Self::CountOnOnePort
            | Self::Supervisor(_)
            | Self::EstablishedAgain(_)
            | Self::Overwrite(_)
            | Self::Meaningless { .. } => ExitCode::Usage,
            Self::Bench(error) | Self::Compare(error) => bench_code(error),
            Self::Export { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ExitCode::DiskFull
            }
            Self::Requirement(_) => ExitCode::MissingCapability,
            Self::Program(_) => ExitCode::NoCriu,
            Self::Config(_) => ExitCode::Usage,
            Self::Gateway(error) => gateway_code(error),
            Self::Admin(
                AdminError::Unknown { .. } | AdminError::NotRunning { .. } | AdminError::NoWake,
            ) => ExitCode::UnknownInstance,
            Self::Admin(AdminError::Refused { .. } | AdminError::Talk { .. }) => ExitCode::Failure,
            Self::Store(error) => store_code(error),
            Self::Archive(error) => archive_code(error),
            Self::Encryption(error) => encryption_code(error),
            Self::MemoryFull(_) => ExitCode::DiskFull,
            Self::InUse { .. } | Self::CapturedAlready(_) => ExitCode::InUse,
            Self::Terminal | Self::JsonWithArchive => ExitCode::Usage,
            Self::Restore(RestoreError::Instance(InstanceError::Write { source, .. })) => {
                match source.kind() {
                    io::ErrorKind::StorageFull => ExitCode::DiskFull,
                    _ => ExitCode::StoreUnusable,
                }
            }
            Self::Instance(InstanceError::Unknown { .. } | InstanceError::Ended { .. }) => {
                ExitCode::UnknownInstance
            }
            Self::Cgroup(error) => cgroup_code(error),
            Self::Capture(error) => match error {
                CaptureError::Exec { .. } => ExitCode::CommandNotFound,
                CaptureError::ExitedEarly { .. } => ExitCode::ExitedEarly,
                CaptureError::Timeout(_) | CaptureError::NoResponse { .. } => ExitCode::Timeout,
                CaptureError::Interrupted => ExitCode::Interrupted,
                CaptureError::Program(_) => ExitCode::NoCriu,
                CaptureError::Criu(error) => criu_code(error),
                CaptureError::Store(error) => store_code(error),
                CaptureError::Edit(EditError::Write { source, .. })
                    if source.kind() == io::ErrorKind::StorageFull =>
                {
                    ExitCode::DiskFull
                }
                CaptureError::Edit(EditError::Write { .. }) => ExitCode::StoreUnusable,
                CaptureError::Warmup(WarmupError::Timeout { .. }) => ExitCode::Timeout,
                CaptureError::Warmup(_) => ExitCode::UnexpectedAnswer,
                CaptureError::Hook(error) => hook_code(error),
                CaptureError::Busy { .. } | CaptureError::Connected { .. } => ExitCode::Connected,
                CaptureError::NoProcess(_) => ExitCode::UnknownInstance,
                CaptureError::User(_)
                | CaptureError::Obstacles(_)
                | CaptureError::Terminal { .. }
                | CaptureError::Own { .. }
                | CaptureError::Unreadable { .. }
                | CaptureError::Spawn(SpawnError::Container { .. })
                | CaptureError::Freeze(
                    FreezeError::SeveralRoots { .. } | FreezeError::InVfork { .. },
                )
                | CaptureError::Edit(EditError::NotInListen) => ExitCode::UnsupportedTree,
                _ => ExitCode::Failure,
            },
            Self::Restore(error) => match error {
                RestoreError::Store(error) => store_code(error),
                RestoreError::PortTaken { .. } | RestoreError::Locked { .. } => ExitCode::PortTaken,
                RestoreError::NoListener { .. }
                | RestoreError::Clash { .. }
                | RestoreError::Twice(_)
                | RestoreError::NoAddress(_)
                | RestoreError::NoFolder(_)
                | RestoreError::NoSocket { .. } => ExitCode::Usage,
                RestoreError::Interrupted => ExitCode::Interrupted,
                RestoreError::SharedHook(_) => ExitCode::Usage,
                RestoreError::HookCommand(_) => ExitCode::CommandNotFound,
                RestoreError::Hook(error) => hook_code(error),
                RestoreError::ConnectionTaken { .. }
                | RestoreError::ConnectionLost { .. }
                | RestoreError::ConnectionElsewhere { .. } => ExitCode::Connected,
                RestoreError::Ended { .. } => ExitCode::ExitedEarly,
                RestoreError::DoesNotListen { .. } => ExitCode::Timeout,
                RestoreError::Criu(error) => criu_code(error),
                RestoreError::Cgroup(error) => cgroup_code(error),
                RestoreError::Image { .. } => ExitCode::StoreUnusable,
                RestoreError::Unmappable(_) | RestoreError::Unfit { .. } => ExitCode::Unfit,
                RestoreError::Stale { .. } => ExitCode::Stale,
                RestoreError::Program(_) => ExitCode::NoCriu,
                _ => ExitCode::Failure,
            },
            Self::Import { .. } | Self::NoProfile { .. } => ExitCode::Usage,
            Self::Instance(_)
            | Self::Proxy(_)
            | Self::Runtime(_)
            | Self::Output(_)
            | Self::Export { .. } => ExitCode::Failure,
        }
    }
}

fn hook_code(error: &HookError) -> ExitCode {
    match error {
        HookError::Timeout { .. } | HookError::NoAnswer { .. } => ExitCode::Timeout,
        HookError::Status { .. } | HookError::Ask { .. } => ExitCode::UnexpectedAnswer,
        _ => ExitCode::HookFailed,
    }
}

fn criu_code(error: &CriuError) -> ExitCode {
    match error {
        error if is_disk_full(error) => ExitCode::DiskFull,
        CriuError::Failed {
            operation: Operation::Dump,
            lines,
            ..
        } if !obstacle::in_log(lines).is_empty() => ExitCode::UnsupportedTree,
        _ => ExitCode::CriuFailed,
    }
}

fn store_code(error: &StoreError) -> ExitCode {
    match error {
        StoreError::Unknown { .. } | StoreError::Empty(_) | StoreError::Ambiguous { .. } => {
            ExitCode::UnknownImage
        }
        StoreError::Closed { .. } => ExitCode::NoKey,
        StoreError::BadName { .. } | StoreError::Unnamed(_) => ExitCode::Usage,
        StoreError::Write { source, .. } | StoreError::Open { source, .. }
            if source.kind() == io::ErrorKind::StorageFull =>
        {
            ExitCode::DiskFull
        }
        _ => ExitCode::StoreUnusable,
    }
}

fn archive_code(error: &ArchiveError) -> ExitCode {
    match error {
        ArchiveError::Store(error) => store_code(error),
        ArchiveError::Interrupted => ExitCode::Interrupted,
        ArchiveError::Damaged { .. } => ExitCode::StoreUnusable,
        ArchiveError::NameTaken { .. } => ExitCode::Usage,
        ArchiveError::Write(source) if source.kind() == io::ErrorKind::StorageFull => {
            ExitCode::DiskFull
        }
        ArchiveError::Write(_) | ArchiveError::Read { .. } => ExitCode::Failure,
        ArchiveError::CutShort { .. }
        | ArchiveError::NoArchive { .. }
        | ArchiveError::Refused { .. }
        | ArchiveError::Unfit { .. } => ExitCode::ArchiveRefused,
    }
}

fn encryption_code(error: &EncryptionError) -> ExitCode {
    match error {
        EncryptionError::Key(_) => ExitCode::Usage,
        EncryptionError::NoKey { .. } | EncryptionError::WrongKey { .. } => ExitCode::NoKey,
        EncryptionError::NoRoom { .. } => ExitCode::DiskFull,
        EncryptionError::Damaged { .. }
        | EncryptionError::Undecryptable { .. }
        | EncryptionError::Other { .. } => ExitCode::StoreUnusable,
        EncryptionError::Busy => ExitCode::InUse,
        EncryptionError::Archive(error) => archive_code(error),
        EncryptionError::Store(error) => store_code(error),
    }
}

fn cgroup_code(error: &CgroupError) -> ExitCode {
    match error {
        CgroupError::NoParent(_) => ExitCode::Usage,
        _ => ExitCode::Failure,
    }
}

fn bench_code(error: &BenchError) -> ExitCode {
    match error {
        BenchError::Interrupted => ExitCode::Interrupted,
        BenchError::Run { source, .. } => match &**source {
            RunError::Taken { .. } => ExitCode::PortTaken,
            RunError::Ended { .. } => ExitCode::ExitedEarly,
            RunError::NoAnswer { .. } => ExitCode::Timeout,
            RunError::Status { .. } | RunError::Ask { .. } => ExitCode::UnexpectedAnswer,
            RunError::Start(SpawnError::Child {
                step: Step::Exec, ..
            }) => ExitCode::CommandNotFound,
            _ => ExitCode::Failure,
        },
        BenchError::Cgroup(_) | BenchError::Host(_) => ExitCode::Failure,
    }
}

fn gateway_code(error: &GatewayError) -> ExitCode {
    match error {
        GatewayError::Image { source, .. } => store_code(source),
        GatewayError::NoListener { .. }
        | GatewayError::OtherKind { .. }
        | GatewayError::NoPlace { .. }
        | GatewayError::Certificate { .. }
        | GatewayError::Front(FrontError::Refused(_))
        | GatewayError::Passed(_)
        | GatewayError::Clash { .. } => ExitCode::Usage,
        GatewayError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            ExitCode::PortTaken
        }
        GatewayError::Edit { .. } => ExitCode::StoreUnusable,
        GatewayError::Runs(_) => ExitCode::InUse,
        GatewayError::Folder { .. } => ExitCode::StoreUnusable,
        GatewayError::Listen { .. }
        | GatewayError::Keeper(_)
        | GatewayError::Front(_)
        | GatewayError::Watch(_)
        | GatewayError::Instance(_) => ExitCode::Failure,
    }
}
