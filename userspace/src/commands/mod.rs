//! The commands: each takes its arguments, composes the stages, and reports.

mod archives;
mod auto;
mod bench;
mod capture;
mod checkpoint;
mod diff;
mod doctor;
mod documents;
mod encrypted;
mod images;
mod instances;
mod limit;
mod profile;
mod proxy;
mod recapture;
mod rehearse;
mod restore;
mod run;
mod serve;
mod subjects;
mod supervise;

use std::time::Instant;

use crate::{
    cli::{Cli, Command, Global},
    criu::Program,
    error::Error,
    host,
    report::Report,
    requirements,
    store::Store,
};

/// Runs a command; returns the exit code. `begun` is when the program began.
///
/// # Errors
/// See [`Error`].
pub async fn run(cli: &Cli, report: &Report, begun: Instant) -> Result<u8, Error> {
    let global = &cli.global;
    match &cli.command {
        Command::Capture(arguments) => capture::run(global, arguments, report).await,
        Command::Checkpoint(arguments) => checkpoint::run(global, arguments, report).await,
        Command::Recapture(arguments) => recapture::run(global, arguments, report).await,
        Command::Restore(arguments) => restore::run(global, arguments, report, begun).await,
        Command::Run(arguments) => run::run(global, arguments, report).await,
        Command::Serve(arguments) => serve::run(global, arguments, report).await,
        Command::Wake(arguments) => serve::wake(global, arguments, report).await,
        Command::Sleep(arguments) => serve::sleep(global, arguments, report).await,
        Command::Top(arguments) => serve::top(global, arguments, report).await,
        Command::Rehearse(arguments) => rehearse::run(global, arguments, report).await,
        Command::Ps => instances::ps(global, report),
        Command::Stop(arguments) => instances::stop(global, arguments, report).await,
        Command::Logs(arguments) => instances::logs(global, arguments).await,
        Command::Limit(arguments) => limit::run(global, arguments, report),
        Command::Images => images::images(global, report),
        Command::Inspect(arguments) => images::inspect(global, arguments, report),
        Command::Verify(arguments) => images::verify(global, arguments, report),
        Command::Open(arguments) => encrypted::open(global, arguments, report),
        Command::Close(arguments) => encrypted::close(global, arguments, report),
        Command::Export(arguments) => archives::export(global, arguments, report),
        Command::Import(arguments) => archives::import(global, arguments, report),
        Command::Diff(arguments) => diff::run(global, arguments, report),
        Command::Rm(arguments) => images::rm(global, arguments, report),
        Command::Prune(arguments) => images::prune(global, arguments, report),
        Command::Bench(arguments) => bench::run(global, arguments, report).await,
        Command::Profile(arguments) => profile::run(global, arguments, report).await,
        Command::Doctor => doctor::run(global, report).await,
        Command::Completions(arguments) => documents::completions(arguments),
        Command::Man(arguments) => documents::man(arguments),
        Command::SelfTestServer => doctor::serve(),
        Command::Proxy => proxy::run().await,
    }
}

fn open_store(global: &Global) -> Result<Store, Error> {
    Ok(Store::open(&global.store)?)
}

/// What every command that handles processes needs.
fn prepare(global: &Global) -> Result<(Store, Program), Error> {
    requirements::check(host::capabilities(), host::is_initial_pid_namespace())?;
    let criu = Program::find(global.criu.as_deref())?;
    Ok((open_store(global)?, criu))
}
