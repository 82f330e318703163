//! The everyday check of an image, and what becomes of what it finds.
//!
//! What can break is looked at before the tree is restored, while CRIU starts. The files that a server
//! has read may be thousands, and only tell whether it is stale: they are looked at when it is back.

use super::{Options, RestoreError};
use crate::{
    criu::{Program, kerndat::Kerndat},
    fit::{Allowed, Check, Depth, Finding, Here},
    store::{Image, Store},
};

/// Refuses an image that can break, or, if that is wanted, one that may be stale.
pub(super) fn refuse(image: &Image, here: &Here, options: &Options) -> Result<(), RestoreError> {
    let mut check = Check::new(image, here, Depth::Identity);
    let label = || image.label().to_owned();
    let findings = not_allowed(check.breaking(), &options.allowed);
    if !findings.is_empty() {
        return Err(RestoreError::Unfit {
            findings,
            image: label(),
        });
    }
    if options.strict {
        let findings = not_allowed(check.stale()?, &options.allowed);
        if !findings.is_empty() {
            return Err(RestoreError::Stale {
                findings,
                image: label(),
            });
        }
    }
    remember(&check);
    Ok(())
}

/// What the server of an image may go on with although it is no longer so.
///
/// # Errors
/// See [`RestoreError`].
pub fn stale(
    store: &Store,
    criu: &Program,
    image: &Image,
    allowed: &Allowed,
) -> Result<Vec<Finding>, RestoreError> {
    let here = read_here(store, criu)?;
    let mut check = Check::new(image, &here, Depth::Identity);
    let findings = check.stale()?;
    remember(&check);
    Ok(not_allowed(findings, allowed))
}

/// This host, as far as it matters to a restore.
fn read_here(store: &Store, criu: &Program) -> Result<Here, RestoreError> {
    let kerndat = Kerndat::open(&store.kerndat(), criu).map_err(RestoreError::Kerndat)?;
    Here::read(Some(kerndat.version(criu)?)).map_err(RestoreError::Host)
}

/// Remembers what it took some time to find out.
fn remember(check: &Check<'_>) {
    // Only a help: without it, the next restore finds out again.
    if let Err(error) = check.remember() {
        tracing::debug!("{error}");
    }
}

fn not_allowed(findings: Vec<Finding>, allowed: &Allowed) -> Vec<Finding> {
    let findings = findings.into_iter();
    findings
        .filter(|finding| !allowed.contains(finding.code))
        .collect()
}
