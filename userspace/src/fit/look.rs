//! Looks at many files, of which those of the same folder follow each other.
//!
//! The way to a folder is gone once: that takes a third of the time of a look.

use std::{
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};

use crate::store::Identity;

/// What is at a path, links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub identity: Identity,
    /// Type and permissions, as of stat(2).
    pub mode: u32,
}

/// The folder that was looked into last.
#[derive(Default)]
pub struct Looks {
    folder: Option<(Vec<u8>, OwnedFd)>,
}

impl Looks {
    /// Looks at a path, which is absolute.
    ///
    /// # Errors
    /// What open(2) says of its folder, or statx(2) of it.
    pub fn look_at(&mut self, path: &Path) -> io::Result<Found> {
        let path = path.as_os_str().as_bytes();
        let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        let (folder, name) = path.split_at((end + 1).min(path.len()));
        let fd = match &self.folder {
            Some((known, fd)) if known == folder => fd,
            _ => {
                let opened = open(folder)?;
                &self.folder.insert((folder.to_owned(), opened)).1
            }
        };
        // The root has no name.
        let (name, flags) = match name {
            b"" => (&b""[..], AtFlags::EMPTY_PATH),
            name => (name, AtFlags::empty()),
        };
        let wanted = StatxFlags::TYPE
            | StatxFlags::MODE
            | StatxFlags::SIZE
            | StatxFlags::MTIME
            | StatxFlags::INO;
        let found = statx(fd, name, flags, wanted)?;
        Ok(Found {
            identity: Identity {
                bytes: found.stx_size,
                modified_ns: found.stx_mtime.tv_sec * 1_000_000_000
                    + i64::from(found.stx_mtime.tv_nsec),
                inode: found.stx_ino,
            },
            mode: found.stx_mode.into(),
        })
    }
}

fn open(folder: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, folder, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn a_look_tells_what_stat_tells() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("below")).unwrap();
        for name in ["a", "b", "below/c"] {
            fs::write(path(name), name).unwrap();
        }
        std::os::unix::fs::symlink("a", path("link")).unwrap();
        let mut looks = Looks::default();
        let names = ["a", "link", "b", "below", "below/c", "a"].map(path);
        for path in names
            .iter()
            .map(|path| path.as_path())
            .chain([Path::new("/")])
        {
            let metadata = path.metadata().unwrap();
            let expected = Found {
                identity: Identity::of(&metadata),
                mode: metadata.mode(),
            };
            assert_eq!(looks.look_at(path).unwrap(), expected, "{}", path.display());
        }
        for name in ["none", "a/none", "none/none"] {
            assert!(looks.look_at(&path(name)).is_err(), "{name}");
        }
    }
}
