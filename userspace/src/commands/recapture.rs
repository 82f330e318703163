//! `warmimg recapture`: an image of the same server, started anew.

use std::time::Duration;

use super::{encrypted::Workshop, prepare, rehearse, supervise::Signals};
use crate::{
    capture::{self, How, Options},
    cli,
    elsewhere::Elsewhere,
    error::Error,
    report::Report,
    spawn::Command,
    store::{Image, Recipe},
};

pub async fn run(
    global: &cli::Global,
    arguments: &cli::Recapture,
    report: &Report,
) -> Result<u8, Error> {
    let (store, criu) = prepare(global)?;
    let image = store.find(arguments.image.as_deref())?;
    let workshop = Workshop::new(&store, &arguments.encrypt)?;
    if store.encrypted(&image.digest)?.is_some() && !workshop.encrypts() {
        return Err(Error::WouldBePlain(image.label().to_owned()));
    }
    let options = options(&image, arguments.image.as_deref())?;
    let Some(_lock) = store.single_flight(&options.name)? else {
        return Err(Error::CapturedAlready(options.name));
    };
    let mut signals = Signals::catch()?;
    let progress = report.progress();
    let captured = capture::capture(workshop.store(), &criu, &options, signals.ended(), |step| {
        progress.show(&step);
    })
    .await;
    progress.clear();
    let new = captured.map_err(|error| workshop.explain(error))?.image;
    let asked = (&options.how.warmups[..], options.limit);
    let new = rehearse::after_warm(workshop.store(), &criu, new, asked, signals.ended()).await?;
    workshop.finish(&new, &options.name, report)?;
    report.captured(&new, &global.store)?;
    Ok(0)
}

/// How to capture the server of an image again, under the name that it was asked for by.
fn options(image: &Image, wanted: Option<&str>) -> Result<Options, Error> {
    let manifest = &image.manifest;
    let label = || image.label().to_owned();
    let recipe = manifest.recipe.as_ref();
    let recipe = recipe.ok_or_else(|| Error::NoRecipe(label()))?;
    let is_wanted = |name: &&String| Some(name.as_str()) == wanted;
    let name = image.names.iter().find(is_wanted).or(image.names.first());
    let command = &manifest.command;
    // Something may listen at its own places; what is captured is not to be asked by others in any case.
    let elsewhere = Elsewhere::of(&manifest.listeners, &command.working_directory);
    let elsewhere = elsewhere.map_err(Error::Runtime)?;
    let how = how(recipe, &manifest.after_restore).ok_or_else(|| Error::NoRecipe(label()))?;
    Ok(Options {
        command: Command::again(
            &command.words,
            &command.environment,
            &command.working_directory,
            command.user.as_deref(),
        )?,
        point: manifest.capture.point,
        limit: Duration::from_millis(recipe.limit_ms),
        name: name.cloned().ok_or_else(|| Error::Unnamed(label()))?,
        how: how.elsewhere(&elsewhere),
        leave_running: false,
        profiled: None,
        elsewhere,
    })
}

/// What a recipe says; nothing if it cannot be read.
fn how(recipe: &Recipe, after_restore: &[String]) -> Option<How> {
    fn parsed<T: std::str::FromStr>(texts: &[String]) -> Option<Vec<T>> {
        texts.iter().map(|text| text.parse().ok()).collect()
    }
    let listener = recipe.listener.as_ref().map(|text| text.parse());
    Some(How {
        listener: listener.transpose().ok()?,
        warmups: parsed(&recipe.warmups)?,
        before_freeze: parsed(&recipe.before_freeze)?,
        after_restore: parsed(after_restore)?,
        hook_limit: Duration::from_millis(recipe.hook_limit_ms),
        outbound: recipe.outbound,
    })
}
