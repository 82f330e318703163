//! What the probe records for a start-up profile: spans as they end, and totals at the end.

use std::ops::AddAssign;

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuHashMap, RingBuf},
    programs::{
        PerfEvent,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
};
use bytemuck::Pod;
use probe_ebpf::trace;
use tokio::io::unix::AsyncFd;

use super::WatchError;
use crate::sys::{self, Shared};

/// The programs of the probe that record, and the raw tracepoints they attach to.
pub(super) const PROGRAMS: [(&str, &str); 12] = [
    ("profile_fork", "sched_process_fork"),
    ("profile_exec", "sched_process_exec"),
    ("profile_exits", "sched_process_exit"),
    ("profile_enter", "sys_enter"),
    ("profile_exit", "sys_exit"),
    ("profile_switch", "sched_switch"),
    ("profile_waking", "sched_waking"),
    ("profile_contended", "contention_begin"),
    ("profile_acquired", "contention_end"),
    ("profile_signal", "signal_deliver"),
    ("profile_missed", "mm_filemap_add_to_page_cache"),
    ("profile_tcp", "inet_sock_set_state"),
];

/// Those whose tracepoints older kernels lack: faults of files are then told of as of no file.
const OPTIONAL: [(&str, &str); 2] = [
    ("profile_file", "mm_filemap_fault"),
    ("profile_around", "mm_filemap_map_pages"),
];

/// What tells that a page fault begins, and what does so where older kernels lack the tracepoints.
const FAULT_BEGINS: [(&str, &str); 2] = [
    ("profile_fault_user", "page_fault_user"),
    ("profile_fault_kernel", "page_fault_kernel"),
];
const FAULT_BEGINS_OTHERWISE: [(&str, SoftwareEvent); 1] =
    [("profile_fault", SoftwareEvent::PageFaults)];

/// What tells that it is over.
const FAULT_ENDS: [(&str, SoftwareEvent); 2] = [
    ("profile_minor", SoftwareEvent::PageFaultsMin),
    ("profile_major", SoftwareEvent::PageFaultsMaj),
];

/// The maps that only a recording needs, whose memory is taken when the probe is loaded.
pub(super) const MAPS: [&str; 5] = ["THREADS", "CALLS", "FILES", "FAULTS", "LOOKUPS"];
pub(super) const SPANS: &str = "SPANS";

/// What the probe tells.
#[derive(Clone, Debug)]
pub enum Item {
    Span(trace::Span),
    /// With a path, or the address of a peer as a `struct sockaddr`.
    Named(trace::Span, Vec<u8>),
    /// With what a name server answered.
    Answer(trace::Span, Vec<u8>),
    /// A thread ended: its times and its name.
    End(trace::Span, [u64; trace::CLASSES], String),
}

/// What the probe has counted.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Threads that have not ended, by their ids.
    pub threads: Vec<(u32, trace::Thread)>,
    pub calls: Vec<(trace::CallsKey, trace::CallsTotal)>,
    pub files: Vec<(trace::FileKey, trace::FileTotal)>,
    pub faults: Vec<(trace::FaultsKey, trace::FaultsTotal)>,
    pub lookups: Vec<(u32, trace::LookupsTotal)>,
    /// Spans and entries that found no room.
    pub lost: u64,
}

type PerProcessor<K, V> = PerCpuHashMap<MapData, Shared<K>, Shared<V>>;

/// What is recorded, as long as the [`super::Watch`] that it came with lives.
pub struct Recording {
    spans: AsyncFd<RingBuf<MapData>>,
    threads: HashMap<MapData, u32, Shared<trace::Thread>>,
    calls: PerProcessor<trace::CallsKey, trace::CallsTotal>,
    files: PerProcessor<trace::FileKey, trace::FileTotal>,
    faults: PerProcessor<trace::FaultsKey, trace::FaultsTotal>,
    lookups: PerProcessor<u32, trace::LookupsTotal>,
    lost: Array<MapData, u64>,
    executed: Array<MapData, u32>,
}

impl Recording {
    /// Attaches what records, and takes the maps of a loaded probe.
    pub(super) fn attach(ebpf: &mut Ebpf, btf: &aya::Btf) -> Result<Self, WatchError> {
        for (name, tracepoint) in PROGRAMS {
            super::attach(ebpf, btf, name, tracepoint)?;
        }
        for (name, tracepoint) in OPTIONAL {
            if let Err(error) = super::attach(ebpf, btf, name, tracepoint) {
                tracing::debug!("{error}");
            }
        }
        let begins =
            FAULT_BEGINS.map(|(name, tracepoint)| super::attach(ebpf, btf, name, tracepoint));
        if let Some(error) = begins.into_iter().find_map(Result::err) {
            tracing::debug!("{error}");
            attach_events(ebpf, &FAULT_BEGINS_OTHERWISE)?;
        }
        attach_events(ebpf, &FAULT_ENDS)?;
        let mut take = |name: &'static str| ebpf.take_map(name).ok_or(WatchError::Incomplete(name));
        let spans = RingBuf::try_from(take(SPANS)?)?;
        if let Err(error) = sys::bpf::keep_maps_from_children() {
            tracing::debug!("forks copy the ring: {error}");
        }
        Ok(Self {
            spans: sys::readable(spans).map_err(WatchError::Wait)?,
            threads: take("THREADS")?.try_into()?,
            calls: take("CALLS")?.try_into()?,
            files: take("FILES")?.try_into()?,
            faults: take("FAULTS")?.try_into()?,
            lookups: take("LOOKUPS")?.try_into()?,
            lost: take("LOST")?.try_into()?,
            executed: take("EXECUTED")?.try_into()?,
        })
    }

    /// Records from now on, and not from the first execution of a program.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn begin(&mut self) -> Result<(), WatchError> {
        Ok(self.executed.set(0, 1, 0)?)
    }

    /// Waits until there is something to take. Can be cancelled.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn wait(&mut self) -> Result<(), WatchError> {
        let mut guard = self.spans.readable_mut().await.map_err(WatchError::Wait)?;
        guard.clear_ready();
        Ok(())
    }

    /// Takes what there is.
    pub fn drain(&mut self, mut take: impl FnMut(Item)) {
        while let Some(bytes) = self.spans.get_mut().next() {
            if let Some(item) = parse(&bytes) {
                take(item);
            }
        }
    }

    /// What was counted until now.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn totals(&self) -> Result<Totals, WatchError> {
        let threads = self.threads.iter().flatten();
        Ok(Totals {
            threads: threads.map(|(tid, thread)| (tid, thread.0)).collect(),
            calls: summed(&self.calls),
            files: summed(&self.files),
            faults: summed(&self.faults),
            lookups: summed(&self.lookups),
            lost: self.lost.get(&0, 0)?,
        })
    }
}

/// The entries of a map, summed over the processors.
fn summed<K: Pod, V: Pod + Default + AddAssign>(map: &PerProcessor<K, V>) -> Vec<(K, V)> {
    let entries = map.iter().flatten().map(|(key, each)| {
        let mut sum = V::default();
        each.iter().for_each(|of| sum += of.0);
        (key.0, sum)
    });
    entries.collect()
}

/// Attaches programs to what the kernel counts, on every processor.
fn attach_events(
    ebpf: &mut Ebpf,
    events: &[(&'static str, SoftwareEvent)],
) -> Result<(), WatchError> {
    let processors =
        aya::util::online_cpus().map_err(|(_, error)| WatchError::Processors(error))?;
    for &(name, event) in events {
        let refused = |source| WatchError::Program {
            tracepoint: "page faults",
            source: Box::new(source),
        };
        let program = ebpf.program_mut(name).ok_or(WatchError::Incomplete(name))?;
        let program: &mut PerfEvent = program.try_into().map_err(refused)?;
        program.load().map_err(refused)?;
        for &cpu in &processors {
            let everyone = PerfEventScope::AllProcessesOneCpu { cpu };
            let every = SamplePolicy::Period(1);
            program
                .attach(PerfEventConfig::Software(event), everyone, every, false)
                .map_err(refused)?;
        }
    }
    Ok(())
}

pub(crate) fn parse(bytes: &[u8]) -> Option<Item> {
    if let Ok(span) = bytemuck::try_pod_read_unaligned(bytes) {
        return Some(Item::Span(span));
    }
    if let Ok(end) = bytemuck::try_pod_read_unaligned::<trace::EndSpan>(bytes) {
        let name = end.name.split(|&byte| byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        return Some(Item::End(end.span, end.times, name));
    }
    if let Ok(answered) = bytemuck::try_pod_read_unaligned::<trace::AnswerSpan>(bytes) {
        let answer = answered.answer.get(..answered.answer_len as usize)?;
        return Some(Item::Answer(answered.span, answer.to_vec()));
    }
    let named: trace::NamedSpan = bytemuck::try_pod_read_unaligned(bytes).ok()?;
    let name = named.name.get(..named.name_len as usize)?;
    Some(Item::Named(named.span, name.to_vec()))
}
