//! Parses the command line, runs the command, prints its result, and exits with its code.

use std::{process::ExitCode, time::Instant};

use clap::Parser as _;
use tracing_subscriber::EnvFilter;
use warmimg::{cli::Cli, commands, error::Error, report::Report};

fn main() -> ExitCode {
    let begun = Instant::now();
    let cli = Cli::parse();
    let default = match cli.global.verbose {
        0 => "warn",
        1 => "warmimg=info,probe=debug,warn",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("WARMIMG_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();

    let report = Report::new(cli.global.json);
    // One thread: init is a fork of this process, which must hold no lock of another thread.
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)
        .and_then(|runtime| {
            let outcome = runtime.block_on(commands::run(&cli, &report, begun));
            // A read from a terminal or a full pipe must not hold up the end.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report.error(&error);
            ExitCode::from(error.exit_code() as u8)
        }
    }
}
