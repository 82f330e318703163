//! Keeps what CRIU finds out about the kernel, which takes it 35 to 45 ms at every start.
//!
//! CRIU keeps it itself only on a tmpfs, but reads it from anywhere. So the first run in a boot
//! gets a tmpfs in its private mount namespace, and what it wrote there is copied to the store,
//! under a key that changes with the boot, the kernel and CRIU: never used for another.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{Program, ProgramError, Version};
use crate::{host, private, tree::HostPid};

/// The name that CRIU gives the file.
const FILE: &str = "criu.kdat";

/// The file with the version.
const VERSION: &str = "version.json";

/// The cache for one boot, kernel and CRIU.
#[derive(Clone, Debug)]
pub struct Kerndat {
    folder: PathBuf,
}

impl Kerndat {
    /// The cache for the running kernel and a CRIU, in a folder of the store.
    ///
    /// # Errors
    /// If the folder cannot be made, or CRIU not be looked at.
    pub fn open(parent: &Path, criu: &Program) -> io::Result<Self> {
        let program = criu.path.metadata()?;
        let identity = format!(
            "{}\0{}\0{}\0{}\0{}",
            host::boot_id()?,
            criu.path.display(),
            program.len(),
            program.mtime_nsec(),
            program.mtime(),
        );
        let key = blake3::hash(identity.as_bytes()).to_hex();
        let folder = parent.join(&key[..16]);
        private::make_folders(&folder)?;
        Ok(Self { folder })
    }

    /// The folder to name to CRIU.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether there is something to use.
    pub fn is_filled(&self) -> bool {
        self.folder.join(FILE).is_file()
    }

    /// The version of the CRIU that this is the cache of. To ask it takes as long as to start it.
    ///
    /// # Errors
    /// [`ProgramError::Run`] or [`ProgramError::NoVersion`].
    pub fn version(&self, criu: &Program) -> Result<Version, ProgramError> {
        let path = self.folder.join(VERSION);
        let known = fs::read(&path).ok();
        if let Some(version) = known.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(version);
        }
        let version = criu.version()?;
        let bytes = serde_json::to_vec(&version).unwrap_or_default();
        let aside = self
            .folder
            .join(format!("{VERSION}.{}", std::process::id()));
        // Only a cache: without it, the next asks again.
        let _ = private::write(&aside, &bytes).and_then(|()| fs::rename(aside, path));
        Ok(version)
    }

    /// Copies what CRIU wrote to the tmpfs in the mount namespace of `init`.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn fill_from(&self, init: HostPid) -> io::Result<()> {
        let seen_there = self
            .folder
            .strip_prefix("/")
            .unwrap_or(&self.folder)
            .join(FILE);
        let data = fs::read(Path::new(&format!("/proc/{init}/root")).join(seen_there))?;
        let aside = self.folder.join(format!("{FILE}.{}", std::process::id()));
        private::write(&aside, &data)?;
        fs::rename(aside, self.folder.join(FILE))?;
        self.remove_others();
        Ok(())
    }

    /// Removes the caches of earlier boots and of another CRIU.
    fn remove_others(&self) {
        let Some(parent) = self.folder.parent() else {
            return;
        };
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            if entry.path() != self.folder {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_criu_has_another_cache() {
        let parent = tempfile::tempdir().unwrap();
        let open =
            |path: &str| Kerndat::open(parent.path(), &Program { path: path.into() }).unwrap();
        let (a, b) = (open("/bin/sh"), open("/bin/cat"));
        assert_ne!(a.folder(), b.folder());
        assert_eq!(a.folder(), open("/bin/sh").folder());
        assert!(!a.is_filled());
        fs::write(a.folder().join(FILE), "x").unwrap();
        assert!(a.is_filled());
        assert!(
            a.version(&Program {
                path: "/bin/true".into()
            })
            .is_err()
        );
        fs::write(a.folder().join(VERSION), "[4,2,1]").unwrap();
        let version = a.version(&Program {
            path: "/bin/true".into(),
        });
        assert_eq!(version.unwrap(), Version(4, 2, 1));
        a.remove_others();
        assert!(!b.folder().exists());
    }
}
