//! Start-up profiles: where the time of a server goes until it is ready, by process and thread.
//!
//! A [`Profile`] is what was recorded and all that was made of it; reports only show it. All times
//! are nanoseconds since the command was executed. For each thread every nanosecond is of exactly
//! one [`Class`].

mod assemble;
mod class;
mod connections;
mod critical;
pub mod diff;
mod findings;
pub(crate) mod names;
pub mod record;
mod recorder;
mod run;
pub mod stacks;
pub(crate) mod texts;
mod timeline;

pub use assemble::{Subject, assemble};
pub use class::{Class, Times};
pub use recorder::Recorder;
pub use run::{Profiled, first_response, profile};
use serde::{Deserialize, Serialize};

use crate::{listener::Listener, watch::CapturePoint};

/// The version of the format of profiles.
pub const SCHEMA: u32 = 1;

/// A recorded start-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub schema: u32,
    pub command: Vec<String>,
    /// When the command was executed, in milliseconds since 1970.
    pub started_ms: u64,
    /// What it was recorded to.
    pub point: CapturePoint,
    /// From the execution of the command to the end of the recording.
    pub length_ns: u64,
    pub milestones: Vec<Milestone>,
    /// In the order in which they were made; the first is the command.
    pub processes: Vec<Process>,
    pub calls: Vec<Calls>,
    pub files: Vec<File>,
    pub failed_lookups: Vec<FailedLookups>,
    pub connections: Vec<Connection>,
    pub faults: Vec<Faults>,
    pub stacks: Stacks,
    /// From the execution of the command to the end, without a gap.
    pub critical_path: Vec<Step>,
    /// Those that cost most first.
    pub findings: Vec<Finding>,
    /// What the slices say, by their `text`.
    pub texts: Vec<String>,
    pub lost: Lost,
}

/// A moment that a start-up is measured by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Milestone {
    pub at_ns: u64,
    pub pid: i32,
    pub kind: MilestoneKind,
    /// What listens or is waited on.
    pub listener: Option<Listener>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MilestoneKind {
    /// A socket first listened.
    Listen,
    /// A restored server was back.
    Restored,
    /// A process first waited for a connection.
    Ready,
    /// The first response was complete.
    Response,
}

impl MilestoneKind {
    /// As a person reads it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Listen => "listening",
            Self::Restored => "restored",
            Self::Ready => "ready for connections",
            Self::Response => "first response",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// In the initial pid namespace.
    pub pid: i32,
    /// The pid of the process that made it; absent for the command.
    pub parent: Option<i32>,
    /// As the kernel names it: the last program it executed, unless it renamed itself.
    pub name: String,
    pub start_ns: u64,
    /// Absent if it was there to the end.
    pub end_ns: Option<u64>,
    /// As of wait(2).
    pub wait_status: Option<i32>,
    pub executions: Vec<Execution>,
    pub threads: Vec<Thread>,
}

impl Process {
    /// The file name of the last program it executed, or what the kernel calls it.
    pub fn program(&self) -> String {
        let path = self.executions.last().map(|execution| &execution.path);
        let name = path.and_then(|path| path.rsplit('/').next());
        name.unwrap_or(&self.name).to_owned()
    }

    /// The program and the pid.
    pub fn title(&self) -> String {
        format!("{} {}", self.program(), self.pid)
    }
}

/// A program that a process executed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    pub at_ns: u64,
    pub path: String,
    /// When its dynamic linker was done, if it has one and that was seen.
    pub linked_ns: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thread {
    pub tid: i32,
    pub name: String,
    pub start_ns: u64,
    /// When it ended, or the end of the recording.
    pub end_ns: u64,
    /// Counted in the kernel: exact, whatever was lost or left out. Its sum is `end_ns - start_ns`.
    pub times: Times,
    /// In the order of time, without a gap or overlap; short ones may have been joined.
    pub slices: Vec<Slice>,
}

/// A time in which a thread did one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SliceRow", into = "SliceRow")]
pub struct Slice {
    pub start_ns: u64,
    pub end_ns: u64,
    pub class: Class,
    /// What it was, as an index of [`Profile::texts`]: a system call and what it was about.
    pub text: Option<u32>,
    /// The thread that ended a wait.
    pub waker: Option<i32>,
}

/// A slice is an array in JSON, as there are many: start, end, class, text, waker.
type SliceRow = (u64, u64, Class, Option<u32>, Option<i32>);

impl From<SliceRow> for Slice {
    fn from((start_ns, end_ns, class, text, waker): SliceRow) -> Self {
        Self {
            start_ns,
            end_ns,
            class,
            text,
            waker,
        }
    }
}

impl From<Slice> for SliceRow {
    fn from(slice: Slice) -> Self {
        let Slice {
            start_ns,
            end_ns,
            class,
            text,
            waker,
        } = slice;
        (start_ns, end_ns, class, text, waker)
    }
}

/// The calls that a process made of a system call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    pub pid: i32,
    pub name: String,
    pub count: u64,
    pub errors: u64,
    /// From entry to exit.
    pub total_ns: u64,
    /// Of that on a processor.
    pub self_ns: u64,
}

/// What all processes did with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// `inode DEVICE:NUMBER` if it was opened before the recording.
    pub path: String,
    pub opens: u64,
    pub reads: u64,
    pub bytes_read: u64,
    /// In calls on it, on a processor.
    pub self_ns: u64,
    /// In calls on it and faults of it, waiting for storage.
    pub disk_ns: u64,
    /// Pages that were not in the page cache, read by a call, a fault or ahead of either.
    pub pages_missed: u64,
}

/// Look-ups of paths that do not exist, by a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedLookups {
    pub pid: i32,
    pub count: u64,
    pub total_ns: u64,
    /// Some of the paths.
    pub examples: Vec<String>,
}

/// A connection to elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    pub pid: i32,
    pub tid: i32,
    /// An address and port, or a path.
    pub peer: String,
    /// The name that was resolved to the address, if that was seen, and how long it took, from the
    /// question to the answer.
    pub name: Option<String>,
    pub resolved_ns: Option<u64>,
    /// When connect(2) was called.
    pub start_ns: u64,
    /// When it was established; absent if it was not.
    pub connected_ns: Option<u64>,
    /// When the first byte of the peer was read.
    pub first_byte_ns: Option<u64>,
    /// All that threads waited for it.
    pub waited_ns: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// Page faults of a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    pub pid: i32,
    /// A path, or what the kernel calls it: `[heap]`, `[stack]`, `[anonymous]`.
    pub mapping: String,
    pub count: u64,
    /// Those that waited for storage.
    pub major: u64,
    pub total_ns: u64,
}

/// Where threads were, on and off the processor. A stack is a path in a tree, so that common begins are
/// kept once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stacks {
    pub frames: Vec<Frame>,
    /// Each comes after its parent.
    pub nodes: Vec<Node>,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The function, or an address if it is not known.
    pub function: String,
    /// The executable or library, or what else it is of.
    pub module: Option<String>,
    pub build_id: Option<String>,
    pub source: Option<String>,
    pub is_kernel: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The caller.
    pub parent: Option<u32>,
    /// An index of [`Stacks::frames`].
    pub frame: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub pid: i32,
    pub tid: i32,
    pub at_ns: u64,
    /// How much time it stands for: that between two samples, or that of a wait.
    pub weight_ns: u64,
    /// Whether it ran; otherwise it waited.
    pub is_on_cpu: bool,
    /// The innermost, as an index of [`Stacks::nodes`]; absent if the stack is not known.
    pub node: Option<u32>,
}

/// A part of the critical path: what the end of the start-up waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub start_ns: u64,
    pub end_ns: u64,
    pub pid: i32,
    pub tid: i32,
    pub class: Class,
    /// As of a [`Slice`].
    pub text: Option<u32>,
}

/// Something worth acting on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it costs.
    pub cost_ns: u64,
    /// What takes the time: "failed look-ups of files: 2,314".
    pub title: String,
    /// What shows it, in lines.
    pub evidence: Vec<String>,
    /// What to do.
    pub advice: String,
}

/// What was not recorded, or left out afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Events that found no room in the kernel. Totals are exact all the same.
    pub events: u64,
    /// Samples of stacks that found no room.
    pub samples: u64,
    /// Stacks that were cut short.
    pub stacks_cut: u64,
    /// Slices that were joined with their neighbours, as there were too many.
    pub slices_joined: u64,
    /// Paths and texts that were cut short.
    pub texts_cut: u64,
}
