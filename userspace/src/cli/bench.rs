//! The command line of `warmimg bench`.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::Args;

use super::{How, Keys, seconds};
use crate::{target::Target, watch::CapturePoint};

pub(super) const AFTER_HELP: &str = "\
Examples:
  warmimg bench -- node app.js
  warmimg bench --at ready,listen --export-html start.html -- gunicorn app:app
  warmimg bench --against main.json --max-regression 10% --min-speedup 5x -- node app.js

Exits with 115 if --against or --min-speedup is not met.";

#[derive(Debug, Args)]
pub struct Bench {
    /// What to ask: http://HOST[:PORT][/PATH], unix:SOCKET[:/PATH] for HTTP over a Unix socket,
    /// or tcp://HOST:PORT for another protocol [default: the first listener of the server]
    #[arg(long)]
    pub url: Option<Target>,
    /// What to send to tcp://, with \r, \n, \t, \0, \\ and \xHH for bytes
    #[arg(long, value_name = "TEXT", requires = "url")]
    pub send: Option<String>,
    /// The status that every response must have [default: any from 200 to 399]
    #[arg(long, value_name = "CODE", value_parser = clap::value_parser!(u16).range(100..600))]
    pub status: Option<u16>,
    /// How many requests each run makes, one after the other
    #[arg(long, value_name = "N", default_value = "10")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests: u32,
    /// How many runs of each are measured
    #[arg(short = 'n', long, value_name = "N", default_value = "10")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub runs: u32,
    /// How many runs of each come before those, and are not counted
    #[arg(long, value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub warmup_runs: u32,
    /// Drop the page cache of the whole machine before each run; what running programs have
    /// mapped, warmimg itself for one, stays
    #[arg(long)]
    pub drop_caches: bool,
    /// When to freeze the server; several points are compared
    #[arg(long, value_enum, value_name = "POINT", value_delimiter = ',')]
    #[arg(default_values_t = [CapturePoint::Ready], conflicts_with = "image")]
    pub at: Vec<CapturePoint>,
    #[command(flatten)]
    pub how: How,
    /// Restore this image instead of capturing one; its command is the cold start
    #[arg(long, conflicts_with_all = ["user", "words", "listener", "warmup", "tcp_close"])]
    #[arg(conflicts_with_all = ["before_freeze", "after_restore", "tcp_established"])]
    pub image: Option<String>,
    #[command(flatten)]
    pub keys: Keys,
    /// Measure this as well: `criu` for a plain `criu restore` of the same image, or a command
    /// that starts the server and stays in the foreground
    #[arg(long, value_name = "criu|COMMAND")]
    pub baseline: Vec<String>,
    /// How long the server may take until its last response, in seconds
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Duration,
    /// Run the server as this user (name or number)
    #[arg(long)]
    pub user: Option<String>,
    /// Compare with stored results (of --export-json), by the ratio of restored to cold
    #[arg(long, value_name = "FILE", help_heading = "Gate")]
    pub against: Option<PathBuf>,
    /// How much slower than those a restore may be
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = percent)]
    #[arg(requires = "against", help_heading = "Gate")]
    pub max_regression: f64,
    /// How many times faster than cold the first response of a restore must be
    #[arg(long, value_name = "FACTOR", value_parser = factor, help_heading = "Gate")]
    pub min_speedup: Option<f64>,
    /// Write the results with every sample
    #[arg(long, value_name = "FILE", help_heading = "Export")]
    pub export_json: Option<PathBuf>,
    /// Write tables in Markdown
    #[arg(long, value_name = "FILE", help_heading = "Export")]
    pub export_markdown: Option<PathBuf>,
    /// Write a bar chart
    #[arg(long, value_name = "FILE", help_heading = "Export")]
    pub export_svg: Option<PathBuf>,
    /// Write a page with chart and tables
    #[arg(long, value_name = "FILE", help_heading = "Export")]
    pub export_html: Option<PathBuf>,
    /// The server and its arguments
    #[arg(required_unless_present = "image", last = true, value_name = "COMMAND")]
    pub words: Vec<OsString>,
}

/// A share, written as a percentage: 0.1 for `10%` or `10`.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
    match number {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number / 100.0),
        _ => Err("not a percentage, as 10%".to_owned()),
    }
}

/// A factor: 5 for `5x` or `5`.
fn factor(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('x').unwrap_or(text).trim().parse::<f64>();
    match number {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("not a factor, as 5x".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_factors_have_their_signs() {
        assert_eq!((percent("10%"), percent("2.5")), (Ok(0.1), Ok(0.025)));
        assert_eq!((factor("5x"), factor("1.5")), (Ok(5.0), Ok(1.5)));
        assert!(percent("ten").is_err() && percent("-1%").is_err());
        assert!(factor("0x").is_err() && factor("x").is_err());
    }
}
