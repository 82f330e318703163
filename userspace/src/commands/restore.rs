//! `warmimg restore`

use std::{mem, time::Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    encrypted::find,
    prepare,
    supervise::{Signals, supervise},
};
use crate::{
    cli, client,
    criu::Program,
    error::Error,
    fit::{Allowed, Finding},
    network::Network,
    report::{FirstByte, NoByte, Report},
    restore::{self, RestoreError, Restored},
    store::{Image, Store},
    target::Target,
};

/// How many copies are restored at the same time.
const AT_ONCE: usize = 8;

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
    let wanted = arguments.image.as_deref();
    let image = find(&store, wanted, || arguments.keys.read(), report)?;
    let is_timed = arguments.timings || arguments.timings_file.is_some();
    let options = restore::Options {
        detached: arguments.detach,
        memory: arguments.back.memory,
        publish: arguments.publish.clone(),
        reuse_port: arguments.reuse_port,
        network: arguments.net,
        after_restore: arguments.after_restore.clone(),
        variables: arguments.env.clone(),
        hook_limit: arguments.hook_timeout,
        group: arguments.group.request(),
        allowed: arguments.back.allowed(),
        strict: arguments.strict,
        ..restore::Options::default()
    };
    let mut signals = Signals::catch()?;
    let bring_back = async |number: u32| {
        let since = if number == 0 { begun } else { Instant::now() };
        let options = restore::Options {
            timed_since: is_timed.then_some(since),
            ..options.clone()
        };
        let restored = restore::restore(&store, &criu, &image, &options).await?;
        let first_byte = match arguments.timings {
            true => Some(first_byte(&restored, &image, since).await),
            false => None,
        };
        Ok::<_, Error>((restored, first_byte))
    };
    // If one fails, the others end with it.
    let copies = stream::iter((0..arguments.count).map(bring_back))
        .buffer_unordered(if is_timed { 1 } else { AT_ONCE })
        .try_collect::<Vec<_>>();
    let mut copies = tokio::select! {
        copies = copies => copies?,
        () = signals.overdue() => return Err(RestoreError::Interrupted.into()),
    };
    // None of the servers waits for this.
    let mut stale = match arguments.strict {
        true => vec![],
        false => stale(&store, &criu, &image, &options.allowed),
    };
    if arguments.detach {
        copies.sort_by_key(|(copy, _)| copy.record.started_ms);
        for (copy, first_byte) in copies {
            // Told once of all copies.
            report.restored(&copy, &mem::take(&mut stale), first_byte.as_ref())?;
            copy.detach().await?;
        }
        return Ok(0);
    }
    let Some((mut restored, first_byte)) = copies.pop() else {
        return Ok(0);
    };
    report.restored(&restored, &stale, first_byte.as_ref())?;
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

/// What a server that is back may go on with. It goes on whatever becomes of this.
fn stale(store: &Store, criu: &Program, image: &Image, allowed: &Allowed) -> Vec<Finding> {
    restore::stale(store, criu, image, allowed).unwrap_or_else(|error| {
        tracing::warn!("whether the image is stale is not known: {error}");
        vec![]
    })
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
