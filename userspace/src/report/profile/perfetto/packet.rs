//! Packets: each has its time, and before it is written, what it means by numbers.

use std::io::{self, BufWriter, Write};

use super::{intern::Interned, wire::Message};
use crate::profile::Profile;

/// `BuiltinClock`.
const REALTIME: u32 = 1;
const BOOTTIME: u32 = 6;
/// `TracePacket.SequenceFlags`.
const INCREMENTAL_STATE_CLEARED: u32 = 1;
const NEEDS_INCREMENTAL_STATE: u32 = 2;
/// `PerfEvents.Counter` and `.PerfClock`.
const SW_CPU_CLOCK: u32 = 1;
const PERF_CLOCK_BOOTTIME: u32 = 4;
/// `CounterDescriptor.Unit`.
const UNIT_COUNT: u32 = 2;
/// Fields of `TracePacket`.
const CLOCK_SNAPSHOT: u32 = 6;
const TIMESTAMP: u32 = 8;
const SEQUENCE: u32 = 10;
const TRACK_EVENT: u32 = 11;
const INTERNED_DATA: u32 = 12;
const SEQUENCE_FLAGS: u32 = 13;
const DEFAULTS: u32 = 59;
const TRACK_DESCRIPTOR: u32 = 60;
const PERF_SAMPLE: u32 = 66;
/// The only field of `Trace`.
const PACKET: u32 = 1;

/// A row of the trace.
#[derive(Clone, Copy, Debug)]
pub struct Track(u64);

/// `TrackEvent.Type`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum EventType {
    Begin = 1,
    End = 2,
    Instant = 3,
    Counter = 4,
}

/// What a slice or an instant is.
#[derive(Clone, Debug, Default)]
pub struct Event<'a> {
    pub name: &'a str,
    pub category: &'a str,
    /// What else is shown of it.
    pub notes: Vec<(&'static str, String)>,
    /// As [`Interned::stack`] numbers it.
    pub stack: Option<u64>,
}

/// The trace that is being written.
pub struct Output<W: Write> {
    out: BufWriter<W>,
    pub interned: Interned,
    tracks: u64,
}

impl<W: Write> Output<W> {
    /// Writes what must come first: the clocks, and what holds for all packets.
    pub fn begin(profile: &Profile, out: W) -> io::Result<Self> {
        let mut output = Self {
            out: BufWriter::new(out),
            interned: Interned::default(),
            tracks: 0,
        };
        let clock = |id: u32, nanoseconds: u64| Message::new().number(1, id).number(2, nanoseconds);
        let clocks = Message::new()
            .message(1, &clock(BOOTTIME, 0))
            .message(1, &clock(REALTIME, profile.started_ms * 1_000_000))
            .number(2, BOOTTIME);
        let time_base = Message::new()
            .number(4, SW_CPU_CLOCK)
            .number(11, PERF_CLOCK_BOOTTIME);
        let defaults = Message::new()
            .message(12, &Message::new().message(1, &time_base))
            .number(58, BOOTTIME);
        let first = Message::new()
            .number(TIMESTAMP, 0_u32)
            .message(CLOCK_SNAPSHOT, &clocks)
            .message(DEFAULTS, &defaults)
            .number(SEQUENCE_FLAGS, INCREMENTAL_STATE_CLEARED);
        output.packet(first)?;
        Ok(output)
    }

    pub fn end(mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Makes a track of a process.
    pub fn process_track(&mut self, pid: i32, name: &str, start_ns: u64) -> io::Result<Track> {
        let process = Message::new()
            .signed(1, pid)
            .text(6, name)
            .number(7, start_ns);
        self.track(None, Message::new().message(3, &process))
    }

    /// Makes a track of a thread.
    pub fn thread_track(
        &mut self,
        process: Track,
        (pid, tid): (i32, i32),
        name: &str,
    ) -> io::Result<Track> {
        let thread = Message::new().signed(1, pid).signed(2, tid).text(5, name);
        self.track(Some(process), Message::new().message(4, &thread))
    }

    /// Makes a track of something else; at the top if it has no parent.
    pub fn named_track(&mut self, parent: Option<Track>, name: &str) -> io::Result<Track> {
        self.track(parent, Message::new().text(2, name))
    }

    /// Makes a track of a number of things, which changes.
    pub fn counter_track(&mut self, name: &str) -> io::Result<Track> {
        let counter = Message::new().number(3, UNIT_COUNT);
        self.track(None, Message::new().text(2, name).message(8, &counter))
    }

    fn track(&mut self, parent: Option<Track>, descriptor: Message) -> io::Result<Track> {
        self.tracks += 1;
        let track = Track(self.tracks);
        let mut descriptor = descriptor.number(1, track.0);
        if let Some(Track(parent)) = parent {
            descriptor = descriptor.number(5, parent);
        }
        self.packet(Message::new().message(TRACK_DESCRIPTOR, &descriptor))?;
        Ok(track)
    }

    pub fn begin_slice(&mut self, track: Track, at_ns: u64, event: &Event) -> io::Result<()> {
        self.described(EventType::Begin, track, at_ns, event)
    }

    /// Ends the slice of the track that began last.
    pub fn end_slice(&mut self, track: Track, at_ns: u64) -> io::Result<()> {
        self.event(EventType::End, track, at_ns, Message::new())
    }

    pub fn instant(&mut self, track: Track, at_ns: u64, event: &Event) -> io::Result<()> {
        self.described(EventType::Instant, track, at_ns, event)
    }

    pub fn count(&mut self, track: Track, at_ns: u64, value: i64) -> io::Result<()> {
        let message = Message::new().signed(30, value);
        self.event(EventType::Counter, track, at_ns, message)
    }

    /// Says where a thread was at a moment, and how much time on processors has been counted.
    pub fn sample(
        &mut self,
        (pid, tid): (i32, i32),
        at_ns: u64,
        stack: u64,
        counted_ns: u64,
    ) -> io::Result<()> {
        let sample = Message::new()
            .signed(2, pid)
            .signed(3, tid)
            .number(4, stack)
            .number(6, counted_ns);
        self.packet(
            Message::new()
                .number(TIMESTAMP, at_ns)
                .message(PERF_SAMPLE, &sample)
                .number(SEQUENCE_FLAGS, NEEDS_INCREMENTAL_STATE),
        )
    }

    fn described(
        &mut self,
        kind: EventType,
        track: Track,
        at_ns: u64,
        event: &Event,
    ) -> io::Result<()> {
        let mut message = Message::new()
            .number(3, self.interned.category(event.category))
            .number(10, self.interned.name(event.name));
        for (name, value) in &event.notes {
            let name = self.interned.annotation(name);
            message = message.message(4, &Message::new().number(1, name).text(6, value));
        }
        if let Some(stack) = event.stack {
            message = message.number(56, stack);
        }
        self.event(kind, track, at_ns, message)
    }

    fn event(
        &mut self,
        kind: EventType,
        Track(track): Track,
        at_ns: u64,
        message: Message,
    ) -> io::Result<()> {
        let message = message.number(9, kind as u32).number(11, track);
        self.packet(
            Message::new()
                .number(TIMESTAMP, at_ns)
                .message(TRACK_EVENT, &message)
                .number(SEQUENCE_FLAGS, NEEDS_INCREMENTAL_STATE),
        )
    }

    fn packet(&mut self, packet: Message) -> io::Result<()> {
        let mut packet = packet.number(SEQUENCE, 1_u32);
        if let Some(new) = self.interned.take_new() {
            packet = packet.message(INTERNED_DATA, &new);
        }
        let framed = Message::new().message(PACKET, &packet);
        self.out.write_all(framed.as_bytes())
    }
}
