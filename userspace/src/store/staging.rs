//! Folders to prepare images in. Each is locked as long as it is in use, so that what a killed
//! process left behind can be told apart and removed by the next.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{StoreError, write_error};

/// A folder to prepare an image in; removed when dropped, unless kept.
#[derive(Debug)]
pub struct Staging {
    folder: PathBuf,
    is_kept: bool,
    /// Removed with the folder, if nothing else is in it.
    parent: Option<PathBuf>,
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
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(write_error(&folder)(error)),
            }
        };
        let Some(held) = hold(&folder)? else {
            let busy = io::ErrorKind::ResourceBusy;
            return Err(write_error(&folder)(busy.into()));
        };
        Self::over(folder, held, None)
    }

    /// Opens a folder of this name that an earlier one has left, or makes it; none if it is in
    /// use. Only what is in [`Staging::image`] is still there.
    pub(super) fn reopen(parent: &Path, name: &str) -> Result<Option<Self>, StoreError> {
        make_folder(parent)?;
        let lock = fs::File::open(parent).map_err(write_error(parent))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| write_error(parent)(errno.into()))?;
        let folder = parent.join(name);
        make_folder(&folder)?;
        let Some(held) = hold(&folder)? else {
            return Ok(None);
        };
        let work = folder.join("work");
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(write_error(&work)(error)),
            _ => Self::over(folder, held, Some(parent)).map(Some),
        }
    }

    fn over(folder: PathBuf, lock: OwnedFd, parent: Option<&Path>) -> Result<Self, StoreError> {
        let staging = Self {
            folder,
            is_kept: false,
            parent: parent.map(Path::to_path_buf),
            _lock: lock,
        };
        for folder in [staging.image(), staging.criu(), staging.work()] {
            make_folder(&folder)?;
        }
        Ok(staging)
    }

    /// Leaves the folder for [`Staging::reopen`].
    pub(super) fn keep(mut self) {
        self.is_kept = true;
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
        if self.is_kept {
            return;
        }
        let _ = fs::remove_dir_all(&self.folder);
        if let Some(parent) = &self.parent {
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Locks a folder; none if another has.
fn hold(folder: &Path) -> Result<Option<OwnedFd>, StoreError> {
    let held = OwnedFd::from(fs::File::open(folder).map_err(write_error(folder))?);
    match flock(&held, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(held)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(write_error(folder)(errno.into())),
    }
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(write_error(path)),
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
