//! Where a restore has what it needs while it lasts: a file system in memory of its own, which is mounted
//! nowhere and goes with the last who has it open. It holds CRIU's log and statistics, and the image's
//! edited files, if something differs from what is stored. On disk, the links to the stored files took
//! milliseconds; and there each new file takes up to half a millisecond when others were deleted just
//! before, by earlier restores, say: ext4 uses no inode again for a minute and looks at all of those first.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::Mode,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};

const WORK: &str = "work";
const IMAGE: &str = "image";

/// Two folders, empty at first.
pub struct Scratch(OwnedFd);

impl Scratch {
    /// # Errors
    /// What fsopen(2), fsconfig(2), fsmount(2) and mkdir(2) say.
    pub fn new() -> io::Result<Self> {
        let settings = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&settings, "mode", "0700")?;
        fsconfig_set_string(&settings, "size", "64m")?;
        // Of an encrypted image, nothing goes to a disk. Before Linux 6.4 this is not known.
        match fsconfig_set_flag(&settings, "noswap") {
            Err(Errno::INVAL) | Ok(()) => {}
            Err(errno) => return Err(errno.into()),
        }
        fsconfig_create(&settings)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let scratch = Self(fsmount(&settings, FsMountFlags::FSMOUNT_CLOEXEC, flags)?);
        for folder in [WORK, IMAGE] {
            rustix::fs::mkdirat(&scratch.0, folder, Mode::RWXU)?;
        }
        Ok(scratch)
    }

    /// CRIU's folder, where it is for this process.
    pub fn work(&self) -> PathBuf {
        self.path(WORK)
    }

    /// The folder of the edited image, where it is for this process.
    pub fn image(&self) -> PathBuf {
        self.path(IMAGE)
    }

    fn path(&self, folder: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{folder}", self.0.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_restore_has_folders_of_its_own() {
        let [one, other] = [Scratch::new().unwrap(), Scratch::new().unwrap()];
        fs::write(one.work().join("file"), "content").unwrap();
        assert_eq!(fs::read(one.work().join("file")).unwrap(), b"content");
        for empty in [one.image(), other.work(), other.image()] {
            assert_eq!(fs::read_dir(empty).unwrap().count(), 0);
        }
    }
}
