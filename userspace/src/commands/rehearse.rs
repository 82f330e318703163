//! `warmimg rehearse`: finds out what a restored server needs first, and makes an image of it that
//! brings that along.

use std::time::Duration;

use super::{prepare, supervise::Signals};
use crate::{
    capture::CaptureError,
    cli,
    criu::Program,
    elsewhere::Elsewhere,
    error::Error,
    listener::{Publish, Wanted},
    report::Report,
    restore::{self, MemoryMode, RestoreError},
    store::{Image, Store},
    target::Target,
    warmup::Warmup,
    watch::CapturePoint,
    working_set,
};

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Rehearse,
    report: &Report,
) -> Result<u8, Error> {
    let (store, criu) = prepare(global)?;
    let image = store.find(arguments.image.as_deref())?;
    if store.encrypted(&image.digest)?.is_some() {
        return Err(Error::RehearsalEncrypted);
    }
    let mut signals = Signals::catch()?;
    let rehearsal = rehearse(&store, &criu, &image, &arguments.warmup, arguments.timeout);
    let image = tokio::select! {
        image = rehearsal => image?,
        () = signals.ended() => return Err(RestoreError::Interrupted.into()),
    };
    report.rehearsed(&image)?;
    Ok(0)
}

/// Rehearses an image that was captured warm. It is as good as before if that fails.
///
/// # Errors
/// [`RestoreError::Interrupted`].
pub async fn after_warm(
    store: &Store,
    criu: &Program,
    image: Image,
    (warmups, limit): (&[Warmup], Duration),
    interrupted: impl Future<Output = ()>,
) -> Result<Image, Error> {
    // Hooks may tell others of a copy, which this one is not for.
    let can_be = image.manifest.capture.point == CapturePoint::Warm
        && image.manifest.connections.is_empty()
        && image.manifest.after_restore.is_empty()
        && warmups.iter().all(Warmup::is_path)
        && image
            .manifest
            .mapped
            .as_ref()
            .is_some_and(|mapped| mapped.bytes > 0);
    if !can_be {
        return Ok(image);
    }
    let rehearsed = tokio::select! {
        rehearsed = rehearse(store, criu, &image, warmups, limit) => rehearsed,
        () = interrupted => return Err(RestoreError::Interrupted.into()),
    };
    Ok(rehearsed.unwrap_or_else(|error| {
        let error = crate::doctor::chain(&error);
        tracing::warn!("the image could not be rehearsed, and is as it was: {error}");
        image
    }))
}

/// Restores an image at other places than it is to be at, asks it, and puts an image in its place
/// that knows what was touched.
async fn rehearse(
    store: &Store,
    criu: &Program,
    image: &Image,
    warmups: &[Warmup],
    limit: Duration,
) -> Result<Image, Error> {
    // It would not be this copy that is asked.
    if let Some(warmup) = warmups.iter().find(|warmup| !warmup.is_path()) {
        let target = warmup.target(&Target::of_listener(
            image
                .manifest
                .listeners
                .first()
                .ok_or(Error::NothingToRehearse)?,
            &image.manifest.command.working_directory,
        ));
        return Err(Error::RehearsalElsewhere(target.to_string()));
    }
    if !image.manifest.connections.is_empty() {
        return Err(Error::RehearsalConnected);
    }
    let listeners = &image.manifest.listeners;
    // Made before the server, and so dropped after it.
    let elsewhere = Elsewhere::of(listeners, &image.manifest.command.working_directory);
    let elsewhere = elsewhere.map_err(Error::Runtime)?;
    let publish = elsewhere.places().iter().map(|(old, new)| Publish {
        new: Wanted::Exactly(new.clone()),
        old: Wanted::Exactly(old.clone()),
    });
    let options = restore::Options {
        memory: MemoryMode::Map,
        // What it writes is nobody's concern, and goes with it.
        detached: true,
        publish: publish.collect(),
        hook_limit: limit,
        ..restore::Options::default()
    };
    let restored = restore::restore(store, criu, image, &options).await?;
    let listener = restored.record.listeners.first();
    let listener = listener.ok_or(Error::NothingToRehearse)?;
    let server = Target::of_listener(listener, &image.manifest.command.working_directory);
    let once = Warmup::default();
    let warmups = match warmups {
        [] => std::slice::from_ref(&once),
        warmups => warmups,
    };
    for warmup in warmups {
        let asked = warmup.once().run(&server, limit).await;
        asked.map_err(CaptureError::from)?;
    }
    let folder = std::path::absolute(image.criu_folder()).map_err(Error::Runtime)?;
    let touched = working_set::observe(restored.record.init, &folder).map_err(Error::Runtime)?;
    drop(restored);
    Ok(store.replace(image, &touched)?)
}
