//! Keeps images from being removed while they are being restored or read. What runs already is
//! known by its record (see `instance`).
//!
//! Invariant: an image is removed by who has locked its folder alone, and restored by who shares the
//! lock.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{Digest, Image, Store, StoreError, read_error};

/// As long as this is there, nobody removes the image.
#[derive(Debug)]
pub struct Hold {
    _lock: OwnedFd,
}

/// As long as this is there, nobody restores or reads the image.
#[derive(Debug)]
pub struct Claim {
    _locks: Vec<OwnedFd>,
}

impl Image {
    /// # Errors
    /// [`StoreError::Read`], with [`io::ErrorKind::ResourceBusy`] if the image is being removed.
    pub fn hold(&self) -> Result<Hold, StoreError> {
        share(&self.folder)
    }
}

/// Shares the lock of a folder.
pub(super) fn share(path: &Path) -> Result<Hold, StoreError> {
    let folder = File::open(path).map_err(read_error(path))?;
    flock(folder.as_fd(), FlockOperation::NonBlockingLockShared).map_err(|errno| {
        let error = match errno {
            Errno::WOULDBLOCK => io::ErrorKind::ResourceBusy.into(),
            errno => errno.into(),
        };
        read_error(path)(error)
    })?;
    Ok(Hold {
        _lock: folder.into(),
    })
}

impl Store {
    /// Makes sure that an image is not being restored or read; none if it is.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn claim(&self, digest: &Digest) -> Result<Option<Claim>, StoreError> {
        let encrypted = self.folder_of_encrypted(digest);
        let folders = match encrypted.is_dir() {
            // That in memory is there only if it is open; nobody opens it while the other is locked.
            true => vec![encrypted, self.folder_in_memory(digest)],
            false => vec![self.folder_of(digest)],
        };
        let mut locks = Vec::new();
        for (number, path) in folders.into_iter().enumerate() {
            let folder = match File::open(&path) {
                Err(error) if number > 0 && error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(read_error(&path))?,
            };
            match flock(folder.as_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => locks.push(folder.into()),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(read_error(&path)(errno.into())),
            }
        }
        Ok(Some(Claim { _locks: locks }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::sample;

    #[test]
    fn an_image_is_removed_or_restored_but_not_both() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let staging = store.stage().unwrap();
        fs::write(staging.criu().join("core-1.img"), "core").unwrap();
        let image = store.commit(staging, sample(1), "web").unwrap();
        let holds = [image.hold().unwrap(), image.hold().unwrap()];
        assert!(store.claim(&image.digest).unwrap().is_none());
        drop(holds);
        let claim = store.claim(&image.digest).unwrap().unwrap();
        assert!(store.claim(&image.digest).unwrap().is_none());
        let Err(StoreError::Read { source, .. }) = image.hold() else {
            panic!("it is being removed");
        };
        assert_eq!(source.kind(), io::ErrorKind::ResourceBusy);
        store.remove(&image.digest).unwrap();
        drop(claim);
        assert!(store.claim(&image.digest).is_err());
        assert!(image.hold().is_err());
    }
}
