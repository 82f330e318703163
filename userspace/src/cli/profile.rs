//! The arguments of `warmimg profile`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::seconds;
use crate::{listener::Wanted, target::Target, watch::CapturePoint};

#[derive(Debug, Args)]
pub struct Profile {
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
    /// How to show the profile
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// Write it to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Show what the end of the start-up waited for, step by step
    #[arg(long)]
    pub critical_path: bool,
    /// Run the server as this user (name or number)
    #[arg(long)]
    pub user: Option<String>,
    /// Go on running the server
    #[arg(long)]
    pub leave_running: bool,
    /// The server and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub words: Vec<OsString>,
}

/// How a profile is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A screen for people
    #[default]
    Human,
}
