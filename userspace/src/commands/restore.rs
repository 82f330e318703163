//! `warmimg restore`

use super::{
    prepare,
    supervise::{Signals, supervise},
};
use crate::{
    cli,
    criu::Program,
    error::Error,
    network::Network,
    report::Report,
    restore::{self, RestoreError, Restored},
    store::{Image, Store},
};

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Restore,
    report: &Report,
) -> Result<u8, Error> {
    if arguments.count > 1 && !arguments.reuse_port && arguments.net == Network::Host {
        return Err(Error::CountOnOnePort);
    }
    let (store, criu) = prepare(global)?;
    let image = store.find(arguments.image.as_deref())?;
    let options = restore::Options {
        detached: arguments.detach,
        memory: arguments.memory,
        publish: arguments.publish.clone(),
        reuse_port: arguments.reuse_port,
        network: arguments.net,
        after_restore: arguments.after_restore.clone(),
        variables: arguments.env.clone(),
        hook_limit: arguments.hook_timeout,
        group: arguments.group.request(),
    };
    let mut signals = Signals::catch()?;
    // Held until all are there: if one fails, the others end with it.
    let mut copies = Vec::new();
    for _ in 1..arguments.count {
        copies.push(bring_back(&store, &criu, &image, &options, &mut signals).await?);
    }
    let mut restored = bring_back(&store, &criu, &image, &options, &mut signals).await?;
    if arguments.detach {
        for copy in copies.into_iter().chain([restored]) {
            report.restored(&copy)?;
            copy.detach().await?;
        }
        return Ok(0);
    }
    report.restored(&restored)?;
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
    signals: &mut Signals,
) -> Result<Restored, Error> {
    tokio::select! {
        restored = restore::restore(store, criu, image, options) => Ok(restored?),
        () = signals.overdue() => Err(RestoreError::Interrupted.into()),
    }
}
