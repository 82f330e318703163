//! Numbers that change: how many processes there are, and how many threads do a thing at a time.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, Write},
};

use super::packet::Output;
use crate::profile::{Class, Profile, Thread};

/// When a number changes, and by how much.
type Changes<'a> = Box<dyn Iterator<Item = (u64, i64)> + 'a>;

/// Whether a thread counts while it does something of this class.
type IsCounted = fn(Class) -> bool;

pub fn write<W: Write>(out: &mut Output<W>, profile: &Profile) -> io::Result<()> {
    let alive = profile.processes.iter().map(|process| {
        let end = process.end_ns.unwrap_or(profile.length_ns);
        let changes: [(u64, i64); 2] = [(process.start_ns, 1), (end.max(process.start_ns), -1)];
        Box::new(changes.into_iter()) as Changes
    });
    counter(out, "processes", alive)?;
    let counted: [(&str, IsCounted); 3] = [
        ("threads running", Class::is_on_cpu),
        ("threads without a processor", |c| c == Class::Runnable),
        ("threads waiting for storage", |c| c == Class::Disk),
    ];
    for (name, is_counted) in counted {
        let threads = profile.processes.iter().flat_map(|p| &p.threads);
        counter(out, name, threads.map(|t| changes(t, is_counted)))?;
    }
    Ok(())
}

/// Those of one thread, whose slices are in the order of time.
fn changes(thread: &Thread, is_counted: IsCounted) -> Changes<'_> {
    let counted = thread.slices.iter().filter(move |s| is_counted(s.class));
    Box::new(counted.flat_map(|slice| [(slice.start_ns, 1), (slice.end_ns, -1)]))
}

/// Merges what is in the order of time, so that no list of all changes is needed.
fn counter<'a, W: Write>(
    out: &mut Output<W>,
    name: &str,
    sources: impl Iterator<Item = Changes<'a>>,
) -> io::Result<()> {
    let mut sources: Vec<_> = sources.map(Iterator::peekable).collect();
    let mut next: BinaryHeap<_> = (0..)
        .zip(&mut sources)
        .filter_map(|(i, source)| Some(Reverse((source.peek()?.0, i))))
        .collect();
    let track = out.counter_track(name)?;
    let (mut value, mut shown) = (0, None);
    while let Some(Reverse((at, i))) = next.pop() {
        let source: &mut std::iter::Peekable<Changes> = &mut sources[i];
        value += source.next().map_or(0, |(_, change)| change);
        if let Some(&(at, _)) = source.peek() {
            next.push(Reverse((at, i)));
        }
        let is_last_of_moment = next.peek().is_none_or(|Reverse((later, _))| *later > at);
        if is_last_of_moment && shown != Some(value) {
            out.count(track, at, value)?;
            shown = Some(value);
        }
    }
    Ok(())
}
