//! What in a frozen tree cannot become part of an image: found before CRIU comes upon it, or does
//! not, and in what CRIU says of it.
//!
//! Invariant: what CRIU can dump and restore is no obstacle. What depends on how CRIU was built, or
//! what the kernel shows to nobody else, is left to it (`log.rs`).

mod code;
mod descriptors;
mod log;
mod processes;

use std::{fmt, time::SystemTime};

use serde_json::{Value, json};

pub use self::{code::Code, log::in_log};
use crate::{
    criu::{UserError, Version},
    tree::{self, Connection, HostPid, Member},
};

/// What stands in the way of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub code: Code,
    /// As a message names it; none if CRIU does not say.
    pub process: Option<String>,
    /// What it is, said of the process.
    pub what: String,
    /// When it was made, in microseconds since the exec of the command, if the kernel tells.
    pub at_us: Option<u64>,
}

impl Obstacle {
    fn new(code: Code, pid: HostPid, what: impl Into<String>) -> Self {
        Self {
            code,
            process: Some(tree::label(pid)),
            what: what.into(),
            at_us: None,
        }
    }

    /// A connection that an image cannot have.
    pub fn connection(connection: &Connection) -> Self {
        let peer = connection.peer.as_ref();
        let peer = peer.map_or_else(|| "nobody".to_owned(), ToString::to_string);
        let what = format!("is connected from {} to {peer}", connection.local);
        Self::new(Code::EstablishedConnection, connection.pid, what)
    }

    /// A tree that no user can dump.
    pub fn users(error: &UserError) -> Self {
        Self {
            code: Code::SeveralUsers,
            process: None,
            what: error.to_string(),
            at_us: None,
        }
    }

    /// What made it, as far as is known: the system call, and when.
    pub fn origin(&self) -> Option<String> {
        let call = self.code.call()?;
        Some(match self.at_us {
            Some(us) => format!("by {call}, {:.1} ms after the exec", us as f64 / 1000.0),
            None => format!("by {call}"),
        })
    }

    pub fn to_json(&self) -> Value {
        json!({
            "code": self.code.name(),
            "process": self.process,
            "what": self.what,
            "call": self.code.call(),
            "at_us": self.at_us,
            "meaning": self.code.meaning(),
            "fix": self.code.fix(),
        })
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some(process) => write!(f, "{process} {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// Why a tree cannot be captured: at least one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct Obstacles(pub Vec<Obstacle>);

impl fmt::Display for Obstacles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0[..] {
            [one] => one.fmt(f),
            all => write!(f, "{} things stand in the way of an image", all.len()),
        }
    }
}

/// Looks for all that cannot be captured. CRIU of this version is to run in the namespaces of `criu`;
/// `exec_at` is when the command was executed, if that is known.
pub fn look_for(
    members: &[Member],
    (criu, version): (HostPid, Version),
    exec_at: Option<SystemTime>,
) -> Vec<Obstacle> {
    let mut found = processes::look_for(members, criu, version);
    for member in members {
        found.extend(descriptors::look_for(member, members, exec_at));
    }
    found
}
