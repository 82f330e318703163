//! Profiles as JSON Lines, for scripts, and to be read again: [`read()`] gives back what [`write()`]
//! was given.
//!
//! A profile begins with its `profile` record and ends with its `lost` record; a file can hold
//! several. Each record stands for itself, but for three that follow what they belong to: a
//! `thread` its `process`, a `slice` its `thread`, a `node` its parent and its `frame`.

mod read;
mod record;
#[cfg(test)]
mod tests;
mod write;

use std::io;

pub use self::{
    read::{read, read_all},
    write::write,
};
use crate::profile::SCHEMA;

/// Why a profile cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("line {line} cannot be read")]
    Read { line: usize, source: io::Error },
    #[error("line {line} is not a record, which has a `type` and a `schema`: {why}")]
    NotARecord { line: usize, why: String },
    #[error("line {line} is of schema {found}; this warmimg reads up to {SCHEMA}")]
    Schema { line: usize, found: u32 },
    #[error("line {line}, a `{kind}` record, is not as it has to be: {why}")]
    Malformed {
        line: usize,
        kind: &'static str,
        why: String,
    },
    #[error("line {line}, a `{kind}` record, does not stand behind {what}")]
    Misplaced {
        line: usize,
        kind: String,
        what: &'static str,
    },
    #[error("the profile that begins at line {line} has no `lost` record at its end")]
    Cut { line: usize },
    #[error("there is no profile in it")]
    Empty,
    #[error("there are {0} profiles in it, and one is asked for")]
    Several(usize),
}

impl ReadError {
    /// What to try.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Schema { .. } => {
                Some("read it with the warmimg that wrote it, or a newer one; or record it again")
            }
            Self::Cut { .. } => {
                Some("it was cut short, as a full disk or a killed warmimg does: record it again")
            }
            Self::NotARecord { .. } | Self::Empty => {
                Some("`warmimg profile --format json -o FILE -- CMD…` records one")
            }
            Self::Several(_) => Some("record it without --runs"),
            _ => None,
        }
    }
}
