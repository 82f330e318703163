//! `warmimg images`, `inspect`, `verify`, `rm` and `prune`

use std::collections::BTreeSet;

use super::{encrypted::find, open_store};
use crate::{
    cli,
    criu::{Program, ProgramError},
    encryption::EncryptionError,
    error::{Error, ExitCode},
    fit::{Check, Depth, Finding, Here, Severity},
    instance::{self, State},
    report::Report,
    restore::RestoreError,
    store::{Claim, Digest, Image, Store, Stored, Verification, now_ms},
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
    let (store, wanted) = (open_store(global)?, arguments.image.as_deref());
    report.inspected(&find(&store, wanted, || arguments.keys.read(), report)?)?;
    Ok(0)
}

pub fn verify(global: &cli::Global, arguments: &cli::Verify, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    let digests = match (arguments.all, &arguments.image) {
        (true, _) => store.digests()?,
        // Also one that cannot be read is to be told of in full.
        (false, Some(wanted)) => vec![store.locate(wanted)?],
        (false, None) => vec![store.pick(None)?.digest().clone()],
    };
    if arguments.keys.are_given() {
        open(&store, &digests, arguments, report)?;
    }
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
            Ok(image) => compare(&image, &here)?,
            // Its manifest is among what is damaged.
            Err(_) => (vec![], None),
        };
        worst = worst.max(Verdict::of(&verification, &findings));
        report.verified(&verification, &findings, unrecorded)?;
    }
    Ok(worst.code() as u8)
}

/// Opens those of the images that these keys open; the others are verified closed.
fn open(
    store: &Store,
    digests: &[Digest],
    arguments: &cli::Verify,
    report: &Report,
) -> Result<(), Error> {
    for digest in digests {
        let read = || arguments.keys.read();
        match find(store, Some(digest.as_str()), read, report) {
            Err(Error::Encryption(EncryptionError::NoKey { .. })) if arguments.all => {}
            Err(Error::Encryption(EncryptionError::WrongKey { .. })) if arguments.all => {}
            Err(Error::Encryption(EncryptionError::Damaged { .. }) | Error::Store(_)) | Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
fn compare(image: &Image, here: &Here) -> Result<(Vec<Finding>, Option<u64>), Error> {
    let mut check = Check::new(image, here, Depth::Content);
    let mut findings = check.breaking();
    let Ok(read) = image.read_files() else {
        return Ok((findings, None));
    };
    findings.extend(check.stale()?);
    check.remember()?;
    Ok((findings, read.map(|read| read.unrecorded)))
}

pub fn rm(global: &cli::Global, arguments: &cli::Rm, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    // All are found, and found to be unused, before any is removed.
    let found: Result<BTreeSet<Digest>, _> = arguments
        .images
        .iter()
        .map(|wanted| store.locate(wanted))
        .collect();
    let found = found?;
    let claims: Result<Vec<_>, Error> = found.iter().map(|digest| claim(&store, digest)).collect();
    let _claims = claims?;
    for digest in found {
        let names = store.remove(&digest)?;
        report.removed(&digest, &names)?;
    }
    Ok(0)
}

pub fn prune(global: &cli::Global, arguments: &cli::Prune, report: &Report) -> Result<u8, Error> {
    let store = open_store(global)?;
    let images = store.list()?;
    let is_used = |image: &Stored| claim(&store, image.digest()).is_err();
    let rules = arguments.rules();
    let choice = rules.choose(&images, is_used, now_ms());
    let remaining = images.len() - choice.removed.len();
    let is_more = rules.only_keep().is_some_and(|keep| remaining > keep);
    let mut left = 0;
    for image in &choice.removed {
        let bytes = image.bytes();
        if !arguments.dry_run {
            // It may be in use since.
            let Ok(_claim) = claim(&store, image.digest()) else {
                left += bytes;
                continue;
            };
            store.remove(image.digest())?;
        }
        report.pruned(image, arguments.dry_run)?;
    }
    if !arguments.dry_run {
        store.sweep_partial();
    }
    report.rest_of_prune(choice.rest_bytes + left, arguments.max_size, is_more)?;
    Ok(0)
}

/// Makes sure that nothing uses an image, as long as the result is there.
pub fn claim(store: &Store, digest: &Digest) -> Result<Claim, Error> {
    let in_use = |by| Error::InUse {
        image: digest.short().to_owned(),
        by,
    };
    let claim = store.claim(digest)?.ok_or_else(|| in_use(vec![]))?;
    let users: Vec<String> = instance::list(&store.instances())
        .into_iter()
        .filter(|instance| instance.state == State::Running)
        .filter(|instance| instance.record.image.as_deref() == Some(digest.as_str()))
        .map(|instance| instance.record.id)
        .collect();
    match users.is_empty() {
        true => Ok(claim),
        false => Err(in_use(users)),
    }
}
