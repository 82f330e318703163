//! `warmimg restore`

use std::time::Instant;

use super::{
    prepare,
    supervise::{Signals, supervise},
};
use crate::{
    cli, client,
    criu::Program,
    error::Error,
    network::Network,
    report::{FirstByte, NoByte, Report},
    restore::{self, RestoreError, Restored},
    store::{Image, Store},
    target::Target,
};

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Restore,
    report: &Report,
    begun: Instant,
) -> Result<u8, Error> {
    if arguments.count > 1 && !arguments.reuse_port && arguments.net == Network::Host {
        return Err(Error::CountOnOnePort);
    }
    let (store, criu) = prepare(global)?;
    let image = store.find(arguments.image.as_deref())?;
    let is_timed = arguments.timings || arguments.timings_file.is_some();
    let mut options = restore::Options {
        detached: arguments.detach,
        memory: arguments.memory,
        publish: arguments.publish.clone(),
        reuse_port: arguments.reuse_port,
        network: arguments.net,
        after_restore: arguments.after_restore.clone(),
        variables: arguments.env.clone(),
        hook_limit: arguments.hook_timeout,
        group: arguments.group.request(),
        timed_since: is_timed.then_some(begun),
    };
    let mut signals = Signals::catch()?;
    // Held until all are there: if one fails, the others end with it.
    let mut copies = Vec::new();
    for _ in 1..arguments.count {
        copies.push(bring_back(&store, &criu, &image, &options, arguments, &mut signals).await?);
        options.timed_since = is_timed.then(Instant::now);
    }
    let (mut restored, first_byte) =
        bring_back(&store, &criu, &image, &options, arguments, &mut signals).await?;
    if arguments.detach {
        for (copy, first_byte) in copies.into_iter().chain([(restored, first_byte)]) {
            report.restored(&copy, first_byte.as_ref())?;
            copy.detach().await?;
        }
        return Ok(0);
    }
    report.restored(&restored, first_byte.as_ref())?;
    if let Some(path) = &arguments.timings_file
        && let Err(error) = restored.timings.parts.store(path, begun)
    {
        tracing::warn!("cannot write {}: {error}", path.display());
    }
    let code = supervise(
        &mut restored.sandbox,
        restored.output.as_mut(),
        &mut signals,
    )
    .await?;
    Ok(code)
}

async fn bring_back(
    store: &Store,
    criu: &Program,
    image: &Image,
    options: &restore::Options,
    arguments: &cli::Restore,
    signals: &mut Signals,
) -> Result<(Restored, Option<FirstByte>), Error> {
    let timed = async {
        let restored = restore::restore(store, criu, image, options).await?;
        let first_byte = match (arguments.timings, options.timed_since) {
            (true, Some(since)) => Some(first_byte(&restored, image, since).await),
            _ => None,
        };
        Ok((restored, first_byte))
    };
    tokio::select! {
        restored = timed => restored,
        () = signals.overdue() => Err(RestoreError::Interrupted.into()),
    }
}

/// Asks a restored server once.
async fn first_byte(restored: &Restored, image: &Image, since: Instant) -> FirstByte {
    if restored.record.reuse_port {
        return Err(NoByte::SharedPort);
    }
    let listener = restored.record.listeners.first();
    let listener = listener.ok_or(NoByte::NoListener)?;
    let target = Target::of_listener(listener, &image.manifest.command.working_directory);
    Ok(client::first_byte(&target).await? - since)
}
