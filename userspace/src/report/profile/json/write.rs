//! Writes a profile, record by record.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    io::{self, BufWriter, Write},
};

use serde::Serialize;

use super::record::{Header, Node, NumberedFrame, Process, Slice, Step, Text, Thread, named};
use crate::profile::{self, Profile, SCHEMA};

/// Writes a profile as JSON Lines.
///
/// # Errors
/// What the output says.
pub fn write(profile: &Profile, out: impl Write) -> io::Result<()> {
    let mut out = Writer {
        out: BufWriter::new(out),
        texts: &profile.texts,
        unused: (0..profile.texts.len() as u32).collect(),
    };
    out.line(
        "profile",
        &Header {
            command: Cow::Borrowed(&profile.command),
            started_ms: profile.started_ms,
            point: profile.point,
            length_ns: profile.length_ns,
        },
    )?;
    out.lines("milestone", &profile.milestones)?;
    for process in &profile.processes {
        out.process(process)?;
    }
    out.lines("calls", &profile.calls)?;
    out.lines("file", &profile.files)?;
    out.lines("failed_lookups", &profile.failed_lookups)?;
    out.lines("connection", &profile.connections)?;
    out.lines("faults", &profile.faults)?;
    out.stacks(&profile.stacks)?;
    for step in &profile.critical_path {
        let (text, text_id) = out.text(step.text);
        out.line(
            "step",
            &Step {
                start_ns: step.start_ns,
                end_ns: step.end_ns,
                pid: step.pid,
                tid: step.tid,
                class: step.class,
                text,
                text_id,
            },
        )?;
    }
    out.lines("finding", &profile.findings)?;
    for id in std::mem::take(&mut out.unused) {
        let (text, text_id) = out.text(Some(id));
        out.line("text", &Text { text, text_id })?;
    }
    out.line("lost", &profile.lost)?;
    out.out.flush()
}

struct Writer<'a, W: Write> {
    out: BufWriter<W>,
    texts: &'a [String],
    /// The numbers of the texts that no record has had yet.
    unused: BTreeSet<u32>,
}

impl<'a, W: Write> Writer<'a, W> {
    fn process(&mut self, process: &profile::Process) -> io::Result<()> {
        self.line(
            "process",
            &Process {
                pid: process.pid,
                parent: process.parent,
                name: Cow::Borrowed(&process.name),
                start_ns: process.start_ns,
                end_ns: process.end_ns,
                wait_status: process.wait_status,
                executions: Cow::Borrowed(&process.executions),
            },
        )?;
        for thread in &process.threads {
            self.thread(process.pid, thread)?;
        }
        Ok(())
    }

    fn thread(&mut self, pid: i32, thread: &profile::Thread) -> io::Result<()> {
        self.line(
            "thread",
            &Thread {
                pid,
                tid: thread.tid,
                name: Cow::Borrowed(&thread.name),
                start_ns: thread.start_ns,
                end_ns: thread.end_ns,
                times_ns: named(&thread.times),
            },
        )?;
        for slice in &thread.slices {
            let (text, text_id) = self.text(slice.text);
            self.line(
                "slice",
                &Slice {
                    pid,
                    tid: thread.tid,
                    start_ns: slice.start_ns,
                    end_ns: slice.end_ns,
                    class: slice.class,
                    text,
                    text_id,
                    waker: slice.waker,
                },
            )?;
        }
        Ok(())
    }

    fn stacks(&mut self, stacks: &profile::Stacks) -> io::Result<()> {
        for (id, frame) in (0..).zip(&stacks.frames) {
            let frame = Cow::Borrowed(frame);
            self.line("frame", &NumberedFrame { id, frame })?;
        }
        for (id, node) in (0..).zip(&stacks.nodes) {
            let (parent, frame) = (node.parent, node.frame);
            self.line("node", &Node { id, parent, frame })?;
        }
        self.lines("sample", &stacks.samples)
    }

    /// The words of a text, and its number.
    fn text(&mut self, id: Option<u32>) -> (Option<Cow<'a, str>>, Option<u32>) {
        let words = |id: u32| self.texts.get(id as usize);
        let Some((id, text)) = id.and_then(|id| Some((id, words(id)?))) else {
            return (None, None);
        };
        self.unused.remove(&id);
        (Some(Cow::Borrowed(text)), Some(id))
    }

    fn lines(&mut self, kind: &'static str, records: &[impl Serialize]) -> io::Result<()> {
        records
            .iter()
            .try_for_each(|record| self.line(kind, record))
    }

    fn line(&mut self, kind: &'static str, record: &impl Serialize) -> io::Result<()> {
        #[derive(Serialize)]
        struct Line<'a, T> {
            #[serde(rename = "type")]
            kind: &'static str,
            schema: u32,
            #[serde(flatten)]
            record: &'a T,
        }
        let schema = SCHEMA;
        let line = Line {
            kind,
            schema,
            record,
        };
        serde_json::to_writer(&mut self.out, &line)?;
        self.out.write_all(b"\n")
    }
}
