//! The arguments of `warmimg profile`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};

use super::{Keys, seconds};
use crate::{
    listener::Wanted,
    profile::stacks::FREQUENCY,
    report::{Folded, Form},
    restore::MemoryMode,
    target::Target,
    watch::CapturePoint,
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Profile {
    #[command(subcommand)]
    pub command: Option<ProfileCommand>,
    /// Where the start-up ends
    #[arg(long, value_enum, default_value_t, value_name = "POINT")]
    pub at: CapturePoint,
    /// The listener that counts: PORT, ADDRESS:PORT, or the path of a Unix socket [default: any]
    #[arg(long, value_name = "LISTENER")]
    pub listener: Option<Wanted>,
    /// Go on to the first response to this: a URL, tcp://HOST:PORT, or unix:PATH
    #[arg(long)]
    pub url: Option<Target>,
    /// How long the server may take to get there, and to answer, in seconds
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Duration,
    /// How to show the profile [default: by the name of the file, else human]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Write it to this file instead of standard output; the name tells the format: .html, .pftrace,
    /// .folded, .json, or anything else for people
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How often the stack of each running thread is sampled, per second; 0 for not at all
    #[arg(short = 'F', long, value_name = "HZ", default_value_t = FREQUENCY)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub frequency: u32,
    /// Which stacks --format folded gives
    #[arg(long, value_enum, default_value_t, value_name = "WHICH")]
    pub stacks: Folded,
    /// Show what the end of the start-up waited for, step by step
    #[arg(long)]
    pub critical_path: bool,
    /// Start it as often; the run of median length is shown, json has all of them
    #[arg(long, value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Run the server as this user (name or number)
    #[arg(long)]
    pub user: Option<String>,
    /// Go on running the server
    #[arg(long, conflicts_with_all = ["runs", "restore", "wake"])]
    pub leave_running: bool,
    /// Instead of a command: restore this image, by its name or the beginning of its digest, and
    /// record until the first response, of its first listener if there is no --url [default: the newest]
    #[arg(long, value_name = "IMAGE", num_args = 0..=1, require_equals = true)]
    #[arg(conflicts_with_all = ["at", "listener", "user"])]
    pub restore: Option<Option<String>>,
    #[command(flatten)]
    pub keys: Keys,
    /// Instead of a command: show the phases of a wake of `warmimg serve`, by its id [default: the last]
    #[arg(long, value_name = "ID", num_args = 0..=1, require_equals = true)]
    #[arg(conflicts_with_all = ["at", "listener", "user", "restore", "runs", "url"])]
    pub wake: Option<Option<String>>,
    /// The site of the wake
    #[arg(long, requires = "wake")]
    pub site: Option<String>,
    /// How the memory of the image comes back, as of `warmimg restore`
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "HOW",
        requires = "restore"
    )]
    #[arg(hide_possible_values = true)]
    pub memory: MemoryMode,
    /// The server and its arguments
    #[arg(required_unless_present_any = ["restore", "wake"])]
    #[arg(conflicts_with_all = ["restore", "wake"])]
    #[arg(last = true, value_name = "COMMAND")]
    pub words: Vec<OsString>,
}

// What else to do with profiles.
#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// Show what has changed between two profiles, or two sets of them
    ///
    /// Profiles are files of `warmimg profile --format json`; with several runs in each (--runs), the
    /// noise is known, and only what is beyond it counts as changed.
    Diff(ProfileDiff),
}

#[derive(Debug, Args)]
pub struct ProfileDiff {
    /// The profile before
    pub before: PathBuf,
    /// The profile after
    pub after: PathBuf,
}

/// How a profile is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A screen for people
    Human,
    /// A page that stands by itself: time line, flame graphs, tables
    Html,
    /// A trace for the user interface of Perfetto
    Perfetto,
    /// Stacks as lines, for flamegraph.pl, inferno, speedscope; see --stacks
    Folded,
    /// JSON Lines, of all runs
    Json,
}

impl Format {
    /// As the report takes it.
    pub fn form(self, shows_path: bool, stacks: Folded) -> Form {
        match self {
            Self::Human => Form::Human { shows_path },
            Self::Html => Form::Html,
            Self::Perfetto => Form::Perfetto,
            Self::Folded => Form::Folded(stacks),
            Self::Json => Form::Json,
        }
    }

    /// The format that a file's name ends with.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("html" | "htm") => Self::Html,
            Some("json" | "jsonl" | "ndjson") => Self::Json,
            Some("pftrace" | "perfetto-trace" | "perfetto") => Self::Perfetto,
            Some("folded") => Self::Folded,
            _ => Self::Human,
        }
    }
}
