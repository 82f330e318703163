//! Processes and their threads. A thread's slices lie side by side in the profile; those of one
//! system call are put below a slice for all of it.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use super::packet::{Event, Output, Track};
use crate::{
    profile::{Class, Process, Profile, Slice, Thread},
    report::profile::text_or_class,
};

/// What slices are described with.
pub struct Context<'a> {
    profile: &'a Profile,
    names: HashMap<i32, &'a str>,
    /// The stacks of waits: when, and the innermost nodes.
    waits: HashMap<(i32, i32), Vec<(u64, u32)>>,
}

impl<'a> Context<'a> {
    pub fn new(profile: &'a Profile) -> Self {
        let threads = profile.processes.iter().flat_map(|p| &p.threads);
        let names = threads.map(|t| (t.tid, &*t.name)).collect();
        let mut waits: HashMap<_, Vec<_>> = HashMap::new();
        for sample in &profile.stacks.samples {
            if let (false, Some(node)) = (sample.is_on_cpu, sample.node) {
                let of_thread = waits.entry((sample.pid, sample.tid)).or_default();
                of_thread.push((sample.at_ns, node));
            }
        }
        waits.values_mut().for_each(|waits| waits.sort_unstable());
        Self {
            profile,
            names,
            waits,
        }
    }

    /// A thread, for people.
    pub fn thread(&self, tid: i32) -> String {
        match self.names.get(&tid) {
            Some(name) => format!("{name} ({tid})"),
            None => tid.to_string(),
        }
    }

    /// Where a thread was while it waited: the stack of a sample at or within the wait.
    fn wait(&self, thread: (i32, i32), slice: &Slice) -> Option<u32> {
        // A thread that could run waits no longer for what the stack shows.
        if slice.class.is_on_cpu() || slice.class == Class::Runnable {
            return None;
        }
        let waits = self.waits.get(&thread)?;
        let first = waits.partition_point(|&(at, _)| at < slice.start_ns);
        let &(at, node) = waits.get(first)?;
        (at <= slice.end_ns).then_some(node)
    }
}

/// Writes a process with its threads. Returns its track.
pub fn process<W: Write>(
    out: &mut Output<W>,
    context: &Context,
    process: &Process,
) -> io::Result<Track> {
    let track = out.process_track(process.pid, &process.name, process.start_ns)?;
    for execution in &process.executions {
        let name = format!("exec {}", execution.path);
        let mut event = Event {
            name: &name,
            category: "process",
            ..Event::default()
        };
        out.instant(track, execution.at_ns, &event)?;
        if let Some(linked_ns) = execution.linked_ns {
            event.name = "dynamic linker done";
            out.instant(track, linked_ns, &event)?;
        }
    }
    for thread in &process.threads {
        let ids = (process.pid, thread.tid);
        let track = out.thread_track(track, ids, &thread.name)?;
        slices(out, context, (track, ids), thread)?;
    }
    Ok(track)
}

fn slices<W: Write>(
    out: &mut Output<W>,
    context: &Context,
    (track, ids): (Track, (i32, i32)),
    thread: &Thread,
) -> io::Result<()> {
    let is_same =
        |a: &Slice, b: &Slice| a.text.is_some() && a.text == b.text && a.end_ns == b.start_ns;
    for parts in thread.slices.chunk_by(is_same) {
        let [first, .., last] = parts else {
            let name = parts
                .first()
                .map(|only| text_or_class(context.profile, only.text, only.class));
            for (slice, name) in parts.iter().zip(name) {
                one(out, context, (track, ids), slice, name)?;
            }
            continue;
        };
        let whole = Event {
            name: text_or_class(context.profile, first.text, first.class),
            category: "call",
            ..Event::default()
        };
        out.begin_slice(track, first.start_ns, &whole)?;
        for slice in parts {
            one(out, context, (track, ids), slice, slice.class.title())?;
        }
        out.end_slice(track, last.end_ns)?;
    }
    Ok(())
}

fn one<W: Write>(
    out: &mut Output<W>,
    context: &Context,
    (track, ids): (Track, (i32, i32)),
    slice: &Slice,
    name: &str,
) -> io::Result<()> {
    let waker = slice.waker.map(|tid| ("woken by", context.thread(tid)));
    let stacks = &context.profile.stacks;
    let stack = context.wait(ids, slice);
    let event = Event {
        name,
        category: slice.class.title(),
        notes: waker.into_iter().collect(),
        stack: stack.and_then(|node| out.interned.stack(stacks, node)),
    };
    out.begin_slice(track, slice.start_ns, &event)?;
    out.end_slice(track, slice.end_ns)
}
