//! `warmimg images`, `inspect`, `verify` and `rm`

use std::collections::BTreeSet;

use super::open_store;
use crate::{
    cli,
    error::{Error, ExitCode},
    report::Report,
    store::Digest,
};

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

pub fn verify(global: &cli::Global, arguments: &cli::Verify, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    let digests = match (arguments.all, &arguments.image) {
        (true, _) => store.digests()?,
        // Also one that cannot be read is to be told of in full.
        (false, Some(wanted)) => vec![store.locate(wanted)?],
        (false, None) => vec![store.find(None)?.digest],
    };
    let mut code = ExitCode::Success;
    for digest in digests {
        let verification = store.verify(&digest)?;
        report.verified(&verification)?;
        if !verification.is_whole() {
            code = ExitCode::StoreUnusable;
        }
    }
    Ok(code as u8)
}

pub fn rm(global: &cli::Global, arguments: &cli::Rm, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    // All are found before any is removed.
    let found: Result<BTreeSet<Digest>, _> = arguments
        .images
        .iter()
        .map(|wanted| store.locate(wanted))
        .collect();
    for digest in found? {
        let names = store.remove(&digest)?;
        report.removed(&digest, &names)?;
    }
    Ok(0)
}
