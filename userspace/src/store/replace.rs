//! Images that take the place of others.
//!
//! Invariant: the old one goes when the new one is there for good, and has its names.

use std::{fs, path::Path};

use super::{Digest, Image, Manifest, Store, StoreError, read_error, write_error};
use crate::{edit, working_set::Touched};

impl Store {
    /// Puts an image in the place of another that differs only by what is known of its working set.
    ///
    /// # Errors
    /// As of [`Store::with_working_set`]; the old one is still there then.
    pub fn replace(&self, image: &Image, touched: &Touched) -> Result<Image, StoreError> {
        let new = self.with_working_set(image, touched)?;
        self.supersede(image, &new.digest)?;
        self.load(new.digest)
    }

    /// Makes an image that differs from another only by what is known of its working set, under the
    /// first of its names.
    ///
    /// # Errors
    /// [`StoreError::Unnamed`], [`StoreError::Edit`], or [`StoreError::Read`] or [`StoreError::Write`].
    pub fn with_working_set(&self, image: &Image, touched: &Touched) -> Result<Image, StoreError> {
        let Some(name) = image.names.first() else {
            // Nobody would find it again.
            return Err(StoreError::Unnamed(image.digest.clone()));
        };
        let staging = self.stage()?;
        let criu = staging.criu();
        link_all(&image.criu_folder(), &criu)?;
        if let Some(read) = image.read_files()? {
            read.write(&staging)?;
        }
        let mapped = edit::describe_mapped(&criu, &staging.map(), &touched.written)?;
        let manifest = Manifest {
            mapped: Some(mapped),
            working_set: Some(touched.set.clone()),
            ..image.manifest.clone()
        };
        self.commit(staging, manifest, name)
    }

    /// Lets the names of an image point to another that takes its place, and removes it, unless it is
    /// the same.
    ///
    /// # Errors
    /// [`StoreError::Write`]; the old one is still there then.
    pub fn supersede(&self, old: &Image, new: &Digest) -> Result<(), StoreError> {
        if old.digest == *new {
            return Ok(());
        }
        old.names
            .iter()
            .try_for_each(|name| self.point(name, new))?;
        self.remove(&old.digest).map(drop)
    }
}

/// Makes all files of a folder files of another as well.
fn link_all(from: &Path, to: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(from).map_err(read_error(from))? {
        let path = entry.map_err(read_error(from))?.path();
        let link = to.join(path.file_name().unwrap_or_default());
        // Not every file system has links.
        fs::hard_link(&path, &link)
            .or_else(|_| fs::copy(&path, &link).map(drop))
            .map_err(write_error(&link))?;
    }
    Ok(())
}
