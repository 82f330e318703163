//! Stores within a store, for images that nobody else needs.

use std::{io, os::unix::fs::symlink, path::Path};

use super::{Staging, Store, StoreError, write_error};

/// A store for images that nobody else needs; removed when dropped.
pub struct TemporaryStore {
    store: Store,
    _staging: Staging,
}

impl std::ops::Deref for TemporaryStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

/// The folders that a store shares with those within it: there is nothing of images in them.
const SHARED: [&str; 2] = ["kerndat", "logs"];

impl Store {
    /// Makes a store within this one that ends with its guard.
    ///
    /// # Errors
    /// [`StoreError::Write`] or [`StoreError::Open`].
    pub fn temporary(&self) -> Result<TemporaryStore, StoreError> {
        let staging = self.stage()?;
        // Logs of failures are to be found when the rest is gone.
        self.share(&staging.work())?;
        let store = Self::open(&staging.work())?;
        Ok(TemporaryStore {
            store,
            _staging: staging,
        })
    }

    /// Gives a store within this one what it shares.
    pub(super) fn share(&self, root: &Path) -> Result<(), StoreError> {
        for folder in SHARED {
            let link = root.join(folder);
            match symlink(self.root.join(folder), &link) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(write_error(&link)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
