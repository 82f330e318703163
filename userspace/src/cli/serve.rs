//! The arguments of `serve`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::seconds;

/// What follows the help of `serve`.
pub const AFTER_HELP: &str = r#"The file has a table for each site:

  [site.shop]
  listen = "0.0.0.0:8080"  # PORT, ADDRESS:PORT, or the path of a Unix socket
  image = "shop"           # its image [default: the name of the site]
  listener = 3000          # the listener of the image that this is [default: the first]
  idle = "30s"             # without a connection for so long, it goes to sleep [default: 5m]
  grace = "10s"            # how long it may take to end after SIGTERM [default: 0s, not asked]
  memory = "auto"          # as with restore: auto, copy, map
  drain = "30s"            # how long a replaced instance may have connections [default: 30s]
  max-life = "1h"          # after so long, an instance is replaced by a new one [default: never]
  standby = 1              # instances that are kept restored and frozen while it sleeps [default: 0]
  max = 4                  # how many instances it may have [default: 1]
  recapture = true         # capture it again when its image is stale or fails [default: true]
  connections = 100        # from how many each on there is to be another one [default: any]
  cpus = 0.5               # how much of the processors an instance may use [default: all]
  busy-cpus = 2            # the same when there are as many as may be, and more connections
  memory-limit = "512M"    # how much memory an instance may use [default: all]

Sites behind one port need a proxy, which speaks HTTP/1.1, HTTP/2 and TLS:

  [proxy]
  listen = ["0.0.0.0:80"]
  listen-tls = ["0.0.0.0:443"]
  certificates = [{ certificate = "/etc/tls/shop.pem", key = "/etc/tls/shop.key" }]
  access-log = true        # a line of JSON for each request [default: false]
  timeout = "60s"          # how long a site may take to answer [default: 60s]

  [[proxy.route]]
  site = "shop"            # needs no listen then
  hosts = ["shop.example", "*.shop.example"]  # [default: any]
  path = "/"               # and all below it [default: /]
  health-path = "/healthz" # answered by the proxy, which wakes nobody
  health-peers = ["10.0.0.0/8"]  # whatever they ask is answered so
  pass-through = false     # TLS of these hosts is forwarded as it is

What it counts can be read by Prometheus:

  [metrics]
  listen = "127.0.0.1:9100"  # at /metrics; PORT, ADDRESS:PORT, or the path of a Unix socket

Sockets that a service manager passes (LISTEN_FDS) are taken by the name of the site, or by their address.
SIGTERM and SIGINT end the gateway and its instances, SIGUSR2 the gateway alone: another one takes over
its sockets and instances. SIGHUP has it read the configuration again."#;

#[derive(Debug, Args)]
pub struct Serve {
    /// The configuration
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/warmimg/serve.toml"
    )]
    pub config: PathBuf,
    /// Only check the configuration
    #[arg(long)]
    pub check: bool,
}

// A site of the gateway that serves from the store.
#[derive(Debug, Args)]
pub struct SiteName {
    /// Its name
    pub site: String,
}

#[derive(Debug, Args)]
pub struct Top {
    /// Print the table once
    #[arg(long)]
    pub once: bool,
    /// How often it is printed anew on a terminal, in seconds
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = seconds)]
    pub interval: Duration,
}
