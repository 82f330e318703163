//! The files that the tree opens, as the probe tells of them.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::PathBuf};

use aya::{
    Ebpf,
    maps::{Array, MapData, RingBuf},
};
use probe_ebpf as probe;
use tokio::io::unix::AsyncFd;

use super::WatchError;
use crate::{sys, tree::HostPid};

/// The program of the probe that tells of them, and the raw tracepoint it attaches to.
pub(super) const PROGRAM: (&str, &str) = ("file_opened", "sys_exit");

/// Tells a file from others: device and inode, as the kernel has them.
pub type FileId = (u32, u64);

/// A regular file or a folder that was opened, for the first time to read or to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub pid: HostPid,
    pub file: FileId,
    /// As the process gave it.
    pub path: PathBuf,
    /// The folder that a relative path begins at.
    pub folder: FileId,
    /// Its descriptor, if it is not the working directory.
    pub folder_fd: Option<i32>,
    pub is_folder: bool,
    pub is_written: bool,
    /// The path is longer than the probe records.
    pub is_cut: bool,
}

/// The files that are opened, as long as the [`super::Watch`] that this came from lives.
pub struct Opens {
    ring: AsyncFd<RingBuf<MapData>>,
    untold: Array<MapData, u64>,
}

impl Opens {
    pub(super) fn attach(ebpf: &mut Ebpf, btf: &aya::Btf) -> Result<Self, WatchError> {
        super::attach(ebpf, btf, PROGRAM.0, PROGRAM.1)?;
        let mut take = |name: &'static str| ebpf.take_map(name).ok_or(WatchError::Incomplete(name));
        let ring = RingBuf::try_from(take("OPENS")?)?;
        Ok(Self {
            ring: sys::readable(ring).map_err(WatchError::Wait)?,
            untold: take("UNTOLD")?.try_into()?,
        })
    }

    /// Waits until there is much to take. Can be cancelled.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub async fn wait(&mut self) -> Result<(), WatchError> {
        let mut guard = self.ring.readable_mut().await.map_err(WatchError::Wait)?;
        guard.clear_ready();
        Ok(())
    }

    /// Takes what there is.
    pub fn drain(&mut self, mut take: impl FnMut(Opened)) {
        while let Some(bytes) = self.ring.get_mut().next() {
            if let Some(opened) = parse(&bytes) {
                take(opened);
            }
        }
    }

    /// How many files found no room in the kernel.
    ///
    /// # Errors
    /// See [`WatchError`].
    pub fn untold(&self) -> Result<u64, WatchError> {
        Ok(self.untold.get(&0, 0)?)
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Option<Opened> {
    let raw: probe::Opened = bytemuck::try_pod_read_unaligned(bytes).ok()?;
    let path = raw.path.get(..raw.path_len as usize)?;
    Some(Opened {
        pid: HostPid(raw.tgid as i32),
        file: (raw.device, raw.inode),
        path: OsStr::from_bytes(path).into(),
        folder: (raw.folder_device, raw.folder_inode),
        folder_fd: (raw.folder != probe::AT_FDCWD).then_some(raw.folder),
        is_folder: raw.flags & probe::OPENED_FOLDER != 0,
        is_written: raw.flags & probe::OPENED_TO_WRITE != 0,
        is_cut: raw.flags & probe::OPENED_CUT != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_opened_is_told_with_its_path_and_where_that_begins() {
        let mut raw: probe::Opened = bytemuck::Zeroable::zeroed();
        (raw.tgid, raw.device, raw.inode) = (7, 8, 9);
        raw.folder = probe::AT_FDCWD;
        raw.flags = probe::OPENED_TO_WRITE;
        raw.path_len = 5;
        raw.path[..5].copy_from_slice(b"a.cfg");
        let opened = parse(bytemuck::bytes_of(&raw)).unwrap();
        assert_eq!((opened.pid, opened.file), (HostPid(7), (8, 9)));
        assert_eq!((opened.path, opened.folder_fd), ("a.cfg".into(), None));
        assert_eq!((opened.is_written, opened.is_cut), (true, false));
        assert!(!opened.is_folder);
        (raw.folder, raw.folder_device, raw.folder_inode) = (4, 8, 5);
        raw.flags = probe::OPENED_CUT;
        let opened = parse(bytemuck::bytes_of(&raw)).unwrap();
        assert_eq!((opened.folder, opened.folder_fd), ((8, 5), Some(4)));
        assert!(opened.is_cut);
        assert_eq!(parse(b"short"), None);
    }
}
