//! The slices of a thread, from its spans: without a gap or overlap.
//!
//! Spans lie within one another: a wait in a page fault in a system call. At each moment the
//! innermost says what the thread does.

use probe_ebpf::trace::{self, Span};

use super::{Class, Slice, Times};

/// What begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    // At the same moment, what is within ends first, and begins last.
    OffEnds,
    FaultEnds,
    CallEnds,
    CallBegins,
    FaultBegins,
    OffBegins,
    Woken,
}

/// A span, and what a slice says of it.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub span: Span,
    pub text: Option<u32>,
}

/// The slices of a thread from `start_ns` to `end_ns`, in the clock of the spans.
pub fn slices(parts: &[Part], start_ns: u64, end_ns: u64) -> Vec<Slice> {
    let mut edges: Vec<(u64, Edge, usize)> = Vec::with_capacity(parts.len() * 2);
    for (index, Part { span, .. }) in parts.iter().enumerate() {
        let (begins, ends) = match span.kind {
            trace::SPAN_CALL => (Edge::CallBegins, Edge::CallEnds),
            trace::SPAN_FAULT => (Edge::FaultBegins, Edge::FaultEnds),
            trace::SPAN_OFF => (Edge::OffBegins, Edge::OffEnds),
            _ => continue,
        };
        edges.push((span.start_ns, begins, index));
        edges.push((span.end_ns, ends, index));
        if ends == Edge::OffEnds && span.woken_ns > span.start_ns && span.woken_ns < span.end_ns {
            edges.push((span.woken_ns, Edge::Woken, index));
        }
    }
    edges.sort_unstable();
    let mut line = Line {
        parts,
        slices: vec![],
        call: None,
        fault: None,
        off: None,
        is_woken: false,
        last_ns: start_ns,
    };
    for (at_ns, edge, index) in edges {
        line.advance(at_ns.clamp(start_ns, end_ns));
        line.turn(edge, index);
    }
    line.advance(end_ns);
    line.slices
}

struct Line<'a> {
    parts: &'a [Part],
    slices: Vec<Slice>,
    call: Option<usize>,
    fault: Option<usize>,
    off: Option<usize>,
    is_woken: bool,
    last_ns: u64,
}

impl Line<'_> {
    fn turn(&mut self, edge: Edge, index: usize) {
        match edge {
            Edge::CallBegins => self.call = Some(index),
            Edge::CallEnds => self.call = None,
            Edge::FaultBegins => self.fault = Some(index),
            Edge::FaultEnds => self.fault = None,
            Edge::OffBegins => {
                self.off = Some(index);
                let span = &self.parts[index].span;
                self.is_woken = span.woken_ns == span.start_ns;
            }
            Edge::Woken => self.is_woken = true,
            Edge::OffEnds => self.off = None,
        }
    }

    /// What the thread does now.
    fn class(&self) -> Class {
        let of = |index: usize| Class::ALL.get(self.parts[index].span.class as usize);
        match (self.off, self.fault, self.call) {
            (Some(_), _, _) if self.is_woken => Class::Runnable,
            (Some(off), _, _) => match of(off).copied().unwrap_or(Class::Other) {
                Class::Lock if self.is_timed_out() => Class::Sleep,
                class => class,
            },
            (None, Some(_), _) => Class::Fault,
            (None, None, Some(call)) => of(call).copied().unwrap_or(Class::Kernel),
            (None, None, None) => Class::User,
        }
    }

    /// Whether nobody woke the thread from what it waits for in its call: virtual machines sleep so.
    fn is_timed_out(&self) -> bool {
        let result = self.call.map(|call| self.parts[call].span.result);
        result == Some(-i64::from(libc::ETIMEDOUT))
    }

    fn advance(&mut self, to_ns: u64) {
        if to_ns <= self.last_ns {
            return;
        }
        let class = self.class();
        let text = |index: Option<usize>| index.and_then(|index| self.parts[index].text);
        let text = text(self.call).or(text(self.off)).or(text(self.fault));
        let waits = !class.is_on_cpu() && class != Class::Runnable;
        let waker = self.off.filter(|_| waits);
        let waker = waker.map(|off| self.parts[off].span.waker as i32);
        let waker = waker.filter(|&waker| waker != 0);
        let slice = Slice {
            start_ns: self.last_ns,
            end_ns: to_ns,
            class,
            text,
            waker,
        };
        self.last_ns = to_ns;
        match self.slices.last_mut() {
            // As when a short call between two was left out.
            Some(last) if last.class == class && last.text == text && last.waker == waker => {
                last.end_ns = to_ns;
            }
            _ => self.slices.push(slice),
        }
    }
}

/// The times of slices by class.
pub fn times(slices: &[Slice]) -> Times {
    let mut times = Times::default();
    for slice in slices {
        times.add(slice.class, slice.end_ns - slice.start_ns);
    }
    times
}

/// Joins the shortest slices of all threads with those before until at most `limit` are left; returns
/// how many were joined.
pub fn join_shortest(mut threads: Vec<&mut Vec<Slice>>, limit: usize) -> u64 {
    let count = |threads: &[&mut Vec<Slice>]| threads.iter().map(|of| of.len()).sum::<usize>();
    let before = count(&threads);
    let mut shortest_ns = 1000;
    // Each thread keeps one at least.
    while count(&threads) > limit.max(threads.len()) {
        for slices in &mut threads {
            slices.dedup_by(|slice, last| {
                let is_short = slice.end_ns - slice.start_ns < shortest_ns;
                if is_short {
                    last.end_ns = slice.end_ns;
                }
                is_short
            });
        }
        shortest_ns *= 2;
    }
    (before - count(&threads)) as u64
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    fn part(kind: u32, class: Class, start_ns: u64, end_ns: u64) -> Part {
        let span = Span {
            kind,
            class: class as u32,
            start_ns,
            end_ns,
            ..Span::zeroed()
        };
        Part { span, text: None }
    }

    fn rows(slices: &[Slice]) -> Vec<(u64, u64, Class)> {
        let row = |slice: &Slice| (slice.start_ns, slice.end_ns, slice.class);
        slices.iter().map(row).collect()
    }

    #[test]
    fn the_innermost_says_what_is_done() {
        let mut wait = part(trace::SPAN_OFF, Class::Disk, 25, 50);
        wait.span.woken_ns = 40;
        wait.span.waker = 9;
        let parts = [
            part(trace::SPAN_CALL, Class::Files, 10, 60),
            part(trace::SPAN_FAULT, Class::Fault, 20, 55),
            wait,
        ];
        let slices = slices(&parts, 0, 100);
        assert_eq!(
            rows(&slices),
            [
                (0, 10, Class::User),
                (10, 20, Class::Files),
                (20, 25, Class::Fault),
                (25, 40, Class::Disk),
                (40, 50, Class::Runnable),
                (50, 55, Class::Fault),
                (55, 60, Class::Files),
                (60, 100, Class::User),
            ]
        );
        assert_eq!(slices[3].waker, Some(9));
        assert_eq!(times(&slices).sum(), 100);
    }

    #[test]
    fn what_reaches_beyond_the_ends_is_cut() {
        let parts = [
            part(trace::SPAN_CALL, Class::Kernel, 0, 20),
            part(trace::SPAN_CALL, Class::Kernel, 30, 90),
        ];
        assert_eq!(
            rows(&slices(&parts, 10, 50)),
            [
                (10, 20, Class::Kernel),
                (20, 30, Class::User),
                (30, 50, Class::Kernel)
            ]
        );
    }

    #[test]
    fn too_many_slices_are_joined_without_a_gap() {
        let parts: Vec<_> = (0..1000)
            .map(|i| part(trace::SPAN_CALL, Class::Kernel, i * 100, i * 100 + 50))
            .collect();
        let mut joined = slices(&parts, 0, 100_000);
        let count = join_shortest(vec![&mut joined], 10);
        assert!(joined.len() <= 10 && count > 1900);
        assert_eq!(
            (joined[0].start_ns, joined.last().unwrap().end_ns),
            (0, 100_000)
        );
        assert!(
            joined
                .windows(2)
                .all(|two| two[0].end_ns == two[1].start_ns)
        );
    }
}
