//! The command line.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::watch::CapturePoint;

/// The store of root, unless another is named.
pub const DEFAULT_STORE: &str = "/var/lib/warmimg";

/// The variable that names another.
pub const STORE_VARIABLE: &str = "WARMIMG_STORE";

/// Makes a slow-starting server start as if it had never stopped
///
/// Runs an unmodified server, watches its start-up with eBPF, freezes it the moment it waits for
/// its first connection, and makes an image of it with CRIU that is restored in milliseconds, as
/// often as wanted.
#[derive(Debug, Parser)]
#[command(
    name = "warmimg",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
pub struct Global {
    /// Folder of images and instances
    #[arg(long, global = true, env = STORE_VARIABLE, value_name = "FOLDER")]
    #[arg(default_value = DEFAULT_STORE)]
    pub store: PathBuf,
    /// CRIU to use instead of the one that is found
    #[arg(long, global = true, env = "WARMIMG_CRIU", value_name = "FILE")]
    pub criu: Option<PathBuf>,
    /// Print results as JSON Lines, each with its `type` and `schema`
    #[arg(long, global = true)]
    pub json: bool,
    /// Tell what goes on, the probe's own messages too; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a server and make an image of it when it is ready
    Capture(Capture),
    /// Bring a server back from its image
    ///
    /// In the foreground, the server's output streams, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1
    /// and SIGUSR2 reach it, and its exit status becomes that of warmimg.
    Restore(Restore),
    /// List instances
    Ps,
    /// Stop instances, and remove what ended ones left
    Stop(Stop),
    /// Print what a detached instance wrote
    Logs(Logs),
    /// List images, newest first
    Images,
    /// Show what an image holds
    Inspect(Inspect),
    /// Remove images
    Rm(Rm),
    /// Check whether capture and restore work on this host, and tell what to do if not
    Doctor,
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print the manual page in roff format
    Man(Man),
    /// A server that does nothing but answer, for the self-test of `doctor`
    #[command(name = "self-test-server", hide = true)]
    SelfTestServer,
}

#[derive(Debug, Args)]
pub struct Capture {
    /// Name of the image [default: the command's]
    #[arg(long)]
    pub name: Option<String>,
    /// When to freeze the server
    #[arg(long, value_enum, default_value_t, value_name = "POINT")]
    pub at: CapturePoint,
    /// How long the server may take to get there, in seconds
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Duration,
    /// Run the server as this user (name or number)
    #[arg(long)]
    pub user: Option<String>,
    /// Go on running the server once its image is made
    #[arg(long)]
    pub leave_running: bool,
    /// The server and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// Name of the image, or the beginning of its digest [default: the newest]
    pub image: Option<String>,
    /// Return when the server is back, and let it run in the background
    #[arg(short, long)]
    pub detach: bool,
}

#[derive(Debug, Args)]
pub struct Stop {
    /// Instances to stop
    #[arg(required_unless_present = "all")]
    pub instances: Vec<String>,
    /// Stop all
    #[arg(long, conflicts_with = "instances")]
    pub all: bool,
    /// How long the server may take to end before it is killed, in seconds
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// The instance
    pub instance: String,
    /// Go on printing what is added, until the instance ends
    #[arg(short, long)]
    pub follow: bool,
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// Name of the image, or the beginning of its digest [default: the newest]
    pub image: Option<String>,
}

#[derive(Debug, Args)]
pub struct Rm {
    /// Names of images, or the beginnings of their digests
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct Man {
    /// The page of this command instead of the main one
    pub command: Option<String>,
}

/// A positive number of seconds, with a fraction if wanted.
fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(number) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn seconds_are_positive() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for bad in ["0", "-1", "x", "inf", "nan"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
