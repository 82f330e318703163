//! The everyday check of an image, and what becomes of what it finds.

use super::{Options, RestoreError, Staleness};
use crate::{
    fit::{Check, Depth, Finding, Here},
    store::{Image, Store},
};

/// The check of an image that is about to be restored.
pub struct Fit<'a> {
    check: Check<'a>,
    image: &'a Image,
    options: &'a Options,
}

impl<'a> Fit<'a> {
    pub fn new(image: &'a Image, here: &'a Here, options: &'a Options) -> Self {
        Self {
            check: Check::new(image, here, Depth::Identity),
            image,
            options,
        }
    }

    /// Refuses an image that can break, or, if that is wanted, one that may be stale.
    pub async fn refuse(&mut self) -> Result<(), RestoreError> {
        let findings = self.check.breaking();
        let findings = self.not_allowed(findings);
        let image = self.image.label().to_owned();
        if !findings.is_empty() {
            return Err(RestoreError::Unfit { findings, image });
        }
        if self.options.staleness == Staleness::Refused {
            let findings = self.check.stale().await?;
            let findings = self.not_allowed(findings);
            if !findings.is_empty() {
                return Err(RestoreError::Stale { findings, image });
            }
        }
        Ok(())
    }

    /// What may be stale, if that is to be told.
    pub async fn stale(&mut self) -> Result<Vec<Finding>, RestoreError> {
        match self.options.staleness {
            Staleness::Told => {
                let findings = self.check.stale().await?;
                Ok(self.not_allowed(findings))
            }
            Staleness::Ignored | Staleness::Refused => Ok(vec![]),
        }
    }

    /// Remembers what it took some time to find out.
    pub fn remember(&self, store: &Store) {
        // Only a help: without it, the next restore finds out again.
        if let Err(error) = self.check.remember(store) {
            tracing::debug!("{error}");
        }
    }

    fn not_allowed(&self, findings: Vec<Finding>) -> Vec<Finding> {
        let findings = findings.into_iter();
        let is_allowed = |finding: &Finding| self.options.allowed.contains(finding.code);
        findings.filter(|finding| !is_allowed(finding)).collect()
    }
}
