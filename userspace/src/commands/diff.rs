//! `warmimg diff`

use super::{encrypted::find, open_store};
use crate::{
    cli, diff, edit,
    error::Error,
    report::Report,
    store::{Image, StoreError},
};

pub fn run(global: &cli::Global, arguments: &cli::Diff, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    let find = |wanted: &str| find(&store, Some(wanted), || arguments.keys.read(), report);
    let (before, after) = (find(&arguments.before)?, find(&arguments.after)?);
    let _held = (before.hold()?, after.hold()?);
    let pages = |image: &Image| {
        image.check()?;
        Ok::<_, StoreError>(edit::pages(&image.criu_folder())?)
    };
    let (in_before, in_after) = (pages(&before)?, pages(&after)?);
    let diff = diff::compare((&before.manifest, &in_before), (&after.manifest, &in_after));
    report.differing(&before, &after, &diff)?;
    Ok(0)
}
