//! `warmimg images`, `inspect`, `verify` and `rm`

use std::collections::BTreeSet;

use super::open_store;
use crate::{
    cli,
    criu::{Program, ProgramError},
    error::{Error, ExitCode},
    fit::{Check, Depth, Finding, Here, Severity},
    report::Report,
    restore::RestoreError,
    store::{Digest, Image, Store, Verification},
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
    let criu = match Program::find(global.criu.as_deref()) {
        Ok(criu) => criu.version().ok(),
        Err(ProgramError::Missing) => None,
        Err(error) => return Err(error.into()),
    };
    let here = Here::read(criu).map_err(RestoreError::Host)?;
    let mut worst = Verdict::Good;
    for digest in digests {
        let verification = store.verify(&digest)?;
        let (findings, unrecorded) = match store.load(digest) {
            Ok(image) => compare(&store, &image, &here)?,
            // Its manifest is among what is damaged.
            Err(_) => (vec![], None),
        };
        worst = worst.max(Verdict::of(&verification, &findings));
        report.verified(&verification, &findings, unrecorded)?;
    }
    Ok(worst.code() as u8)
}

/// What an image is, from good to bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Good,
    Stale,
    Unfit,
    Damaged,
}

impl Verdict {
    fn of(verification: &Verification, findings: &[Finding]) -> Self {
        let has = |severity| {
            findings
                .iter()
                .any(|finding| finding.code.severity() == severity)
        };
        match verification.is_whole() {
            false => Self::Damaged,
            true if has(Severity::Breaks) => Self::Unfit,
            true if has(Severity::Stale) => Self::Stale,
            true => Self::Good,
        }
    }

    fn code(self) -> ExitCode {
        match self {
            Self::Good => ExitCode::Success,
            Self::Stale => ExitCode::Stale,
            Self::Unfit => ExitCode::Unfit,
            Self::Damaged => ExitCode::StoreUnusable,
        }
    }
}

/// All that is not as it was at the capture, and how many files that were read could not be recorded;
/// none if the record cannot be read, or there is none.
fn compare(
    store: &Store,
    image: &Image,
    here: &Here,
) -> Result<(Vec<Finding>, Option<u64>), Error> {
    let mut check = Check::new(image, here, Depth::Content);
    let mut findings = check.breaking();
    let Ok(read) = image.read_files() else {
        return Ok((findings, None));
    };
    findings.extend(check.stale()?);
    check.remember(store)?;
    Ok((findings, read.map(|read| read.unrecorded)))
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
