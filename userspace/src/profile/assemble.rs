//! Makes the profile of what was recorded.

use std::collections::{BTreeMap, HashMap};

use probe_ebpf::trace::{self, Span};

use super::{
    Calls, Class, Execution, FailedLookups, Faults, File, Lost, Milestone, MilestoneKind, Process,
    Profile, SCHEMA, Slice, Stacks, Thread, Times, connections, critical, findings,
    record::{Identity, Kept, Record, Seen},
    texts::{self, Describer, Texts},
    timeline::{self, Part},
};
use crate::{
    host::Clocks,
    store::now_ms,
    watch::{CapturePoint, Event, What, recording::Totals},
};

/// Slices of all threads together that are kept.
const SLICES: usize = 200_000;

/// Paths that are told of a process' failed look-ups.
const EXAMPLES: usize = 20;

/// What a profile is of.
pub struct Subject {
    pub command: Vec<String>,
    pub point: CapturePoint,
    /// The end of the recording, in the clock of the record.
    pub end_ns: u64,
    /// When a restored server was back, if it is one.
    pub restored_ns: Option<u64>,
    /// When the first response was complete, if it was waited for.
    pub response_ns: Option<u64>,
}

/// Makes the profile. `events` are those of the whole tree, in the order of time.
pub fn assemble(
    record: &Record,
    totals: &Totals,
    events: &[Event],
    (subject, mut stacks): (Subject, Stacks),
) -> Profile {
    let origin_ns = record.origin_ns.unwrap_or(subject.end_ns);
    let describer = Describer::new(record, events);
    let mut assembly = Assembly {
        record,
        totals,
        origin_ns,
        end_ns: subject.end_ns.max(origin_ns),
        describer: &describer,
        texts: Texts::default(),
    };
    let threads = assembly.threads();
    let processes = processes(threads, events, &assembly);
    let milestones = milestones(events, &subject, &assembly);
    let length_ns = assembly.end_ns - origin_ns;
    stacks.samples.retain(|sample| sample.at_ns <= length_ns);
    let mut profile = Profile {
        schema: SCHEMA,
        command: subject.command,
        started_ms: started_ms(origin_ns),
        point: subject.point,
        length_ns,
        milestones,
        processes,
        calls: calls(totals),
        files: files(totals, &describer),
        failed_lookups: failed_lookups(&assembly),
        connections: connections::find(record, describer.names(), origin_ns, assembly.end_ns),
        faults: faults(totals, &describer),
        stacks,
        critical_path: vec![],
        findings: vec![],
        lost: Lost {
            events: totals.lost,
            slices_joined: record.left_out,
            texts_cut: record.names_cut,
            ..Lost::default()
        },
        texts: assembly.texts.all,
    };
    profile.critical_path = critical::path(&profile);
    profile.findings = findings::find(&profile);
    let threads = profile.processes.iter_mut().flat_map(|of| &mut of.threads);
    let slices = threads.map(|thread| &mut thread.slices).collect();
    profile.lost.slices_joined += timeline::join_shortest(slices, SLICES);
    profile
}

/// A moment of the clock of the record, in milliseconds since 1970.
fn started_ms(origin_ns: u64) -> u64 {
    let ago = Clocks::now().monotonic_ns.saturating_sub(origin_ns);
    now_ms().saturating_sub(ago / 1_000_000)
}

struct Assembly<'a> {
    record: &'a Record,
    totals: &'a Totals,
    origin_ns: u64,
    end_ns: u64,
    describer: &'a Describer<'a>,
    texts: Texts,
}

impl Assembly<'_> {
    /// A moment in the clock of the record, since the execution of the command.
    fn since(&self, time_ns: u64) -> u64 {
        time_ns.clamp(self.origin_ns, self.end_ns) - self.origin_ns
    }

    /// The threads by process id, with what was seen of them.
    fn threads(&mut self) -> BTreeMap<u32, Vec<(Seen, Thread)>> {
        let mut parts: Vec<Vec<Part>> = vec![vec![]; self.record.threads.len()];
        for kept in &self.record.spans {
            parts[kept.thread as usize].push(self.part(kept));
        }
        let mut open: HashMap<u32, &trace::Thread> = HashMap::new();
        let states: HashMap<u32, &trace::Thread> = self
            .totals
            .threads
            .iter()
            .map(|(tid, thread)| (*tid, thread))
            .collect();
        for (tid, index) in self.record.alive() {
            if let Some(state) = states.get(&tid) {
                open.insert(index, state);
            }
        }
        let mut threads: BTreeMap<u32, Vec<(Seen, Thread)>> = BTreeMap::new();
        for (index, (seen, mut parts)) in self.record.threads.iter().zip(parts).enumerate() {
            if seen.start_ns >= self.end_ns {
                continue;
            }
            let state = open.get(&(index as u32)).copied();
            let mut seen = seen.clone();
            seen.start_ns = state.map_or(seen.start_ns, |state| state.start_ns);
            for span in state.into_iter().flat_map(|state| open_spans(state, &seen)) {
                let (thread, name) = (index as u32, None);
                parts.push(self.part(&Kept { thread, name, span }));
            }
            let thread = self.thread(&seen, &parts, state);
            threads.entry(seen.tgid).or_default().push((seen, thread));
        }
        threads
    }

    fn part(&mut self, kept: &Kept) -> Part {
        let text = self.describer.describe(kept);
        Part {
            span: kept.span,
            text: text.map(|text| self.texts.add(text)),
        }
    }

    fn thread(&mut self, seen: &Seen, parts: &[Part], state: Option<&trace::Thread>) -> Thread {
        let start_ns = seen.start_ns.max(self.origin_ns);
        let ended_ns = seen.end.as_ref().map(|end| end.0);
        let end_ns = ended_ns.map_or(self.end_ns, |end| end.min(self.end_ns));
        let end_ns = end_ns.max(start_ns);
        let mut slices = timeline::slices(parts, start_ns, end_ns);
        let counted = match (&seen.end, state) {
            (Some((until, times, _)), _) => Some((*until, Times(*times))),
            (None, Some(state)) => Some((state.last_ns, Times(state.times))),
            (None, None) => None,
        };
        let times = match counted {
            Some((until_ns, times)) if until_ns <= end_ns => plus(
                times,
                timeline::times(&timeline::slices(parts, until_ns, end_ns)),
            ),
            Some((until_ns, times)) => less(
                times,
                timeline::times(&timeline::slices(parts, end_ns, until_ns)),
            ),
            None => timeline::times(&slices),
        };
        for slice in &mut slices {
            *slice = Slice {
                start_ns: self.since(slice.start_ns),
                end_ns: self.since(slice.end_ns),
                ..*slice
            };
        }
        let name = seen.end.as_ref().map(|end| end.2.clone());
        let name = name.or_else(|| name_of(seen)).unwrap_or_default();
        Thread {
            tid: seen.tid as i32,
            name,
            start_ns: self.since(start_ns),
            end_ns: self.since(end_ns),
            times,
            slices,
        }
    }
}

/// What a thread that has not ended is in.
fn open_spans(state: &trace::Thread, seen: &Seen) -> impl Iterator<Item = Span> + use<> {
    let base = Span {
        tgid: seen.tgid,
        tid: seen.tid,
        end_ns: u64::MAX,
        number: state.number,
        device: state.device,
        inode: state.inode,
        argument: 0,
        ..bytemuck::Zeroable::zeroed()
    };
    let call = (state.number >= 0).then_some(Span {
        kind: trace::SPAN_CALL,
        start_ns: state.call_ns,
        class: state.call_class,
        ..base
    });
    let fault = (state.fault_ns != 0).then_some(Span {
        kind: trace::SPAN_FAULT,
        start_ns: state.fault_ns,
        class: trace::CLASS_FAULT,
        ..base
    });
    let is_preempted = state.class == trace::CLASS_RUNNABLE;
    let off = (state.off_ns != 0).then_some(Span {
        kind: trace::SPAN_OFF,
        start_ns: state.off_ns,
        woken_ns: if is_preempted {
            state.off_ns
        } else {
            state.woken_ns
        },
        waker: state.waker as u32,
        class: state.class,
        ..base
    });
    [call, fault, off].into_iter().flatten()
}

fn plus(times: Times, more: Times) -> Times {
    [times, more].into_iter().sum()
}

fn less(mut times: Times, less: Times) -> Times {
    for class in Class::ALL {
        let time = &mut times.0[class as usize];
        *time = time.saturating_sub(less.of(class));
    }
    times
}

/// The name of a thread that is still there.
fn name_of(seen: &Seen) -> Option<String> {
    let path = format!("/proc/{}/task/{}/comm", seen.tgid, seen.tid);
    let name = std::fs::read_to_string(path).ok()?;
    Some(name.trim_end().to_owned())
}

fn processes(
    threads: BTreeMap<u32, Vec<(Seen, Thread)>>,
    events: &[Event],
    assembly: &Assembly<'_>,
) -> Vec<Process> {
    let mut processes: Vec<Process> = threads
        .into_iter()
        .map(|(tgid, threads)| {
            let of_this = || events.iter().filter(|event| event.pid.0 == tgid as i32);
            let first = threads.iter().min_by_key(|(seen, _)| seen.start_ns);
            let maker = first.and_then(|(seen, _)| seen.maker);
            let main = threads.iter().find(|(seen, _)| seen.tid == tgid);
            let main = main.or(first);
            let exit = of_this().find_map(|event| match event.what {
                What::Exit { status } if event.time_ns <= assembly.end_ns => {
                    Some((event.time_ns, status))
                }
                _ => None,
            });
            let executions = of_this().filter_map(|event| match &event.what {
                What::Exec { path } if event.time_ns <= assembly.end_ns => Some(Execution {
                    at_ns: assembly.since(event.time_ns),
                    path: path.to_string_lossy().into_owned(),
                    linked_ns: linked(assembly, tgid, event.time_ns),
                }),
                _ => None,
            });
            Process {
                pid: tgid as i32,
                parent: maker.map(|(tgid, _)| tgid as i32),
                name: main
                    .map(|(_, thread)| thread.name.clone())
                    .unwrap_or_default(),
                start_ns: first.map_or(0, |(_, thread)| thread.start_ns),
                end_ns: exit.map(|(at, _)| assembly.since(at)),
                wait_status: exit.map(|(_, status)| status),
                executions: executions.collect(),
                threads: threads.into_iter().map(|(_, thread)| thread).collect(),
            }
        })
        .collect();
    processes.sort_by_key(|process| process.start_ns);
    processes
}

/// When the dynamic linker was done with a program executed then: it unmaps its cache last.
fn linked(assembly: &Assembly<'_>, tgid: u32, executed_ns: u64) -> Option<u64> {
    let munmap = syscalls::Sysno::munmap.id();
    let record = assembly.record;
    let mut cache = false;
    for Kept { thread, name, span } in &record.spans {
        let is_of_this = record.threads[*thread as usize].tgid == tgid;
        if !is_of_this || span.start_ns < executed_ns || span.kind != trace::SPAN_CALL {
            continue;
        }
        if cache && span.number == munmap {
            return Some(assembly.since(span.end_ns));
        }
        let name = name.map(|name| &record.names[name as usize][..]);
        cache |= name == Some(b"/etc/ld.so.cache") && span.result >= 0;
    }
    None
}

fn milestones(events: &[Event], subject: &Subject, assembly: &Assembly<'_>) -> Vec<Milestone> {
    let first = |kind: MilestoneKind| {
        events.iter().find_map(|event| {
            let listener = match (&event.what, kind) {
                (What::Listen { at }, MilestoneKind::Listen)
                | (What::Accept { at } | What::Wait { at }, MilestoneKind::Ready) => at.clone(),
                _ => return None,
            };
            (event.time_ns <= assembly.end_ns).then(|| Milestone {
                at_ns: assembly.since(event.time_ns),
                pid: event.pid.0,
                kind,
                listener,
            })
        })
    };
    let ready = first(MilestoneKind::Ready);
    let pid = ready.as_ref().map_or(0, |ready| ready.pid);
    let told = |at: Option<u64>, kind: MilestoneKind| {
        at.map(|at| Milestone {
            at_ns: assembly.since(at),
            pid,
            kind,
            listener: None,
        })
    };
    let milestones = [
        first(MilestoneKind::Listen),
        told(subject.restored_ns, MilestoneKind::Restored),
        ready,
        told(subject.response_ns, MilestoneKind::Response),
    ];
    milestones.into_iter().flatten().collect()
}

fn calls(totals: &Totals) -> Vec<Calls> {
    let mut calls: Vec<_> = totals
        .calls
        .iter()
        .map(|(key, total)| Calls {
            pid: key.tgid as i32,
            name: texts::call_name(key.number),
            count: total.count,
            errors: total.errors,
            total_ns: total.total_ns,
            self_ns: total.on_ns,
        })
        .collect();
    calls.sort_by(|a, b| b.total_ns.cmp(&a.total_ns).then(a.name.cmp(&b.name)));
    calls
}

/// The path of a file, or which one it is.
fn file_name(describer: &Describer<'_>, identity: Identity) -> String {
    let (device, inode) = identity;
    describer.path(identity).unwrap_or_else(|| {
        // As the kernel has it: 20 bits of minor number.
        let (major, minor) = (device >> 20, device & 0xf_ffff);
        format!("inode {major}:{minor}:{inode}")
    })
}

fn faults(totals: &Totals, describer: &Describer<'_>) -> Vec<Faults> {
    let mut faults: Vec<_> = totals
        .faults
        .iter()
        .map(|(key, total)| Faults {
            pid: key.tgid as i32,
            mapping: match key.inode {
                0 => "[anonymous]".to_owned(),
                inode => file_name(describer, (key.device, inode)),
            },
            count: total.count,
            major: total.major,
            total_ns: total.total_ns,
        })
        .collect();
    faults.sort_by_key(|faults| std::cmp::Reverse(faults.total_ns));
    faults
}

fn files(totals: &Totals, describer: &Describer<'_>) -> Vec<File> {
    let mut files: Vec<_> = totals
        .files
        .iter()
        .map(|(key, total)| File {
            path: describer.path((key.device, key.inode)).unwrap_or_else(|| {
                // As the kernel has it: 20 bits of minor number.
                let (major, minor) = (key.device >> 20, key.device & 0xf_ffff);
                format!("inode {major}:{minor}:{}", key.inode)
            }),
            opens: total.opens,
            reads: total.reads,
            bytes_read: total.bytes_read,
            self_ns: total.on_ns,
            disk_ns: total.disk_ns,
            pages_missed: total.pages_missed,
        })
        .collect();
    files.sort_by(|a, b| {
        let cost = |file: &File| file.self_ns + file.disk_ns;
        cost(b).cmp(&cost(a)).then(a.path.cmp(&b.path))
    });
    files
}

fn failed_lookups(assembly: &Assembly<'_>) -> Vec<FailedLookups> {
    let record = assembly.record;
    let mut examples: HashMap<u32, Vec<u32>> = HashMap::new();
    for Kept { thread, name, span } in &record.spans {
        if span.result == -i64::from(libc::ENOENT)
            && let Some(name) = name
        {
            let examples = examples
                .entry(record.threads[*thread as usize].tgid)
                .or_default();
            if examples.len() < EXAMPLES && !examples.contains(name) {
                examples.push(*name);
            }
        }
    }
    let text = |name: &u32| String::from_utf8_lossy(&record.names[*name as usize]).into_owned();
    let mut lookups: Vec<_> = assembly
        .totals
        .lookups
        .iter()
        .map(|(tgid, total)| FailedLookups {
            pid: *tgid as i32,
            count: total.count,
            total_ns: total.total_ns,
            examples: examples.get(tgid).into_iter().flatten().map(text).collect(),
        })
        .collect();
    lookups.sort_by_key(|lookups| std::cmp::Reverse(lookups.total_ns));
    lookups
}
