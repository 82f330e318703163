//! The arguments of `restore`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{Group, Keys, seconds};
use crate::{
    fit::{Allow, Allowed},
    hook::{Hook, Variable},
    listener::Publish,
    network::Network,
    restore::MemoryMode,
};

// How an image comes back.
#[derive(Debug, Args)]
pub struct Back {
    /// How its memory comes back: mapped from the image, and shared with all copies until it is
    /// written to; copied; or auto, mapped where it can be
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "HOW",
        hide_possible_values = true
    )]
    pub memory: MemoryMode,
    /// Restore it although these findings of `verify` are told of it, and do not warn of them; all
    /// stands for all that can be allowed
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    pub allow: Vec<Allow>,
}

impl Back {
    pub fn allowed(&self) -> Allowed {
        self.allow.iter().copied().collect()
    }
}

#[derive(Debug, Args)]
pub struct Restore {
    /// Name of the image, or the beginning of its digest [default: the newest]
    pub image: Option<String>,
    /// Return when the server is back, and let it run in the background
    #[arg(short, long)]
    pub detach: bool,
    /// Let a listener of the image be elsewhere, each a port, ADDRESS:PORT, or the path of a Unix
    /// socket; can be given several times
    #[arg(short, long, value_name = "NEW:OLD")]
    pub publish: Vec<Publish>,
    /// Share the TCP ports with other copies: the kernel spreads connections among them
    #[arg(long)]
    pub reuse_port: bool,
    #[command(flatten)]
    pub back: Back,
    #[command(flatten)]
    pub keys: Keys,
    /// The network of the server: that of the host, or a private one of its own, with an address
    /// that the host reaches it at; what listened on the loopback listens on all addresses there
    #[arg(long, value_enum, default_value_t, value_name = "NETWORK")]
    #[arg(hide_possible_values = true)]
    pub net: Network,
    /// Do this after the restore, besides what the image says: a command, signal:NAME for the root
    /// of the tree, or get:URL|PATH or post:URL|PATH for the server itself; can be given several
    /// times
    #[arg(long, value_name = "HOOK")]
    pub after_restore: Vec<Hook>,
    /// How long each hook may take, in seconds
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    pub hook_timeout: Duration,
    /// Give hooks a variable: commands in their environment, requests in a header `Warmimg-Env`
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<Variable>,
    /// How many copies to bring up, with --detach, and --reuse-port or --net private
    #[arg(long, value_name = "N", default_value = "1", requires = "detach")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,
    /// Refuse an image that may be stale, instead of a warning
    #[arg(long)]
    pub strict: bool,
    #[command(flatten)]
    pub group: Group,
    /// Tell where the time went, from the start of warmimg to the first byte of an answer: the
    /// first listener is sent a `GET /`
    #[arg(long)]
    pub timings: bool,
    /// For `bench`: leave in this file where the time went
    #[arg(long, value_name = "FILE", hide = true, conflicts_with = "detach")]
    pub timings_file: Option<PathBuf>,
}
