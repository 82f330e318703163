//! The limit of open files, which is raised for this process alone.
//!
//! Invariant: what is started by it has the limit that this process was started with. Some servers make
//! tables of that size, or close every number below it, and their images keep it.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys;

/// The limit that this process was started with, once it was raised.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Allows as many open files as the hard limit does; returns the number.
pub fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    GIVEN.get_or_init(|| limit);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// Undoes that in a forked child, before it executes a program.
pub fn lower() {
    if let Some(given) = GIVEN.get() {
        let _ = setrlimit(Resource::Nofile, *given);
    }
}

/// Undoes that for a command.
pub fn lower_for(command: &mut tokio::process::Command) {
    if let Some(given) = GIVEN.get() {
        sys::limit_files(command, *given);
    }
}
