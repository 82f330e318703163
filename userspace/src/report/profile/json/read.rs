//! Reads profiles back. What refers to something else is checked here, so that no other part of
//! the program meets a number that stands for nothing.

use std::{borrow::Cow, collections::BTreeMap, io::BufRead};

use serde::Deserialize;

use super::{
    ReadError,
    record::{Head, Header, Node, NumberedFrame, Process, Slice, Step, Text, Thread, unnamed},
};
use crate::profile::{self, Lost, Profile, SCHEMA, Sample, Stacks};

/// Records can have been taken out of a file, which leaves numbers without a text; a file of a few
/// lines must not fill the memory by that.
const MOST_TEXTS: u32 = 4_000_000;

/// The latest time of a profile, in nanoseconds: 104 days, the largest number that all readers of JSON
/// hold exactly.
const LATEST: u64 = 1 << 53;

/// Reads the only profile of a file.
///
/// # Errors
/// As [`read_all`], and [`ReadError::Several`].
pub fn read(input: impl BufRead) -> Result<Profile, ReadError> {
    let mut profiles = read_all(input)?;
    match profiles.len() {
        1 => Ok(profiles.remove(0)),
        count => Err(ReadError::Several(count)),
    }
}

/// Reads the profiles of a file, of which there is one at least.
///
/// # Errors
/// The first line that cannot be understood, and why. Records of unknown types are not errors.
pub fn read_all(mut input: impl BufRead) -> Result<Vec<Profile>, ReadError> {
    let mut profiles = Vec::new();
    let mut current: Option<Building> = None;
    let mut text = String::new();
    for line in 1.. {
        text.clear();
        let length = input
            .read_line(&mut text)
            .map_err(|source| ReadError::Read { line, source })?;
        if length == 0 {
            break;
        }
        if text.trim().is_empty() {
            continue;
        }
        let record = Record::new(line, &text)?;
        match (&*record.kind, &mut current) {
            ("profile", Some(begun)) => return Err(ReadError::Cut { line: begun.line }),
            ("profile", none) => *none = Some(Building::new(&record)?),
            (_, None) => return Err(record.misplaced("a `profile` record")),
            ("lost", begun) => {
                let lost = record.body("lost")?;
                profiles.extend(begun.take().map(|begun| begun.finish(lost)));
            }
            (_, Some(begun)) => begun.add(&record)?,
        }
    }
    match current {
        Some(begun) => Err(ReadError::Cut { line: begun.line }),
        None if profiles.is_empty() => Err(ReadError::Empty),
        None => Ok(profiles),
    }
}

/// A line.
struct Record<'a> {
    line: usize,
    kind: Cow<'a, str>,
    text: &'a str,
}

impl<'a> Record<'a> {
    fn new(line: usize, text: &'a str) -> Result<Self, ReadError> {
        let Head { kind, schema } =
            serde_json::from_str(text).map_err(|error| ReadError::NotARecord {
                line,
                why: reason(&error),
            })?;
        if !(1..=SCHEMA).contains(&schema) {
            return Err(ReadError::Schema {
                line,
                found: schema,
            });
        }
        Ok(Self { line, kind, text })
    }

    fn body<T: Deserialize<'a>>(&self, kind: &'static str) -> Result<T, ReadError> {
        serde_json::from_str(self.text).map_err(|error| self.malformed(kind, reason(&error)))
    }

    fn malformed(&self, kind: &'static str, why: String) -> ReadError {
        let line = self.line;
        ReadError::Malformed { line, kind, why }
    }

    /// Checks that a record does not end before it starts.
    fn check_times(&self, kind: &'static str, start: u64, end: u64) -> Result<(), ReadError> {
        match start <= end && end <= LATEST {
            true => Ok(()),
            false => Err(self.malformed(kind, format!("it is from {start} to {end} ns"))),
        }
    }

    fn misplaced(&self, what: &'static str) -> ReadError {
        ReadError::Misplaced {
            line: self.line,
            kind: self.kind.clone().into_owned(),
            what,
        }
    }
}

/// What serde_json says, less its number of the line, which would be that of the record's text.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(why) => format!("{why}, at column {}", error.column()),
        None => text,
    }
}

/// A profile that is being read.
struct Building {
    /// Where it begins.
    line: usize,
    profile: Profile,
    /// By their numbers, of which any can come first.
    texts: BTreeMap<u32, String>,
}

impl Building {
    fn new(record: &Record) -> Result<Self, ReadError> {
        let header: Header = record.body("profile")?;
        Ok(Self {
            line: record.line,
            texts: BTreeMap::new(),
            profile: Profile {
                schema: SCHEMA,
                command: header.command.into_owned(),
                started_ms: header.started_ms,
                point: header.point,
                length_ns: header.length_ns,
                milestones: Vec::new(),
                processes: Vec::new(),
                calls: Vec::new(),
                files: Vec::new(),
                failed_lookups: Vec::new(),
                connections: Vec::new(),
                faults: Vec::new(),
                stacks: Stacks::default(),
                critical_path: Vec::new(),
                findings: Vec::new(),
                texts: Vec::new(),
                lost: Lost::default(),
            },
        })
    }

    fn add(&mut self, record: &Record) -> Result<(), ReadError> {
        let profile = &mut self.profile;
        match &*record.kind {
            "milestone" => profile.milestones.push(record.body("milestone")?),
            "calls" => profile.calls.push(record.body("calls")?),
            "file" => profile.files.push(record.body("file")?),
            "failed_lookups" => profile.failed_lookups.push(record.body("failed_lookups")?),
            "connection" => profile.connections.push(record.body("connection")?),
            "faults" => profile.faults.push(record.body("faults")?),
            "finding" => profile.findings.push(record.body("finding")?),
            "process" => self.process(record)?,
            "thread" => self.thread(record)?,
            "slice" => self.slice(record)?,
            "frame" => self.frame(record)?,
            "node" => self.node(record)?,
            "sample" => self.sample(record)?,
            "step" => self.step(record)?,
            "text" => {
                let Text { text, text_id } = record.body("text")?;
                self.text("text", text.as_deref(), text_id, record)?;
            }
            // Of a later version that a reader of this one can do without.
            _ => (),
        }
        Ok(())
    }

    fn process(&mut self, record: &Record) -> Result<(), ReadError> {
        let process: Process = record.body("process")?;
        self.profile.processes.push(profile::Process {
            pid: process.pid,
            parent: process.parent,
            name: process.name.into_owned(),
            start_ns: process.start_ns,
            end_ns: process.end_ns,
            wait_status: process.wait_status,
            executions: process.executions.into_owned(),
            threads: Vec::new(),
        });
        Ok(())
    }

    fn thread(&mut self, record: &Record) -> Result<(), ReadError> {
        let thread: Thread = record.body("thread")?;
        record.check_times("thread", thread.start_ns, thread.end_ns)?;
        let process = self.profile.processes.last_mut();
        let Some(process) = process.filter(|process| process.pid == thread.pid) else {
            return Err(record.misplaced("the record of its process"));
        };
        process.threads.push(profile::Thread {
            tid: thread.tid,
            name: thread.name.into_owned(),
            start_ns: thread.start_ns,
            end_ns: thread.end_ns,
            times: unnamed(&thread.times_ns),
            slices: Vec::new(),
        });
        Ok(())
    }

    fn slice(&mut self, record: &Record) -> Result<(), ReadError> {
        let slice: Slice = record.body("slice")?;
        let text = self.text("slice", slice.text.as_deref(), slice.text_id, record)?;
        let process = self.profile.processes.last_mut();
        let process = process.filter(|process| process.pid == slice.pid);
        let thread = process.and_then(|process| process.threads.last_mut());
        let Some(thread) = thread.filter(|thread| thread.tid == slice.tid) else {
            return Err(record.misplaced("the record of its thread, or another slice of it"));
        };
        let last = thread.slices.last().map_or(0, |last| last.end_ns);
        if slice.start_ns < last || slice.end_ns < slice.start_ns {
            let why = "it ends before it starts, or starts before the one before ends";
            return Err(record.malformed("slice", why.to_owned()));
        }
        thread.slices.push(profile::Slice {
            start_ns: slice.start_ns,
            end_ns: slice.end_ns,
            class: slice.class,
            text,
            waker: slice.waker,
        });
        Ok(())
    }

    fn step(&mut self, record: &Record) -> Result<(), ReadError> {
        let step: Step = record.body("step")?;
        record.check_times("step", step.start_ns, step.end_ns)?;
        let text = self.text("step", step.text.as_deref(), step.text_id, record)?;
        self.profile.critical_path.push(profile::Step {
            start_ns: step.start_ns,
            end_ns: step.end_ns,
            pid: step.pid,
            tid: step.tid,
            class: step.class,
            text,
        });
        Ok(())
    }

    fn text(
        &mut self,
        kind: &'static str,
        text: Option<&str>,
        id: Option<u32>,
        record: &Record,
    ) -> Result<Option<u32>, ReadError> {
        let (Some(id), Some(text)) = (id, text) else {
            return Ok(None);
        };
        if id >= MOST_TEXTS {
            let why =
                format!("{id} is no number of a text, of which there are {MOST_TEXTS} at most");
            return Err(record.malformed(kind, why));
        }
        let known = self.texts.entry(id).or_insert_with(|| text.to_owned());
        match *known == *text {
            true => Ok(Some(id)),
            false => Err(record.malformed(kind, format!("text {id} was `{known}` before"))),
        }
    }

    fn frame(&mut self, record: &Record) -> Result<(), ReadError> {
        let frame: NumberedFrame = record.body("frame")?;
        let frames = &mut self.profile.stacks.frames;
        if frame.id as usize != frames.len() {
            return Err(record.misplaced("the frame with the number before"));
        }
        frames.push(frame.frame.into_owned());
        Ok(())
    }

    fn node(&mut self, record: &Record) -> Result<(), ReadError> {
        let Node { id, parent, frame } = record.body("node")?;
        let stacks = &mut self.profile.stacks;
        if id as usize != stacks.nodes.len() {
            return Err(record.misplaced("the node with the number before"));
        }
        if frame as usize >= stacks.frames.len() {
            return Err(record.misplaced("its frame"));
        }
        if parent.is_some_and(|parent| parent >= id) {
            return Err(record.misplaced("its parent"));
        }
        stacks.nodes.push(profile::Node { parent, frame });
        Ok(())
    }

    fn sample(&mut self, record: &Record) -> Result<(), ReadError> {
        let sample: Sample = record.body("sample")?;
        let stacks = &mut self.profile.stacks;
        if sample
            .node
            .is_some_and(|node| node as usize >= stacks.nodes.len())
        {
            return Err(record.misplaced("its node"));
        }
        stacks.samples.push(sample);
        Ok(())
    }

    fn finish(mut self, lost: Lost) -> Profile {
        let count = self.texts.last_key_value().map_or(0, |(&last, _)| last + 1);
        self.profile.texts.resize(count as usize, String::new());
        for (id, text) in self.texts {
            self.profile.texts[id as usize] = text;
        }
        self.profile.lost = lost;
        self.profile
    }
}
