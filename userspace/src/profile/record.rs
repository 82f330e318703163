//! What the probe tells, as it comes in: bounded in memory, whatever the server does.
//!
//! Spans are kept one by one up to a limit; above it the shortest are left out, and ever longer ones
//! as the recording goes on. Totals do not come from here: the kernel keeps them.

use std::collections::HashMap;

use probe_ebpf::trace::{self, Span};

use crate::watch::recording::Item;

/// Spans that are kept: about 100 MB.
const SPANS: usize = 1_000_000;

/// Answers of name servers that are kept: about 2 MB.
const ANSWERS: usize = 4096;

/// The shortest span that is left out first, in nanoseconds.
const FIRST_THRESHOLD_NS: u64 = 1_000;

/// Paths and addresses that are kept.
const NAMES: usize = 200_000;

/// Which file it is, by device and inode number.
pub type Identity = (u32, u64);

/// A thread that was seen. Ids are used again, so it is known by its place in [`Record::threads`].
#[derive(Clone, Debug)]
pub struct Seen {
    pub tgid: u32,
    pub tid: u32,
    pub start_ns: u64,
    /// The process and thread that made it.
    pub maker: Option<(u32, u32)>,
    /// If it has ended: when, its times, and its name.
    pub end: Option<(u64, [u64; trace::CLASSES], String)>,
}

/// A span of a thread that was seen.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// An index of [`Record::threads`].
    pub thread: u32,
    /// An index of [`Record::names`].
    pub name: Option<u32>,
    pub span: Span,
}

/// All that was told.
#[derive(Debug, Default)]
pub struct Record {
    pub threads: Vec<Seen>,
    /// The threads that have not ended, by id.
    alive: HashMap<u32, u32>,
    pub spans: Vec<Kept>,
    pub names: Vec<Vec<u8>>,
    known: HashMap<Vec<u8>, u32>,
    /// The path that each file was last opened by.
    pub paths: HashMap<Identity, u32>,
    /// What name servers answered, and the calls that read it.
    pub answers: Vec<(Span, Vec<u8>)>,
    /// When each TCP socket was connected.
    pub connected: HashMap<u64, Vec<u64>>,
    /// When the command was executed.
    pub origin_ns: Option<u64>,
    threshold_ns: u64,
    /// Spans that were left out.
    pub left_out: u64,
    pub names_cut: u64,
}

impl Record {
    pub fn take(&mut self, item: Item) {
        match item {
            Item::Span(span) => self.take_span(span, None),
            Item::Named(span, name) => {
                self.names_cut += u64::from(span.flags & trace::SPAN_CUT != 0);
                let name = self.name(name);
                // Else it is the address of a peer.
                if span.inode != 0
                    && span.class == trace::CLASS_FILES
                    && let Some(name) = name
                {
                    self.paths.insert((span.device, span.inode), name);
                }
                self.take_span(span, name);
            }
            Item::Answer(span, answer) => {
                if self.answers.len() < ANSWERS {
                    self.answers.push((span, answer));
                }
                self.take_span(span, None);
            }
            Item::End(span, times, name) => {
                let thread = self.thread(&span);
                self.alive.remove(&span.tid);
                self.threads[thread as usize].start_ns = span.start_ns;
                self.threads[thread as usize].end = Some((span.end_ns, times, name));
            }
        }
    }

    fn take_span(&mut self, span: Span, name: Option<u32>) {
        match span.kind {
            trace::SPAN_BEGIN => {
                let maker = span.argument;
                let seen = Seen {
                    maker: Some(((maker >> 32) as u32, maker as u32)),
                    ..Seen::new(&span)
                };
                self.add(seen);
            }
            trace::SPAN_EXEC => {
                let old = span.argument as u32;
                if let Some(thread) = self.alive.remove(&old) {
                    self.threads[thread as usize].tid = span.tid;
                    self.alive.insert(span.tid, thread);
                }
                let thread = self.thread(&span);
                if self.origin_ns.is_none() {
                    self.origin_ns = Some(span.start_ns);
                    self.threads[thread as usize].start_ns = span.start_ns;
                }
            }
            trace::SPAN_CONNECTED => {
                let times = self.connected.entry(span.argument).or_default();
                times.push(span.start_ns);
            }
            _ => self.keep(span, name),
        }
    }

    fn keep(&mut self, span: Span, name: Option<u32>) {
        let thread = self.thread(&span);
        if span.end_ns - span.start_ns.min(span.end_ns) < self.threshold_ns && name.is_none() {
            self.left_out += 1;
            return;
        }
        self.spans.push(Kept { thread, name, span });
        if self.spans.len() >= SPANS {
            self.thin();
        }
    }

    /// Leaves out the shortest until half of the room is free.
    fn thin(&mut self) {
        while self.spans.len() > SPANS / 2 {
            self.threshold_ns = (self.threshold_ns * 2).max(FIRST_THRESHOLD_NS);
            let (before, shortest) = (self.spans.len(), self.threshold_ns);
            self.spans
                .retain(|kept| kept.span.end_ns.saturating_sub(kept.span.start_ns) >= shortest);
            self.left_out += (before - self.spans.len()) as u64;
        }
    }

    /// The thread of a span, which begins with it if it was not seen before.
    fn thread(&mut self, span: &Span) -> u32 {
        match self.alive.get(&span.tid) {
            Some(&thread) => thread,
            None => self.add(Seen::new(span)),
        }
    }

    fn add(&mut self, seen: Seen) -> u32 {
        let thread = self.threads.len() as u32;
        self.alive.insert(seen.tid, thread);
        self.threads.push(seen);
        thread
    }

    /// The threads that have not ended: their ids, and their indexes of [`Record::threads`].
    pub fn alive(&self) -> impl Iterator<Item = (u32, u32)> {
        self.alive.iter().map(|(&tid, &thread)| (tid, thread))
    }

    fn name(&mut self, name: Vec<u8>) -> Option<u32> {
        if let Some(&known) = self.known.get(&name) {
            return Some(known);
        }
        if self.names.len() >= NAMES {
            return None;
        }
        let index = self.names.len() as u32;
        self.names.push(name.clone());
        self.known.insert(name, index);
        Some(index)
    }
}

impl Seen {
    fn new(span: &Span) -> Self {
        Self {
            tgid: span.tgid,
            tid: span.tid,
            start_ns: span.start_ns,
            maker: None,
            end: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    fn span(kind: u32, tid: u32, start_ns: u64, end_ns: u64) -> Span {
        Span {
            kind,
            tgid: 1,
            tid,
            start_ns,
            end_ns,
            ..Span::zeroed()
        }
    }

    #[test]
    fn memory_is_bounded_and_long_spans_stay() {
        let mut record = Record::default();
        for number in 0..3 * SPANS as u64 {
            let len = if number % 1000 == 0 { 1_000_000 } else { 500 };
            let start = number * 1_000_000;
            record.take(Item::Span(span(trace::SPAN_CALL, 1, start, start + len)));
        }
        assert!(record.spans.len() < SPANS);
        let long = record
            .spans
            .iter()
            .filter(|kept| kept.span.end_ns - kept.span.start_ns > 500);
        assert_eq!(long.count(), 3 * SPANS / 1000);
        assert_eq!(
            record.left_out + record.spans.len() as u64,
            3 * SPANS as u64
        );
    }

    #[test]
    fn a_thread_that_executes_becomes_the_first_of_its_process() {
        let mut record = Record::default();
        record.take(Item::Span(span(trace::SPAN_BEGIN, 2, 5, 5)));
        record.take(Item::End(
            span(trace::SPAN_END, 1, 0, 8),
            [0; 13],
            "a".to_owned(),
        ));
        let mut executed = span(trace::SPAN_EXEC, 1, 9, 9);
        executed.argument = 2;
        record.take(Item::Span(executed));
        record.take(Item::Span(span(trace::SPAN_CALL, 1, 10, 11)));
        let thread = &record.threads[record.spans[0].thread as usize];
        assert_eq!((thread.tid, thread.start_ns), (1, 9));
        assert_eq!(record.origin_ns, Some(9));
    }

    #[test]
    fn an_id_that_is_used_again_is_another_thread() {
        let mut record = Record::default();
        for start in [1, 100] {
            record.take(Item::Span(span(trace::SPAN_BEGIN, 7, start, start)));
            record.take(Item::Span(span(trace::SPAN_CALL, 7, start, start + 1)));
            let end = span(trace::SPAN_END, 7, start, start + 2);
            record.take(Item::End(end, [0; 13], "b".to_owned()));
        }
        assert_eq!(record.threads.len(), 2);
        assert_eq!(record.spans[1].thread, 1);
    }
}
