//! What `warmimg --json serve` tells, in the file that it is written to.

use std::{fs, path::Path};

use serde_json::Value;

use super::wait_until;

/// What was told, of one kind.
pub fn events(log: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let events = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    events
        .filter(|event: &Value| event["event"] == kind)
        .collect()
}

/// Waits until that much of one kind was told.
pub fn wait_for(log: &Path, kind: &str, count: usize) -> Vec<Value> {
    let mut found = vec![];
    wait_until(kind, || {
        found = events(log, kind);
        match found.len() >= count {
            true => Ok(()),
            false => Err(fs::read_to_string(log).unwrap_or_default()),
        }
    });
    found
}
