//! How `warmimg run` has started a server. All of it is on standard error, as standard output is the
//! server's; JSON Lines are on standard output, as those of other commands.

use serde_json::{Value, json};

use super::{Milliseconds, Report, printable};
use crate::{
    cold::ColdReason, doctor::chain, error::Error, fit::Finding, restore::Restored, store::Image,
};

impl Report {
    /// # Errors
    /// [`Error::Output`], as all that follow.
    pub fn run_cold(&self, reason: &ColdReason) -> Result<(), Error> {
        let description = reason.to_string();
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
