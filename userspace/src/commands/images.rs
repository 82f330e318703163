//! `warmimg images`, `inspect` and `rm`

use super::open_store;
use crate::{cli, error::Error, report::Report};

pub fn images(global: &cli::Global, report: &Report) -> Result<u8, Error> {
    report.images(&open_store(global)?.list()?)?;
    Ok(0)
}

pub fn inspect(
    global: &cli::Global,
    arguments: &cli::Inspect,
    report: &Report,
) -> Result<u8, Error> {
    report.inspected(&open_store(global)?.find(arguments.image.as_deref())?)?;
    Ok(0)
}

pub fn rm(global: &cli::Global, arguments: &cli::Rm, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    // All are found before any is removed.
    let found: Result<Vec<_>, _> = arguments
        .images
        .iter()
        .map(|wanted| store.find(Some(wanted)))
        .collect();
    let mut images = found?;
    images.sort_by(|a, b| a.digest.cmp(&b.digest));
    images.dedup_by(|a, b| a.digest == b.digest);
    for image in &images {
        store.remove(image)?;
        report.removed(image)?;
    }
    Ok(0)
}
