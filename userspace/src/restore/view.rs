//! Where an image is edited for one restore: a file system in memory of its own, which is mounted nowhere
//! and goes with the last who has it open. On disk, the links to the stored files took milliseconds, and so
//! did files that are written anew.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::{
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};

/// The folder of an edited image, empty at first.
pub struct View(OwnedFd);

impl View {
    /// # Errors
    /// What fsopen(2), fsconfig(2) and fsmount(2) say.
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
        Ok(Self(fsmount(
            &settings,
            FsMountFlags::FSMOUNT_CLOEXEC,
            flags,
        )?))
    }

    /// Where it is for this process.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_view_is_a_folder_of_its_own() {
        let [one, other] = [View::new().unwrap(), View::new().unwrap()];
        fs::write(one.path().join("file"), "content").unwrap();
        assert_eq!(fs::read(one.path().join("file")).unwrap(), b"content");
        assert!(!other.path().join("file").exists());
    }
}
