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

use super::Program;
use crate::{host, tree::HostPid};

/// The name that CRIU gives the file.
const FILE: &str = "criu.kdat";

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
        fs::create_dir_all(&folder)?;
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
        fs::write(&aside, data)?;
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
        a.remove_others();
        assert!(!b.folder().exists());
    }
}
