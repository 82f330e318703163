//! How `warmimg run` has started a server. All of it is on standard error, as standard output is the
//! server's; JSON Lines are on standard output, as those of other commands.

use serde_json::{Value, json};

use super::{Milliseconds, Report, printable};
use crate::{
    doctor::chain, error::Error, fit::Finding, restore::Restored, store::Image, watch::CapturePoint,
};

/// Why a server is started cold.
#[derive(Clone, Debug)]
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

    fn describe(&self) -> String {
        let list = |findings: &[Finding]| {
            let lines = findings.iter().map(ToString::to_string);
            lines.collect::<Vec<_>>().join("; ")
        };
        match self {
            Self::NoImage(name) => format!("no image is called {name}"),
            Self::OtherCommand(difference) => {
                format!("the image is of another start: {difference}")
            }
            Self::OtherPoint(point) => format!("the image was captured at {point}"),
            Self::Damaged(error) => format!("the image is damaged: {error}"),
            Self::Stale(findings) => format!("the image is stale: {}", list(findings)),
            Self::Unfit(findings) => format!("the image does not fit: {}", list(findings)),
            Self::Quarantined(reason) => format!("the image has failed twice, last: {reason}"),
            Self::RestoreFailed { error, .. } => format!("the restore failed: {error}"),
            Self::Crashed(reason) => format!("the restored server crashed: {reason}"),
            Self::Closed(reason) => format!("the image cannot be opened: {reason}"),
            Self::Unable(reason) => format!("{reason}: the server takes the place of warmimg"),
        }
    }
}

impl Report {
    /// # Errors
    /// [`Error::Output`], as all that follow.
    pub fn run_cold(&self, reason: &ColdReason) -> Result<(), Error> {
        let description = reason.describe();
        let mut object = json!({
            "event": "cold",
            "reason": reason.code(),
            "description": description,
        });
        match reason {
            ColdReason::Stale(findings) | ColdReason::Unfit(findings) => {
                object["findings"] = findings.iter().map(Finding::to_json).collect();
            }
            ColdReason::RestoreFailed { code, .. } => object["exit_code"] = json!(code),
            _ => {}
        }
        self.tell(
            object,
            &format!("Starting cold ({}): {description}", reason.code()),
        )
    }

    pub fn run_restored(&self, restored: &Restored) -> Result<(), Error> {
        let (record, total) = (&restored.record, restored.timings.total);
        let object = json!({
            "event": "restored",
            "instance": record.id,
            "image": record.image,
            "listeners": record.listeners,
            "total_us": total.as_micros() as u64,
        });
        let time = Milliseconds(total.as_micros() as u64);
        self.tell(object, &format!("Restored {} in {time}", record.id))
    }

    pub fn run_captured(&self, image: &Image) -> Result<(), Error> {
        let object = json!({ "event": "captured", "image": image.digest.as_str() });
        let label = image.label();
        self.tell(
            object,
            &format!("Captured {label}: the next start is from this image"),
        )
    }

    pub fn run_not_captured(&self, error: &Error) -> Result<(), Error> {
        let description = chain(error);
        let object = json!({
            "event": "not-captured",
            "exit_code": error.exit_code() as u8,
            "description": description,
        });
        let hint = error
            .hint()
            .map_or_else(String::new, |hint| format!("\nHint: {hint}"));
        self.tell(object, &format!("No image was made: {description}{hint}"))
    }

    fn tell(&self, object: Value, text: &str) -> Result<(), Error> {
        if self.json {
            return self.line("run", object);
        }
        eprintln!("{}", printable(text));
        Ok(())
    }
}
