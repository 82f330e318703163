//! The critical path: what the end of a start-up waited for, and what that waited for.
//!
//! It is followed backwards from the end. Where a thread was woken by another one of the server, the
//! path goes on with that one; where it began, with the one that made it. So the path has no gap:
//! each nanosecond of the start-up is in one step.

use std::collections::HashMap;

use super::{Class, MilestoneKind, Process, Profile, Slice, Step, Thread};

/// How often the path goes on with another thread at the same moment.
const MOST_JUMPS: u32 = 16;

/// The path through a profile's slices, from its begin to its end.
pub fn path(profile: &Profile) -> Vec<Step> {
    let threads = Threads::new(&profile.processes);
    let Some(mut at) = threads.last(profile) else {
        return vec![];
    };
    let mut now_ns = profile.length_ns;
    let mut steps: Vec<Step> = vec![];
    // Times are of different processors: two threads may seem to have woken each other.
    let mut jumps = 0;
    while now_ns > 0 && jumps <= MOST_JUMPS {
        if at.thread.end_ns < now_ns {
            // Its end was waited for, which took until then.
            steps.push(at.step(Class::Kernel, None, at.thread.end_ns, now_ns));
            now_ns = at.thread.end_ns;
            continue;
        }
        let Some(slice) = slice_before(at.thread, now_ns) else {
            // It did not run yet: its maker did.
            match threads.maker(&at).filter(|_| at.thread.start_ns > 0) {
                Some(maker) => {
                    at = maker;
                    jumps += 1;
                    continue;
                }
                // As of a tree that ran before: it was made ready for the recording.
                None => {
                    steps.push(at.step(Class::Kernel, None, 0, now_ns));
                    break;
                }
            }
        };
        // A wake-up at another's behalf: that other one is why it took so long.
        let waker = slice.waker.filter(|_| follows_waker(slice.class));
        let waker = waker.and_then(|tid| threads.running(tid, now_ns, at.thread.tid));
        if let Some(waker) = waker
            && slice.end_ns <= now_ns
            && jumps < MOST_JUMPS
        {
            at = waker;
            jumps += 1;
            continue;
        }
        steps.push(at.step(slice.class, slice.text, slice.start_ns, now_ns));
        now_ns = slice.start_ns;
        jumps = 0;
    }
    steps.reverse();
    join(steps)
}

/// Whether the end of such a wait is another thread's doing; else it is time's or a device's.
fn follows_waker(class: Class) -> bool {
    matches!(
        class,
        Class::Network | Class::Peer | Class::Events | Class::Lock | Class::Child | Class::Other
    )
}

/// The slice of a thread that a moment is in, or ends at.
fn slice_before(thread: &Thread, now_ns: u64) -> Option<&Slice> {
    let after = thread
        .slices
        .partition_point(|slice| slice.start_ns < now_ns);
    let slice = thread.slices.get(after.checked_sub(1)?)?;
    (slice.end_ns >= now_ns).then_some(slice)
}

/// Steps that do the same one after the other are one.
fn join(steps: Vec<Step>) -> Vec<Step> {
    let mut joined: Vec<Step> = vec![];
    for step in steps {
        match joined.last_mut() {
            Some(last)
                if (last.tid, last.class, last.text, last.end_ns)
                    == (step.tid, step.class, step.text, step.start_ns) =>
            {
                last.end_ns = step.end_ns;
            }
            _ => joined.push(step),
        }
    }
    joined
}

#[derive(Clone, Copy)]
struct Place<'a> {
    process: &'a Process,
    thread: &'a Thread,
}

impl Place<'_> {
    fn step(&self, class: Class, text: Option<u32>, start_ns: u64, end_ns: u64) -> Step {
        Step {
            start_ns,
            end_ns,
            pid: self.process.pid,
            tid: self.thread.tid,
            class,
            text,
        }
    }
}

struct Threads<'a> {
    by_tid: HashMap<i32, Vec<Place<'a>>>,
}

impl<'a> Threads<'a> {
    fn new(processes: &'a [Process]) -> Self {
        let mut by_tid: HashMap<i32, Vec<Place<'_>>> = HashMap::new();
        for process in processes {
            for thread in &process.threads {
                let place = Place { process, thread };
                by_tid.entry(thread.tid).or_default().push(place);
            }
        }
        Self { by_tid }
    }

    /// The thread that a start-up ends with: that of the process that got ready which was the last to
    /// run.
    fn last(&self, profile: &Profile) -> Option<Place<'a>> {
        let ready = profile.milestones.iter().rev();
        let ready = ready.filter(|of| of.kind != MilestoneKind::Listen && of.pid != 0);
        let pid = ready.map(|milestone| milestone.pid).next();
        let all = || self.by_tid.values().flatten().copied();
        let of_process = all().filter(|place| Some(place.process.pid) == pid);
        let ran_last = |place: &Place<'_>| {
            let on = |slice: &&Slice| slice.class.is_on_cpu();
            let last = place.thread.slices.iter().rev().find(on);
            last.map_or(0, |slice| slice.end_ns)
        };
        of_process
            .max_by_key(ran_last)
            .or_else(|| all().max_by_key(ran_last))
    }

    /// The thread of an id that was there at a moment, other than another one.
    fn running(&self, tid: i32, at_ns: u64, other: i32) -> Option<Place<'a>> {
        let places = self.by_tid.get(&tid)?.iter().copied();
        let is_there = |place: &Place<'_>| {
            let Thread {
                tid,
                start_ns,
                end_ns,
                ..
            } = *place.thread;
            // What has ended a moment before has woken it by its end.
            tid != other && start_ns < at_ns && end_ns + 1_000_000 >= at_ns
        };
        let place = places.rev().find(is_there)?;
        slice_before(place.thread, at_ns.min(place.thread.end_ns)).map(|_| place)
    }

    /// The thread that made another one: of the same process, or of its parent.
    fn maker(&self, place: &Place<'a>) -> Option<Place<'a>> {
        let at_ns = place.thread.start_ns;
        let is_first = place.process.start_ns == place.thread.start_ns;
        let pid = match (is_first, place.process.parent) {
            (true, parent) => parent?,
            (false, _) => place.process.pid,
        };
        let all = self.by_tid.values().flatten().copied();
        let candidates =
            all.filter(|of| of.process.pid == pid && of.thread.tid != place.thread.tid);
        // The one that was in a call at that moment on a processor.
        candidates
            .filter_map(|of| slice_before(of.thread, at_ns).map(|slice| (of, slice)))
            .max_by_key(|(_, slice)| (slice.class == Class::Kernel, slice.start_ns))
            .map(|(of, _)| of)
    }
}
