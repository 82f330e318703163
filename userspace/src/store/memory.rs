//! The part of a store that is in memory: what encrypted images hold, while it is made or open.
//!
//! ```text
//! memory/           a file system in memory, mounted as long as there is anything in it
//! memory/images/    images that are open, each as if it was not encrypted
//! memory/staging/   images being opened or made
//! ```
//!
//! Invariant: nothing is written there unless the file system is mounted, and held so that it stays.

use std::{
    fs::{self, File},
    io,
    ops::Deref,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock, fstatfs, fstatvfs},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use super::{Digest, Image, Store, StoreError, read_error, staging, write_error};

/// Where it is mounted.
const MEMORY: &str = "memory";

/// Of linux/magic.h.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// A store in memory. When this is dropped, the file system goes if there is nothing in it.
pub struct MemoryStore {
    store: Store,
    /// The store that it is a part of.
    parent: Store,
    /// The root of the file system, whose lock it shares: so it is not unmounted meanwhile.
    mounted: Option<OwnedFd>,
}

impl Deref for MemoryStore {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl MemoryStore {
    /// How much more fits, in bytes.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let Some(root) = &self.mounted else {
            return Ok(0);
        };
        let found = fstatvfs(root).map_err(|errno| read_error(&self.root)(errno.into()))?;
        let fits = found.f_bavail.saturating_mul(found.f_frsize);
        Ok(fits.min(available().unwrap_or(u64::MAX)))
    }

    /// Takes an image of a store within this one among those that are open.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn take(&self, image: &Image) -> Result<(), StoreError> {
        let folder = self.store.root.join("images").join(image.digest.as_str());
        match fs::rename(&image.folder, &folder) {
            // It was opened by another meanwhile.
            Err(_) if folder.is_dir() => Ok(()),
            renamed => renamed.map_err(write_error(&folder)),
        }
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.mounted = None;
        self.parent.release_memory();
    }
}

impl Store {
    /// The store in memory, which is made if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Memory`], or [`StoreError::Open`].
    pub fn memory(&self) -> Result<MemoryStore, StoreError> {
        let place = self.root.join(MEMORY);
        let mounted = self.mount_memory(&place)?;
        self.share(&place)?;
        let memory = MemoryStore {
            store: Self {
                root: place.clone(),
            },
            parent: self.clone(),
            mounted: Some(mounted.into()),
        };
        Self::open(&place)?;
        Ok(memory)
    }

    /// Where an open image is.
    pub(super) fn folder_in_memory(&self, digest: &Digest) -> PathBuf {
        self.root.join(MEMORY).join("images").join(digest.as_str())
    }

    /// Removes what an image has in memory, if it is open.
    ///
    /// # Errors
    /// [`StoreError::Write`], [`StoreError::Memory`] or [`StoreError::Open`].
    pub fn close(&self, digest: &Digest) -> Result<(), StoreError> {
        let folder = self.folder_in_memory(digest);
        if !folder.is_dir() {
            return Ok(());
        }
        let memory = self.memory()?;
        // Out of the images first, so that no half-removed image is ever seen.
        let aside = memory.stage()?;
        let target = aside.image().join("closed");
        fs::rename(&folder, &target).map_err(write_error(&folder))
    }

    /// Removes what killed ones have left in memory.
    pub(super) fn sweep_memory(&self) {
        let memory = self.root.join(MEMORY);
        if memory.is_dir() {
            staging::sweep(&memory.join("staging"));
            self.release_memory();
        }
    }

    /// Mounts the file system if it is not there, and shares the lock of its root.
    fn mount_memory(&self, place: &Path) -> Result<File, StoreError> {
        let failed = |source| StoreError::Memory {
            path: place.to_path_buf(),
            source,
        };
        let _lock = self.lock_memory()?;
        private(place).map_err(write_error(place))?;
        let mut root = File::open(place).map_err(write_error(place))?;
        if !self.is_memory(&root) {
            mount_in_memory(place).map_err(|source| {
                let _ = fs::remove_dir(place);
                failed(source)
            })?;
            root = File::open(place).map_err(failed)?;
        }
        flock(root.as_fd(), FlockOperation::NonBlockingLockShared)
            .map_err(|errno| failed(errno.into()))?;
        Ok(root)
    }

    /// Unmounts the file system if there is nothing in it and nobody has it.
    fn release_memory(&self) {
        let place = self.root.join(MEMORY);
        let is_empty = |folder| {
            let entries = fs::read_dir(place.join(folder));
            entries.into_iter().flatten().next().is_none()
        };
        let Ok(_lock) = self.lock_memory() else {
            return;
        };
        let is_free = File::open(&place)
            .is_ok_and(|root| flock(root, FlockOperation::NonBlockingLockExclusive).is_ok());
        if is_free && is_empty("images") && is_empty("staging") {
            // Mount namespaces of instances that end may have it for a moment. After a power loss, it is not
            // mounted, and the folder is all there is.
            let _ = unmount(&place, UnmountFlags::DETACH);
            let _ = fs::remove_dir(&place);
        }
    }

    /// Held while it is mounted or unmounted.
    fn lock_memory(&self) -> Result<File, StoreError> {
        let failed = read_error(&self.root);
        let lock = File::open(&self.root).map_err(&failed)?;
        flock(lock.as_fd(), FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        Ok(lock)
    }

    /// Whether an open folder is on a file system in memory that is not that of the store.
    fn is_memory(&self, folder: &File) -> bool {
        let device = |metadata: io::Result<fs::Metadata>| metadata.ok().map(|found| found.dev());
        let is_own = device(folder.metadata()) != device(self.root.metadata());
        is_own && fstatfs(folder).is_ok_and(|found| found.f_type == TMPFS_MAGIC)
    }
}

fn private(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Memory that is mapped from there can be executable, hence no `noexec`.
fn mount_in_memory(place: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let mounted = match mount("warmimg", place, "tmpfs", flags, c"mode=0700,noswap") {
        // Before Linux 6.4, and in containers with users of their own.
        Err(Errno::INVAL) => {
            if has_swap() {
                tracing::warn!(
                    "this kernel cannot keep an open image out of the swap space, which is a disk"
                );
            }
            mount("warmimg", place, "tmpfs", flags, c"mode=0700")
        }
        mounted => mounted,
    };
    Ok(mounted?)
}

fn has_swap() -> bool {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    swaps.lines().count() > 1
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
