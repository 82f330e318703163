//! What `warmimg restore` brought back, and where the time went.

use std::time::Duration;

use serde_json::json;

use super::{
    Lines, Report, list,
    units::{Microseconds, Milliseconds},
};
use crate::{
    client::{AskError, FIRST_BYTE_LIMIT},
    error::Error,
    fit::Finding,
    restore::{Pages, Parts, Restored},
};

/// When the first byte of an answer was there, if there was one.
pub type FirstByte = Result<Duration, NoByte>;

/// Why there was none.
#[derive(Debug, thiserror::Error)]
pub enum NoByte {
    #[error("not asked for: there is no listener")]
    NoListener,
    #[error("not asked for: another copy that shares the port might answer")]
    SharedPort,
    #[error("none within {} s", FIRST_BYTE_LIMIT.as_secs())]
    Silent,
    #[error("none: {0}")]
    Ask(AskError),
}

impl From<AskError> for NoByte {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Silent => Self::Silent,
            error => Self::Ask(error),
        }
    }
}

impl Report {
    /// `stale` is what the server may go on with although it is no longer so. `first_byte` is there if it is to be told where the time went.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn restored(
        &self,
        restored: &Restored,
        stale: &[Finding],
        first_byte: Option<&FirstByte>,
    ) -> Result<(), Error> {
        let (record, timings) = (&restored.record, &restored.timings);
        let us = |time: Duration| time.as_micros() as u64;
        if self.json {
            let mut object = json!({
                "instance": record.id,
                "image": record.image,
                "init": record.init,
                "detached": record.detached,
                "listeners": record.listeners,
                "total_us": us(timings.total),
                "namespaces_us": us(timings.namespaces),
                "criu_us": us(timings.criu),
                "criu_restore_us": timings.criu_restore.map(us),
                "mapped_bytes": record.mapped_bytes,
                "copied_because": restored.memory.copied_because.as_ref().map(ToString::to_string),
                "stale": stale.iter().map(Finding::to_json).collect::<Vec<_>>(),
            });
            if let Some(first_byte) = first_byte {
                object["timings"] = json!(timings.parts);
                object["timings"]["first_byte_us"] =
                    json!(first_byte.as_ref().ok().map(|&t| us(t)));
            }
            return self.line("restore", object);
        }
        let mut out = Lines::default();
        let listeners = list(&record.listeners);
        match first_byte {
            None => {
                let total = Milliseconds(us(timings.total));
                out.add(&format!("Restored {} in {total}: {listeners}", record.id));
            }
            Some(first_byte) => {
                out.add(&format!("Restored {}: {listeners}", record.id));
                out.add("");
                add_parts(&mut out, &timings.parts, first_byte);
                out.add("");
            }
        }
        if let Some(reason) = &restored.memory.copied_because {
            out.add(&format!(
                "Its memory was copied and is not shared: {reason}"
            ));
        }
        add_stale(&mut out, stale);
        if !record.detached {
            // Standard output is the server's.
            eprint!("{}", out.0);
            return Ok(());
        }
        out.print()
    }
}

/// Some of what may be stale, if there is any.
fn add_stale(out: &mut Lines, findings: &[Finding]) {
    const SHOWN: usize = 3;
    if findings.is_empty() {
        return;
    }
    out.add("Warning: the image may be stale");
    for finding in findings.iter().take(SHOWN) {
        out.add(&format!("  {finding}"));
    }
    if let Some(more @ 1..) = findings.len().checked_sub(SHOWN) {
        out.add(&format!("  and {more} more"));
    }
    out.add("`warmimg verify` tells what it means; to capture again helps");
}

fn add_parts(out: &mut Lines, parts: &Parts, first_byte: &FirstByte) {
    let mut row = |label: &str, value: &str| out.add(&format!("  {label:<20}  {value}"));
    let time = |us: u64| format!("{:>11}", Microseconds(us));
    for (label, us) in parts.rows() {
        if let Some(us) = us {
            row(label, &time(us));
        }
    }
    row("total", &time(parts.total_us));
    let first_byte = match first_byte {
        Ok(after) => time(after.as_micros() as u64),
        Err(why) => why.to_string(),
    };
    row("first byte", &first_byte);
    if let Some(pages) = pages(&parts.pages) {
        row("pages", &pages);
    }
}

fn pages(pages: &Pages) -> Option<String> {
    let copied = format!("{} copied", pages.pages_restored?);
    Some(match (pages.pages_skipped_cow, pages.pages_compared) {
        (Some(skipped), Some(compared @ 1..)) => {
            format!("{copied}, {skipped} of {compared} left shared with a parent process")
        }
        _ => copied,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_what_is_known() {
        let parts = Parts {
            image_us: 1234,
            criu_restoring_us: Some(20_000),
            total_us: 21_234,
            pages: Pages {
                pages_restored: Some(7),
                pages_compared: Some(5),
                pages_skipped_cow: Some(3),
            },
            ..Parts::default()
        };
        let mut out = Lines::default();
        add_parts(&mut out, &parts, &Err(NoByte::Silent));
        assert_eq!(
            out.0,
            "  image                    1.234 ms\n  \
               checks                   0.000 ms\n  \
               fit                      0.000 ms\n  \
               namespaces and init      0.000 ms\n  \
               CRIU restoring          20.000 ms\n  \
               record                   0.000 ms\n  \
               hooks                    0.000 ms\n  \
               other                    0.000 ms\n  \
               total                   21.234 ms\n  \
               first byte            none within 1 s\n  \
               pages                 7 copied, 3 of 5 left shared with a parent process\n"
        );
    }
}
