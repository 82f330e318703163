//! The arguments of `serve`.

use std::path::PathBuf;

use clap::Args;

/// What follows the help of `serve`.
pub const AFTER_HELP: &str = "\
The file has a table for each site:

  [site.shop]
  listen = \"0.0.0.0:8080\"  # PORT, ADDRESS:PORT, or the path of a Unix socket
  image = \"shop\"           # its image [default: the name of the site]
  listener = 3000          # the listener of the image that this is [default: the first]
  idle = \"30s\"             # without a connection for so long, it goes to sleep [default: 5m]
  grace = \"10s\"            # how long it may take to end after SIGTERM [default: 0s, not asked]
  memory = \"auto\"          # as with restore: auto, copy, map

SIGTERM and SIGINT end the gateway and its instances.";

#[derive(Debug, Args)]
pub struct Serve {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = "/etc/warmimg/serve.toml")]
    pub config: PathBuf,
    /// Only check the configuration
    #[arg(long)]
    pub check: bool,
}
