//! Folders to prepare images in. Each is locked as long as it is in use, so that what a killed
//! process left behind can be told apart and removed by the next.

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::{StoreError, write_error};

/// A folder to prepare an image in; removed when dropped.
#[derive(Debug)]
pub struct Staging {
    folder: PathBuf,
    _lock: OwnedFd,
}

impl Staging {
    pub(super) fn new(parent: &Path) -> Result<Self, StoreError> {
        // Nobody sweeps between the making of the folder and its locking.
        let lock = fs::File::open(parent).map_err(write_error(parent))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| write_error(parent)(errno.into()))?;
        let mut number = 0_u32;
        let folder = loop {
            let folder = parent.join(format!("{}-{number}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => break folder,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(write_error(&folder)(error)),
            }
        };
        let held = OwnedFd::from(fs::File::open(&folder).map_err(write_error(&folder))?);
        flock(&held, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| write_error(&folder)(errno.into()))?;
        let staging = Self {
            folder,
            _lock: held,
        };
        for folder in [staging.image(), staging.criu(), staging.work()] {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&folder)
                .map_err(write_error(&folder))?;
        }
        Ok(staging)
    }

    /// What becomes the image.
    pub fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// Where CRIU writes its images.
    pub fn criu(&self) -> PathBuf {
        self.image().join("criu")
    }

    /// For the second description of the processes, with mapped memory.
    pub fn map(&self) -> PathBuf {
        self.image().join("map")
    }

    /// For what is known of files outside of the image.
    pub fn fit(&self) -> PathBuf {
        self.image().join("fit")
    }

    /// Where CRIU writes its log and statistics.
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes the folders that nobody holds.
pub(super) fn sweep(parent: &Path) {
    let Ok(lock) = fs::File::open(parent) else {
        return;
    };
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return;
    }
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if is_free(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether nobody holds the lock of a folder; true as well if it is gone.
pub fn is_free(folder: &Path) -> bool {
    match fs::File::open(folder) {
        Ok(file) => flock(file.as_fd(), FlockOperation::NonBlockingLockShared).is_ok(),
        Err(_) => true,
    }
}
