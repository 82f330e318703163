//! Where the threads of a process tree are, on a processor and off it.
//!
//! A [`Sampler`] is attached to a process that has not executed its command yet, and follows all that
//! it makes: the kernel takes a copy of each thread's registers and of the top of its stack, many
//! times a second while it runs and each time it begins to wait. What is copied is only kept while
//! the recording goes on; a [`Recording`] makes [`Stacks`] of it afterwards, so that the server is
//! disturbed as little as can be.
//!
//! It takes CAP_PERFMON. Without it [`Sampler::attach`] fails with [`Error::Permission`], and a profile
//! can go on without stacks.

pub(crate) mod elf;
mod files;
pub(crate) mod kallsyms;
mod naming;
pub(crate) mod perf_map;
pub(crate) mod record;
mod space;
mod store;
pub(crate) mod symbols;
#[cfg(test)]
mod tests;
mod tree;
mod unwind;

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    os::fd::{AsFd as _, OwnedFd},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use linux_perf_event_reader::AttrFlags;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;

use self::{
    naming::Naming,
    record::{Batch, Record},
    space::{Place, Spaces},
    store::{LIMIT, Store, Stored},
    tree::Tree,
    unwind::Unwinder,
};
use super::{Sample, Stacks};
use crate::sys::{
    self,
    perf::{self, Attributes, Ring},
};

/// How often a running thread is sampled in a second, unless asked otherwise. Not a round number, so
/// that it does not run in step with timers.
pub const FREQUENCY: u32 = 999;

/// More would be but the cost of sampling.
const HIGHEST_FREQUENCY: u32 = 10_000;

/// How much of a stack is copied from a thread that runs. Interpreters have longer ones, but the calls
/// beyond are those of another sample nearly always (see `unwind`), and copying more would slow the
/// server.
const RUNNING_STACK: u32 = 8 << 10;

/// How much is copied from a thread that begins to wait: event loops do so below an array of 12 KiB
/// (libuv), often with no other sample to tell who called.
const WAITING_STACK: u32 = 16 << 10;

/// A ring holds most start-ups whole: 4,000 samples, or 2,000 waits. To read it takes a processor, which the
/// server may need meanwhile.
const RING: usize = 32 << 20;

/// With many processors rings are smaller, so that all together stay below this, but not below the
/// smallest.
const ALL_RINGS: usize = 64 << 20;
const SMALLEST_RING: usize = 256 << 10;

/// Rings are read one after the other, so a record may come after one that is later. After this time
/// there is none to come.
const SETTLED: Duration = Duration::from_millis(10);

/// Why stacks cannot be sampled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not let this process look at others. Everything but stacks can be recorded
    /// without it.
    #[error("sampling of stacks takes CAP_PERFMON, or root")]
    Permission(#[source] io::Error),
    /// The kernel was built without perf events, or a filter forbids them.
    #[error("the kernel has no perf_event_open(2)")]
    Unsupported(#[source] io::Error),
    #[error("cannot sample process {pid} on processor {processor}")]
    Open {
        pid: i32,
        processor: u32,
        source: io::Error,
    },
    /// Without CAP_IPC_LOCK a user may have kernel.perf_event_mlock_kb for each processor.
    #[error("no {size} bytes for the samples of processor {processor}")]
    Ring {
        processor: u32,
        size: usize,
        source: io::Error,
    },
    #[error("cannot read which processors there are from {path}")]
    Processors {
        path: &'static str,
        source: io::Error,
    },
    #[error("cannot wait for samples")]
    Wait(#[source] io::Error),
}

/// The events of one processor.
struct Source {
    ring: AsyncFd<Ring>,
    /// Writes to the ring too; it stops when this is closed.
    switches: OwnedFd,
    /// The number that its records bear.
    switches_id: u64,
    /// The last process has ended: nothing wakes it up any more.
    is_over: bool,
}

/// Samples a process tree as long as it lives.
pub struct Sampler {
    sources: Vec<Source>,
    /// What may still be overtaken by earlier records of other rings.
    unsettled: Vec<Record>,
    store: Store,
    /// Records that found no room in the rings.
    lost: u64,
    started: SystemTime,
}

impl Sampler {
    /// Begins to sample a process with a single thread, and all processes and threads that it makes from
    /// now on, this often in a second of their own time. Has to be called within the asynchronous runtime.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_PERFMON.
    pub fn attach(pid: i32, frequency: u32) -> Result<Self, Error> {
        Self::attach_with(pid, frequency, ring_size(processors()?.len()))
    }

    /// With rings of this size.
    fn attach_with(pid: i32, frequency: u32, size: usize) -> Result<Self, Error> {
        let period_ns = 1_000_000_000 / u64::from(frequency.clamp(1, HIGHEST_FREQUENCY));
        let processors = processors()?;
        let mut sources = Vec::with_capacity(processors.len());
        for processor in processors {
            match Source::open(pid, processor, period_ns, size) {
                Ok(source) => sources.push(source),
                // It went offline meanwhile.
                Err(Error::Open { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            sources,
            unsettled: Vec::new(),
            store: Store::new(period_ns, LIMIT),
            lost: 0,
            started: SystemTime::now(),
        })
    }

    /// Waits until there is something to read, and reads it. Never returns once the tree has ended. Can be
    /// cancelled at any time without loss; is to be called again soon, as rings are small.
    ///
    /// # Errors
    /// [`Error::Wait`], which is of no concern to what has been read.
    pub async fn drain(&mut self) -> Result<(), Error> {
        poll_fn(|context| self.poll_ready(context)).await?;
        self.read();
        Ok(())
    }

    /// Ends the sampling.
    pub fn finish(mut self) -> Recording {
        for source in &self.sources {
            // They end anyway when they are closed; so fewer samples are of the time after this.
            let _ = perf::disable(source.ring.as_fd());
            let _ = perf::disable(source.switches.as_fd());
        }
        let now = now();
        self.read();
        for record in self.unsettled {
            self.store.add(record);
        }
        self.store.finish(now);
        Recording {
            counts: Counts {
                lost: self.lost + self.store.lost,
                thinned: self.store.thinned,
                cut: 0,
            },
            store: self.store,
            started: self.started,
        }
    }

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut result = Poll::Pending;
        for source in self.sources.iter_mut().filter(|source| !source.is_over) {
            match source.ring.poll_read_ready(context) {
                Poll::Ready(Ok(mut guard)) => {
                    source.is_over = guard.ready().is_read_closed();
                    guard.clear_ready();
                    result = Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::Wait(error))),
                Poll::Pending => {}
            }
        }
        result
    }

    fn read(&mut self) {
        let before = now();
        let mut batch = Batch::default();
        batch.records.append(&mut self.unsettled);
        for source in &mut self.sources {
            let id = source.switches_id;
            let ring = source.ring.get_mut();
            ring.read(|first, second| batch.read(first, second, id));
        }
        self.lost += batch.lost;
        batch.records.sort_by_key(|record| record.at_ns);
        let settled = before.saturating_sub(SETTLED.as_nanos() as u64);
        let count = batch
            .records
            .partition_point(|record| record.at_ns < settled);
        self.unsettled = batch.records.split_off(count);
        for record in batch.records {
            self.store.add(record);
        }
    }
}

impl Source {
    fn open(pid: i32, processor: u32, period_ns: u64, size: usize) -> Result<Self, Error> {
        /// Of linux/perf_event.h.
        const PERF_COUNT_SW_CPU_CLOCK: u64 = 0;
        const PERF_COUNT_SW_CONTEXT_SWITCHES: u64 = 3;
        let open = |attributes| perf::open(attributes, pid, processor);
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => Error::Permission(source),
            Some(libc::ENOSYS) => Error::Unsupported(source),
            _ => Error::Open {
                pid,
                processor,
                source,
            },
        };
        let clock = open(attributes(
            PERF_COUNT_SW_CPU_CLOCK,
            period_ns,
            RUNNING_STACK,
            AttrFlags::MMAP
                | AttrFlags::MMAP2
                | AttrFlags::COMM
                | AttrFlags::COMM_EXEC
                | AttrFlags::TASK,
            size,
        ));
        let switches = open(attributes(
            PERF_COUNT_SW_CONTEXT_SWITCHES,
            1,
            WAITING_STACK,
            AttrFlags::CONTEXT_SWITCH,
            size,
        ));
        let (clock, switches) = (clock.map_err(failed)?, switches.map_err(failed)?);
        let ring = Ring::map(clock, size).map_err(|source| Error::Ring {
            processor,
            size,
            source,
        })?;
        perf::share_ring(switches.as_fd(), &ring).map_err(failed)?;
        Ok(Self {
            switches_id: perf::id(switches.as_fd()).map_err(failed)?,
            ring: sys::readable(ring).map_err(Error::Wait)?,
            switches,
            is_over: false,
        })
    }
}

fn attributes(config: u64, period: u64, stack: u32, flags: AttrFlags, ring: usize) -> Attributes {
    /// Of linux/perf_event.h.
    const PERF_TYPE_SOFTWARE: u32 = 1;
    let flags = flags
        | AttrFlags::INHERIT
        | AttrFlags::SAMPLE_ID_ALL
        | AttrFlags::WATERMARK
        // The clock of eBPF, so that times can be compared.
        | AttrFlags::USE_CLOCKID;
    Attributes {
        kind: PERF_TYPE_SOFTWARE,
        config,
        sample_period: period,
        sample_type: record::format().bits(),
        flags: flags.bits(),
        // Late, see `RING`, but not too late, as the reader may have something else to do first.
        wakeup_watermark: (ring / 2) as u32,
        sample_regs_user: record::REGISTERS,
        sample_stack_user: stack,
        clock: libc::CLOCK_MONOTONIC,
        ..Attributes::default()
    }
}

fn ring_size(processors: usize) -> usize {
    let share = ALL_RINGS / processors.max(1);
    let whole = if share.is_power_of_two() {
        share
    } else {
        share.next_power_of_two() / 2
    };
    whole.clamp(SMALLEST_RING, RING)
}

/// The processors that are online.
fn processors() -> Result<Vec<u32>, Error> {
    let path = "/sys/devices/system/cpu/online";
    let failed = |source| Error::Processors { path, source };
    let list = std::fs::read_to_string(path).map_err(failed)?;
    parse_processors(list.trim()).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
}

/// Reads "0-3,8".
fn parse_processors(list: &str) -> Option<Vec<u32>> {
    let ranges = list.split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    let ranges: Option<Vec<_>> = ranges.collect();
    Some(ranges?.into_iter().flatten().collect())
}

/// Nanoseconds of the clock that samples are stamped with.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What is missing from stacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples that found no room in the kernel, and waits whose end did not.
    pub lost: u64,
    /// Samples that were left out to save memory; others count for them.
    pub thinned: u64,
    /// Stacks that do not go on to where the thread began.
    pub cut: u64,
}

/// Samples of a tree, from which nothing has been made yet.
pub struct Recording {
    store: Store,
    counts: Counts,
    started: SystemTime,
}

impl Recording {
    /// Finds the callers in each sample, and names them. Takes time, and reads the executables and
    /// libraries that the processes had.
    ///
    /// Times will be relative to `origin_ns` of the monotonic clock; what was before it is left out.
    /// `pids` has the pids of processes as they see them, by those in the initial namespace, where
    /// they differ: virtual machines use theirs to name files.
    pub fn resolve(mut self, origin_ns: u64, pids: &HashMap<i32, i32>) -> (Stacks, Counts) {
        let mut spaces = Spaces::default();
        let mut unwinder = Unwinder::default();
        let mut changes = self.store.changes.into_iter().peekable();
        let mut samples = Vec::new();
        for sample in self.store.samples {
            let Stored { pid, tid, raw, .. } = sample;
            while let Some(change) = changes.next_if(|change| change.at_ns <= sample.at_ns) {
                spaces.change(change.pid, &change.kind);
            }
            let Some(at_ns) = sample.at_ns.checked_sub(origin_ns) else {
                continue;
            };
            unwinder.add(&spaces, pid, tid, &raw);
            let sample = Sample {
                pid,
                tid,
                at_ns,
                weight_ns: sample.weight_ns,
                is_on_cpu: sample.is_on_cpu,
                node: None,
            };
            samples.push((sample, raw.kernel));
        }
        let mut naming = Naming::new(pids, self.started);
        let mut tree = Tree::default();
        for ((sample, kernel), stack) in samples.into_iter().zip(unwinder.finish()) {
            let mut frames = Vec::with_capacity(stack.calls.len() + kernel.len() + 1);
            if !stack.is_complete {
                self.counts.cut += 1;
                frames.push(naming.cut(&mut tree));
            }
            let user = stack.calls.iter().map(|call| call.place);
            let kernel = kernel.iter().map(|&address| Place::Kernel(address));
            let places = user.rev().chain(kernel.rev());
            frames.extend(places.map(|place| naming.frame(place, &spaces, &mut tree)));
            let node = tree.node(frames);
            tree.push(Sample { node, ..sample });
        }
        (tree.finish(), self.counts)
    }
}
