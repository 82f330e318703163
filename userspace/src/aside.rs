//! Files that are written whole or not at all.
//!
//! Invariant: until [`Aside::commit`] has returned, the path is as it was. Where the file system
//! has files without a name (`O_TMPFILE`), nothing is left of one even if this process is killed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, linkat};

/// The mode of files that anybody may read, as far as the umask allows.
pub const ORDINARY: u32 = 0o666;

/// A file that takes the place of another, or of none, once it is whole.
#[derive(Debug)]
pub struct Aside {
    file: File,
    /// Where it is meanwhile.
    path: PathBuf,
    is_named: bool,
    /// What the path that was given leads to.
    target: PathBuf,
}

impl Aside {
    /// # Errors
    /// What open(2) says, or [`io::ErrorKind::IsADirectory`].
    pub fn create(path: &Path, mode: u32) -> io::Result<Self> {
        let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if target.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let name = format!(".{}.{}", name.to_string_lossy(), std::process::id());
        let path = target.with_file_name(name);
        let folder = folder_of(&path);
        let mut options = OpenOptions::new();
        options.write(true).mode(mode);
        let unnamed = options.clone().custom_flags(libc::O_TMPFILE).open(folder);
        let (file, is_named) = match unnamed {
            Ok(file) => (file, false),
            // Not every file system has them.
            Err(_) => (options.create(true).truncate(true).open(&path)?, true),
        };
        Ok(Self {
            file,
            path,
            is_named,
            target,
        })
    }

    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// What linkat(2) or rename(2) say; the path is then as it was.
    pub fn commit(mut self) -> io::Result<()> {
        if !self.is_named {
            let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let _ = fs::remove_file(&self.path);
            linkat(CWD, &*unnamed, CWD, &self.path, AtFlags::SYMLINK_FOLLOW)?;
            self.is_named = true;
        }
        fs::rename(&self.path, &self.target)?;
        self.is_named = false;
        Ok(())
    }

    /// The same for good: a power loss afterwards takes nothing of it.
    ///
    /// # Errors
    /// As [`Aside::commit`], or what fsync(2) says.
    pub fn commit_synced(self) -> io::Result<()> {
        self.file.sync_all()?;
        let folder = folder_of(&self.path).to_path_buf();
        self.commit()?;
        File::open(folder)?.sync_all()
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if self.is_named {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether it is something that is written to rather than replaced, as /dev/stdout.
pub fn is_device(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| !found.is_file() && !found.is_dir())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let count = || fs::read_dir(folder.path()).unwrap().count();
        let mut aside = Aside::create(&path, 0o600).unwrap();
        aside.file().write_all(b"half").unwrap();
        drop(aside);
        assert_eq!(count(), 0);
        for text in ["first", "second"] {
            let mut aside = Aside::create(&path, 0o600).unwrap();
            aside.file().write_all(text.as_bytes()).unwrap();
            aside.commit().unwrap();
            assert_eq!(
                (fs::read_to_string(&path).unwrap().as_str(), count()),
                (text, 1)
            );
        }
        let error = Aside::create(folder.path(), 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }
}
