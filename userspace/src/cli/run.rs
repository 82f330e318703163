//! The arguments of `warmimg run`.

use std::{ffi::OsString, time::Duration};

use clap::Args;

use super::{Back, Encrypt, How, Identities, seconds};
use crate::watch::CapturePoint;

/// What follows the help of `run`.
pub const AFTER_HELP: &str = "\
Why a server was started cold, by the codes that --json prints as `reason`:
  no-image          no image is called so
  other-command     the image is of another command, folder, user or environment
  other-point       the image was captured at another point than --at
  damaged           the image cannot be read, or its files have been replaced
  stale             what it was captured from has changed
  unfit             it does not fit this host
  quarantined       it has failed twice: another is captured
  closed            the image is encrypted, and cannot be opened
  restore-failed    the restore failed
  crashed           the restored server was killed by a fault of its own within 10 s
  unable            warmimg cannot work here; the command takes its place

In a systemd unit of Type=notify, READY=1 is sent when the server listens.";

#[derive(Debug, Args)]
pub struct Run {
    /// Name of the image [default: the command's]
    #[arg(long)]
    pub name: Option<String>,
    /// When to freeze the server for an image, and at which point the image has to be captured
    /// [default: any, ready for a new one]
    #[arg(long, value_enum, value_name = "POINT", hide_possible_values = true)]
    pub at: Option<CapturePoint>,
    /// Make no image: restore the one that is there, or start cold
    #[arg(long)]
    pub no_capture: bool,
    /// How long the server may take to the capture point, in seconds; it runs on if it takes longer
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Duration,
    #[command(flatten)]
    pub how: How,
    /// Run the server as this user (name or number)
    #[arg(long)]
    pub user: Option<String>,
    #[command(flatten)]
    pub back: Back,
    #[command(flatten)]
    pub encrypt: Encrypt,
    #[command(flatten)]
    pub identities: Identities,
    /// The server and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub words: Vec<OsString>,
}
