//! What is of the whole start-up, or of a process: milestones, the critical path, connections.

use std::io::{self, Write};

use super::{
    packet::{Event, Output, Track},
    threads::Context,
};
use crate::{
    profile::{Connection, Profile},
    report::profile::text_or_class,
};

pub fn milestones<W: Write>(
    out: &mut Output<W>,
    profile: &Profile,
    context: &Context,
) -> io::Result<()> {
    let track = out.named_track(None, "milestones")?;
    for milestone in &profile.milestones {
        let name = milestone.kind.title();
        let mut notes = vec![("process", context.thread(milestone.pid))];
        let listener = milestone.listener.as_ref();
        notes.extend(listener.map(|listener| ("listener", listener.to_string())));
        let event = Event {
            name,
            category: "milestone",
            notes,
            stack: None,
        };
        out.instant(track, milestone.at_ns, &event)?;
    }
    Ok(())
}

pub fn critical_path<W: Write>(
    out: &mut Output<W>,
    profile: &Profile,
    context: &Context,
) -> io::Result<()> {
    let track = out.named_track(None, "critical path")?;
    for step in &profile.critical_path {
        let event = Event {
            name: text_or_class(profile, step.text, step.class),
            category: step.class.title(),
            notes: vec![("thread", context.thread(step.tid))],
            stack: None,
        };
        out.begin_slice(track, step.start_ns, &event)?;
        out.end_slice(track, step.end_ns)?;
    }
    Ok(())
}

/// Each is a track of its own, as they can overlap; those of a process have the same name, by
/// which they are shown as one.
pub fn connections<W: Write>(
    out: &mut Output<W>,
    profile: &Profile,
    pid: i32,
    process: Track,
) -> io::Result<()> {
    for connection in &profile.connections {
        if connection.pid == pid {
            let track = out.named_track(Some(process), "connections")?;
            one(out, track, connection)?;
        }
    }
    Ok(())
}

fn one<W: Write>(out: &mut Output<W>, track: Track, connection: &Connection) -> io::Result<()> {
    let start = connection.start_ns;
    let connected = connection.connected_ns.map(|at| at.max(start));
    let answered = connection
        .first_byte_ns
        .map(|at| at.max(connected.unwrap_or(start)));
    let mut notes = vec![("peer", connection.peer.clone())];
    let resolved = connection
        .resolved_ns
        .map(|time| format!("{:.1} ms", time as f64 / 1e6));
    notes.extend(resolved.map(|time| ("resolved in", time)));
    notes.extend(connection.error.clone().map(|error| ("error", error)));
    let whole = Event {
        name: connection.name.as_deref().unwrap_or(&connection.peer),
        category: "connection",
        notes,
        stack: None,
    };
    out.begin_slice(track, start, &whole)?;
    for (name, from, to) in [
        ("connect", Some(start), connected),
        ("until the first byte", connected, answered),
    ] {
        let part = Event {
            name,
            category: "connection",
            ..Event::default()
        };
        if let (Some(from), Some(to)) = (from, to) {
            out.begin_slice(track, from, &part)?;
            out.end_slice(track, to)?;
        }
    }
    out.end_slice(track, answered.or(connected).unwrap_or(start))
}
