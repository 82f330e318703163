//! The arguments of the commands that look after instances.

use std::time::Duration;

use clap::Args;

use super::seconds;

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
