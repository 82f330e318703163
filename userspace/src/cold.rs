//! Why a server is started cold instead of restored, and what that says of its image.

use std::{fmt, time::Duration};

use crate::{
    doctor::chain,
    encryption::EncryptionError,
    error::{Error, ExitCode},
    fit::Finding,
    restore::RestoreError,
    store::{Image, Store, StoreError},
    watch::CapturePoint,
};

/// A restored server that a fault of its own kills within this time is one whose image does not work.
pub const PROBATION: Duration = Duration::from_secs(10);

/// Why a server is started cold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColdReason {
    /// No image has this name.
    NoImage(String),
    /// What of the command differs.
    OtherCommand(String),
    OtherPoint(CapturePoint),
    Damaged(String),
    Stale(Vec<Finding>),
    Unfit(Vec<Finding>),
    /// Why the image failed last.
    Quarantined(String),
    RestoreFailed {
        /// The exit code that `restore` has for it.
        code: u8,
        error: String,
    },
    Crashed(String),
    /// Why the encrypted image cannot be opened.
    Closed(String),
    /// What warmimg lacks.
    Unable(String),
}

impl ColdReason {
    /// What it means that the image of this name was not found.
    pub fn of_find(name: &str, error: Error) -> Self {
        match error {
            Error::Store(StoreError::Unknown { .. } | StoreError::Empty { .. }) => {
                Self::NoImage(name.to_owned())
            }
            Error::Store(error @ StoreError::Closed { .. }) => Self::Closed(chain(&error)),
            Error::Encryption(error) if !matches!(error, EncryptionError::Damaged { .. }) => {
                Self::Closed(chain(&error))
            }
            error => Self::Damaged(error.to_string()),
        }
    }

    /// Why an image is not to be restored any more, if it is not.
    pub fn of_trials(store: &Store, image: &Image) -> Option<Self> {
        let failures = store.failures(&image.digest);
        let is_out = failures.is_quarantined();
        is_out.then_some(Self::Quarantined(failures.reason))
    }

    /// What it means that an image was not restored; the store takes note of it if it is the image's
    /// fault.
    pub fn of_restore(store: &Store, image: &Image, error: RestoreError) -> Self {
        match error {
            RestoreError::Unfit { findings, .. } => Self::Unfit(findings),
            RestoreError::Stale { findings, .. } => Self::Stale(findings),
            error => {
                let error = Error::from(error);
                if is_of_image(error.exit_code()) {
                    note(store, image, &error.to_string());
                }
                Self::RestoreFailed {
                    code: error.exit_code() as u8,
                    error: chain(&error),
                }
            }
        }
    }

    /// What it means that a restored server has ended with this exit code, after it lived for so long;
    /// nothing if it may have wanted to. The store takes note of it.
    pub fn of_exit(store: &Store, image: &Image, code: u8, lived: Duration) -> Option<Self> {
        if lived >= PROBATION || !is_crash(code) {
            return None;
        }
        let reason = format!("it ended with status {code}");
        note(store, image, &reason);
        Some(Self::Crashed(reason))
    }

    /// A name that stays, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoImage(_) => "no-image",
            Self::OtherCommand(_) => "other-command",
            Self::OtherPoint(_) => "other-point",
            Self::Damaged(_) => "damaged",
            Self::Stale(_) => "stale",
            Self::Unfit(_) => "unfit",
            Self::Quarantined(_) => "quarantined",
            Self::RestoreFailed { .. } => "restore-failed",
            Self::Crashed(_) => "crashed",
            Self::Closed(_) => "closed",
            Self::Unable(_) => "unable",
        }
    }
}

impl fmt::Display for ColdReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |findings: &[Finding]| {
            let lines = findings.iter().map(ToString::to_string);
            lines.collect::<Vec<_>>().join("; ")
        };
        match self {
            Self::NoImage(name) => write!(f, "no image is called {name}"),
            Self::OtherCommand(difference) => {
                write!(f, "the image is of another start: {difference}")
            }
            Self::OtherPoint(point) => write!(f, "the image was captured at {point}"),
            Self::Damaged(error) => write!(f, "the image is damaged: {error}"),
            Self::Stale(findings) => write!(f, "the image is stale: {}", list(findings)),
            Self::Unfit(findings) => write!(f, "the image does not fit: {}", list(findings)),
            Self::Quarantined(reason) => write!(f, "the image has failed twice, last: {reason}"),
            Self::RestoreFailed { error, .. } => write!(f, "the restore failed: {error}"),
            Self::Crashed(reason) => write!(f, "the restored server crashed: {reason}"),
            Self::Closed(reason) => write!(f, "the image cannot be opened: {reason}"),
            Self::Unable(reason) => {
                write!(f, "{reason}: the server takes the place of warmimg")
            }
        }
    }
}

fn note(store: &Store, image: &Image, reason: &str) {
    if let Err(error) = store.failed(&image.digest, reason) {
        tracing::warn!("{}", chain(&error));
    }
}

/// Whether a failed restore is the image's fault, and not that of what is around it.
fn is_of_image(code: ExitCode) -> bool {
    !matches!(
        code,
        ExitCode::PortTaken
            | ExitCode::MissingCapability
            | ExitCode::NoCriu
            | ExitCode::DiskFull
            | ExitCode::Interrupted
    )
}

/// Whether an exit code is that of a process killed by a fault of its own.
fn is_crash(code: u8) -> bool {
    let faults = [
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGSEGV,
        libc::SIGSYS,
    ];
    faults.iter().any(|&signal| i32::from(code) == 128 + signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_are_told_from_ends() {
        assert!(is_crash(139) && is_crash(134));
        assert!(!is_crash(0) && !is_crash(1) && !is_crash(143) && !is_crash(137));
    }
}
