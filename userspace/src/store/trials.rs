//! Which images have failed to come back.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use rustix::fs::{FlockOperation, flock};

use serde::{Deserialize, Serialize};

use super::{Digest, Store, StoreError, write_error};

/// The folder of those that have failed.
const FAILURES: &str = "failures";

/// An image that has failed so often, one time after the other, is not tried again.
const QUARANTINED: u32 = 2;

/// How the last restores of an image went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// One after the other, until now.
    pub count: u32,
    /// Why the last one failed.
    pub reason: String,
}

impl Failures {
    /// Whether the image is not to be tried again.
    pub fn is_quarantined(&self) -> bool {
        self.count >= QUARANTINED
    }
}

impl Store {
    /// The failures of an image; none if its last restore went well, or if they cannot be read.
    pub fn failures(&self, digest: &Digest) -> Failures {
        let text = fs::read(self.failures_of(digest)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Takes note that an image could not be restored; returns all its failures.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn failed(&self, digest: &Digest, reason: &str) -> Result<Failures, StoreError> {
        let failures = Failures {
            count: self.failures(digest).count + 1,
            reason: reason.to_owned(),
        };
        let text = serde_json::to_vec(&failures);
        let text = text.map_err(|error| write_error(&self.failures_of(digest))(error.into()))?;
        self.put(FAILURES, digest.as_str(), &text)?;
        Ok(failures)
    }

    /// Takes note that an image was restored.
    pub fn succeeded(&self, digest: &Digest) {
        // Nearly always it is not there.
        let _ = fs::remove_file(self.failures_of(digest));
    }

    /// Makes sure that only one makes an image by this name, as long as the result is there; none if
    /// another does.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn single_flight(&self, name: &str) -> Result<Option<File>, StoreError> {
        let path = self.root.join("locks").join(name);
        let mut options = File::options();
        let lock = options.create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(write_error(&path))?;
        Ok(flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .is_ok()
            .then_some(lock))
    }

    fn failures_of(&self, digest: &Digest) -> PathBuf {
        self.root.join(FAILURES).join(&digest.0)
    }
}
