//! Prints: the only module that does. Results go to standard output, the rest to standard error.

pub mod access;
mod archives;
mod bench;
mod diff;
mod images;
mod obstacles;
pub mod profile;
mod progress;
mod restored;
mod run;
mod serve;
mod units;

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Write as _},
    path::Path,
};

use comfy_table::Table;
use serde::Serialize;
use serde_json::{Value, json};

use self::images::{image_json, without_environment};
use self::units::{Age, Bytes, Milliseconds};
pub use self::{
    bench::{Exports, factor, markdown, svg},
    profile::{Folded, Form},
    progress::ProgressLine,
    restored::{FirstByte, NoByte},
};
use crate::{
    bench::{choice::Reason, statistics::Estimate},
    cgroup::State as LimitState,
    cli::{self, DEFAULT_STORE, Format, STORE_VARIABLE},
    doctor::{Finding, Severity},
    error::Error,
    instance::{Instance, State, describe_status},
    listener::Listener,
    memory::Memory,
    profile::Profile,
    serve::wakes::Wake,
    store::{Image, Manifest},
    watch::CapturePoint,
};

/// The version of what `--json` prints. Raised when a reader of the older one would go wrong.
const SCHEMA: u32 = 1;

/// A point of `capture --at auto`.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum AutoRow {
    Measured {
        point: CapturePoint,
        /// In milliseconds.
        first_response: Estimate,
        bytes: u64,
        /// Why it was kept, if it was.
        kept: Option<Reason>,
    },
    Failed {
        point: CapturePoint,
        reason: String,
    },
}

/// Prints results for people or as JSON Lines.
#[derive(Clone, Debug)]
pub struct Report {
    json: bool,
}

impl Report {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Shows where a capture is, on a terminal.
    pub fn progress(&self) -> ProgressLine {
        ProgressLine::new()
    }

    /// Shows how much of an image has been written or read, on a terminal.
    pub fn transfer(&self, verb: &'static str) -> ProgressLine {
        ProgressLine::transfer(verb)
    }

    /// # Errors
    /// [`Error::Output`], as all that follow.
    pub fn captured(&self, image: &Image, store: &Path) -> Result<(), Error> {
        if self.json {
            return self.line("capture", without_environment(image_json(image)));
        }
        let Manifest {
            capture,
            listeners,
            processes,
            memory_bytes,
            ..
        } = &image.manifest;
        let threads: u64 = processes.iter().map(|process| process.threads).sum();
        let reached = capture
            .time_line
            .iter()
            .rfind(|moment| moment.at_us <= capture.start_up_us)
            .map_or("", |moment| moment.event.as_str());
        let mut out = Lines::default();
        out.add(&format!(
            "Captured {} at {}.",
            image.manifest.command.words.join(" "),
            capture.point
        ));
        out.add("");
        if capture.point != CapturePoint::Checkpoint {
            out.row(
                "start-up",
                &format!("{} to: {reached}", Milliseconds(capture.start_up_us)),
            );
        }
        out.row("freeze", &Milliseconds(capture.freeze_us).to_string());
        out.row("dump", &Milliseconds(capture.dump_us).to_string());
        out.row(
            "processes",
            &format!("{}, {}", processes.len(), plural(threads, "thread")),
        );
        out.row("listeners", &list(listeners));
        out.row(
            "image",
            &format!(
                "{} ({} of memory)",
                Bytes(image.manifest.image_bytes()),
                Bytes(*memory_bytes)
            ),
        );
        out.row("name", image.label());
        out.row("digest", image.digest.short());
        if capture.dropped_events > 0 {
            out.row(
                "lost",
                &format!(
                    "{} that found no room",
                    plural(capture.dropped_events, "event")
                ),
            );
        }
        if let Some(count @ 1..) = image.read_files()?.map(|read| read.unrecorded) {
            let text = format!("{} that it read", plural(count, "file"));
            out.row("not recorded", &text);
        }
        out.add("");
        let is_found =
            store == Path::new(DEFAULT_STORE) || std::env::var_os(STORE_VARIABLE).is_some();
        let store = match is_found {
            true => String::new(),
            false => format!("--store {} ", store.display()),
        };
        out.add(&format!(
            "Restore it with: warmimg {store}restore {}",
            image.label()
        ));
        out.print()
    }

    /// What became of each point of `capture --at auto`.
    pub fn compared(&self, rows: &[AutoRow], runs: usize) -> Result<(), Error> {
        if self.json {
            return rows
                .iter()
                .try_for_each(|row| self.line("point", json!(row)));
        }
        let mut lines = vec![["POINT", "FIRST RESPONSE", "IMAGE", ""].map(str::to_owned)];
        lines.extend(rows.iter().map(|row| match row {
            AutoRow::Measured {
                point,
                first_response,
                bytes,
                kept,
            } => [
                point.to_string(),
                format!("{:.1} ms", first_response.value),
                Bytes(*bytes).to_string(),
                match kept {
                    None => String::new(),
                    Some(Reason::Fastest) => "kept: the fastest".to_owned(),
                    Some(Reason::Smaller) => "kept: as fast as the fastest, and smaller".to_owned(),
                },
            ],
            AutoRow::Failed { point, reason } => {
                let none = || "-".to_owned();
                [
                    point.to_string(),
                    none(),
                    none(),
                    format!("no image: {reason}"),
                ]
            }
        }));
        table(lines)?;
        let mut out = Lines::default();
        out.add("");
        out.add(&format!("Medians of {runs} restores each, in turn."));
        out.add("");
        out.print()
    }

    /// Profiles of the same, as it was asked for, to a file if there is one.
    pub fn profiles(
        &self,
        profiles: &[Profile],
        asked: &cli::Profile,
        file: Option<&mut File>,
    ) -> Result<(), Error> {
        let form = self.form(asked);
        let mut text = vec![];
        profile::write(profiles, form, &mut text).map_err(Error::Output)?;
        put(&text, asked, file)
    }

    /// A wake, likewise.
    pub fn wake(
        &self,
        wake: &Wake,
        gateway: i32,
        asked: &cli::Profile,
        file: Option<&mut File>,
    ) -> Result<(), Error> {
        match self.form(asked) {
            Form::Human { .. } => put(serve::phases(wake).as_bytes(), asked, file),
            _ => self.profiles(&[wake.profile(gateway)], asked, file),
        }
    }

    fn form(&self, asked: &cli::Profile) -> Form {
        let default = match (&asked.output, self.json) {
            (Some(path), _) => Format::of(path),
            (None, true) => Format::Json,
            (None, false) => Format::Human,
        };
        let format = asked.format.unwrap_or(default);
        format.form(asked.critical_path, asked.stacks)
    }

    /// The profile of a capture.
    pub fn profile_to(&self, profile: &Profile, path: &Path, file: &mut File) -> Result<(), Error> {
        let form = Format::of(path).form(true, Folded::default());
        profile::write(std::slice::from_ref(profile), form, file).map_err(exported(path))
    }

    /// Instances with their memory, which those that have ended do not have.
    pub fn instances(&self, instances: &[(Instance, Option<Memory>)]) -> Result<(), Error> {
        if self.json {
            for (instance, memory) in instances {
                let (state, status) = match instance.state {
                    State::Running => ("running", None),
                    State::Ended { status } => ("ended", status),
                };
                let mut object = json!(instance.record);
                object["state"] = state.into();
                object["wait_status"] = status.into();
                object["guard"] = json!(instance.guard());
                if let (Some(object), Value::Object(memory)) =
                    (object.as_object_mut(), json!(memory))
                {
                    object.extend(memory);
                }
                self.line("instance", object)?;
            }
            return Ok(());
        }
        let headings = [
            "INSTANCE",
            "IMAGE",
            "STATE",
            "STARTED",
            "INIT",
            "RSS",
            "PSS",
            "SHARED",
            "LISTENERS",
        ];
        let mut rows = vec![headings.map(str::to_owned)];
        for (Instance { record, state, .. }, memory) in instances {
            let size = |part: fn(&Memory) -> u64| {
                let bytes = memory.as_ref().map(part);
                bytes.map_or_else(|| "-".to_owned(), |bytes| Bytes(bytes).to_string())
            };
            rows.push([
                record.id.clone(),
                match &record.image {
                    Some(image) => image.chars().take(12).collect(),
                    None => "-".to_owned(),
                },
                match state {
                    State::Running if record.detached => "running".to_owned(),
                    State::Running => "running, in the foreground".to_owned(),
                    State::Ended { status: None } => "ended: killed".to_owned(),
                    State::Ended {
                        status: Some(status),
                    } => {
                        format!("ended: {}", describe_status(*status))
                    }
                },
                Age::since(record.started_ms).to_string(),
                record.init.to_string(),
                size(|memory| memory.rss),
                size(|memory| memory.pss),
                size(|memory| memory.shared),
                list(&record.listeners),
            ]);
        }
        table(rows)
    }

    pub fn stopped(&self, instance: &Instance, killed: bool) -> Result<(), Error> {
        let id = &instance.record.id;
        if self.json {
            return self.line("stop", json!({ "instance": id, "killed": killed }));
        }
        let mut out = Lines::default();
        out.add(&match (instance.state, killed) {
            (State::Ended { .. }, _) => format!("Removed {id}, which had ended"),
            (_, false) => format!("Stopped {id}"),
            (_, true) => format!("Killed {id}, which did not stop in time"),
        });
        out.print()
    }

    pub fn limits(&self, id: &str, state: &LimitState) -> Result<(), Error> {
        let (cpus, memory) = (state.cpus.number(), state.memory.0);
        if self.json {
            return self.line(
                "limits",
                json!({
                    "instance": id,
                    "cpus": cpus,
                    "memory_bytes": memory,
                    "memory_used_bytes": state.memory_used,
                }),
            );
        }
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "no limit".to_owned());
        let size = |bytes: u64| Bytes(bytes).to_string();
        let mut out = Lines::default();
        out.add(&format!("Limits of {id}"));
        out.add("");
        out.row(
            "processors",
            &or_none(cpus.map(|number| number.to_string())),
        );
        out.row("memory", &or_none(memory.map(size)));
        let used = state.memory_used.map(size);
        out.row(
            "in use",
            used.as_deref()
                .unwrap_or("not counted: it has no group of its own"),
        );
        out.print()
    }

    pub fn findings(&self, findings: &[Finding]) -> Result<(), Error> {
        if self.json {
            return findings
                .iter()
                .try_for_each(|finding| self.line("finding", json!(finding)));
        }
        let mut out = Lines::default();
        for finding in findings {
            let mark = match finding.severity {
                Severity::Good => "ok",
                Severity::Limited => "limited",
                Severity::Broken => "BROKEN",
            };
            let indented = finding
                .found
                .replace('\n', "\n                             ");
            out.add(&format!("{mark:<8} {:<18}  {indented}", finding.check));
            for (label, text) in [("so:", &finding.meaning), ("fix:", &finding.fix)] {
                if let Some(text) = text {
                    out.add(&format!("{:<29}{label:<5}{text}", ""));
                }
            }
        }
        out.add("");
        let is_broken = |finding: &Finding| finding.severity == Severity::Broken;
        out.add(match findings.iter().any(is_broken) {
            true => "Capture and restore will not work here until this is fixed.",
            false => "Capture and restore work here.",
        });
        out.print()
    }

    /// Prints an error: what failed, its causes, what the server or CRIU said, what to try.
    pub fn error(&self, error: &Error) {
        let mut causes = Vec::new();
        let mut next = std::error::Error::source(error);
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        if self.json {
            let (hint, details) = (error.hint(), error.details());
            let details: Vec<_> = details.into_iter().flat_map(|(_, lines)| lines).collect();
            let object = json!({
                "message": error.to_string(),
                "causes": causes,
                "details": details,
                "hint": hint,
                "exit_code": error.exit_code() as u8,
            });
            eprintln!("{}", typed("error", object));
            return;
        }
        eprintln!("Error: {}", printable(&error.to_string()));
        if !causes.is_empty() {
            eprintln!("Caused by:");
            let causes = causes.iter().map(|cause| printable(cause));
            causes.for_each(|cause| eprintln!("    {cause}"));
        }
        for (title, lines) in error.details() {
            eprintln!("{title}:");
            lines.iter().for_each(|line| eprintln!("    {line}"));
        }
        if let Some(hint) = error.hint() {
            eprintln!("Hint: {}", printable(&hint));
        }
    }

    fn line(&self, kind: &str, object: Value) -> Result<(), Error> {
        print(format!("{}\n", typed(kind, object)).as_bytes())
    }
}

/// An object with its `type` and `schema`.
fn typed(kind: &str, mut object: Value) -> Value {
    object["type"] = kind.into();
    // What is stored as well has a version of its own.
    if object.get("schema").is_none() {
        object["schema"] = SCHEMA.into();
    }
    object
}

fn list(listeners: &[Listener]) -> String {
    match listeners {
        [] => "none".to_owned(),
        _ => listeners
            .iter()
            .map(Listener::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn plural(count: u64, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

/// Text that cannot command the terminal, whoever made the image or archive that it is from.
fn printable(text: &str) -> Cow<'_, str> {
    let is_command = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(is_command) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::new();
    for c in text.chars() {
        match is_command(c) {
            true => escaped.extend(c.escape_default()),
            false => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// Text to print at once.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, line: &str) {
        self.0.push_str(&printable(line.trim_end()));
        self.0.push('\n');
    }

    fn row(&mut self, label: &str, value: &str) {
        self.add(&format!("  {label:<12}  {value}"));
    }

    fn print(&self) -> Result<(), Error> {
        print(self.0.as_bytes())
    }
}

fn print(text: &[u8]) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        // As with any filter: whoever closed the pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Error::Output),
    }
}

/// What failed to be written there.
fn exported(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Export { path, source }
}

/// Writes a profile to where it was asked for.
fn put(text: &[u8], asked: &cli::Profile, file: Option<&mut File>) -> Result<(), Error> {
    match (file, &asked.output) {
        (Some(file), Some(path)) => file.write_all(text).map_err(exported(path)),
        _ => print(text),
    }
}

/// Prints rows in columns, the first row being the headings.
fn table<const N: usize>(rows: Vec<[String; N]>) -> Result<(), Error> {
    let mut out = Lines::default();
    columns(rows).lines().for_each(|line| out.add(line));
    out.print()
}

/// Rows in columns.
fn columns<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_does_not_command_the_terminal() {
        assert_eq!(printable("sh -c 'a\n\tb' é"), "sh -c 'a\n\tb' é");
        let hostile = "\u{1b}]0;x\u{7}\r\u{9b}2J";
        assert_eq!(printable(hostile), r"\u{1b}]0;x\u{7}\r\u{9b}2J");
    }
}
