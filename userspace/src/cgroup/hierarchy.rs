//! Where on this host each controller lives: on a hierarchy of version 1, of version 2, or nowhere.
//!
//! A host may have them on either, or on both ("hybrid"), one controller on one of them only. What
//! is read of the host is separate from what decides.

use std::{
    fs,
    path::{Path, PathBuf},
};

use procfs::{
    FromBufRead as _,
    process::{MountInfo, MountInfos},
};
use serde::{Deserialize, Serialize};

use super::CgroupError;

/// What to do where a controller is nowhere.
pub const NO_CONTROLLER_FIX: &str = "mount its hierarchy; on version 2 it must be among the \
    cgroup.controllers at the top, for which some kernels must be booted with cgroup_enable=memory";

/// What limits something, by its name in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    Cpu,
    Memory,
}

impl Controller {
    /// As the kernel's files have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
        }
    }
}

/// The version of a hierarchy, which decides on the names and contents of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    V1,
    V2,
}

/// A group in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub version: Version,
    pub path: PathBuf,
}

/// A group, by the controllers that have it: the same place for both, or one each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    pub cpu: Option<Place>,
    pub memory: Option<Place>,
}

impl Places {
    /// Finds the top of the hierarchy of each controller.
    ///
    /// # Errors
    /// [`CgroupError::Mounts`].
    pub fn find() -> Result<Self, CgroupError> {
        let bytes = fs::read("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        let mounts = MountInfos::from_buf_read(&bytes[..])
            .map_err(|error| CgroupError::Mounts(std::io::Error::other(error)))?;
        let controllers = unified(&mounts)
            .and_then(|top| fs::read_to_string(top.join("cgroup.controllers")).ok())
            .unwrap_or_default();
        Ok(decide(&mounts, &controllers))
    }

    /// The place by which a controller has the group.
    pub fn of(&self, controller: Controller) -> Option<&Place> {
        match controller {
            Controller::Cpu => self.cpu.as_ref(),
            Controller::Memory => self.memory.as_ref(),
        }
    }

    /// Each place once.
    pub fn each(&self) -> impl Iterator<Item = &Place> {
        let second = self.memory.as_ref();
        let second = second.filter(|&place| self.cpu.as_ref() != Some(place));
        self.cpu.iter().chain(second)
    }

    /// The groups of this name, or path, below.
    pub fn join(&self, below: impl AsRef<Path>) -> Self {
        let join = |place: &Place| Place {
            version: place.version,
            path: place.path.join(&below),
        };
        Self {
            cpu: self.cpu.as_ref().map(join),
            memory: self.memory.as_ref().map(join),
        }
    }
}

/// Decides from the mounts and the controllers of the hierarchy of version 2.
fn decide(mounts: &MountInfos, v2_controllers: &str) -> Places {
    let place = |controller| locate(mounts, v2_controllers, controller);
    Places {
        cpu: place(Controller::Cpu),
        memory: place(Controller::Memory),
    }
}

fn locate(mounts: &MountInfos, v2_controllers: &str, controller: Controller) -> Option<Place> {
    let name = controller.name();
    let has =
        |mount: &&MountInfo| mount.fs_type == "cgroup" && mount.super_options.contains_key(name);
    let v1 = writable_first(mounts.iter().filter(has)).map(|path| Place {
        version: Version::V1,
        path,
    });
    let is_in_v2 = v2_controllers.split_whitespace().any(|word| word == name);
    v1.or_else(|| {
        is_in_v2.then_some(Place {
            version: Version::V2,
            path: unified(mounts)?,
        })
    })
}

/// The top of the hierarchy of version 2.
fn unified(mounts: &MountInfos) -> Option<PathBuf> {
    writable_first(mounts.iter().filter(|mount| mount.fs_type == "cgroup2"))
}

/// A container may have a hierarchy both read-only and, mounted for it, writable.
fn writable_first<'a>(mounts: impl Iterator<Item = &'a MountInfo>) -> Option<PathBuf> {
    let is_read_only = |mount: &&MountInfo| mount.mount_options.contains_key("ro");
    let mount = mounts.min_by_key(is_read_only)?;
    Some(mount.mount_point.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(mountinfo: &str, v2_controllers: &str) -> Places {
        let mounts = MountInfos::from_buf_read(mountinfo.as_bytes()).unwrap();
        super::decide(&mounts, v2_controllers)
    }

    fn place(version: Version, path: &str) -> Option<Place> {
        let path = path.into();
        Some(Place { version, path })
    }

    const SYSTEMD: &str = "\
22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:14 - proc proc rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";

    #[test]
    fn on_a_host_with_systemd_both_are_at_the_same_place_of_version_2() {
        let places = decide(SYSTEMD, "cpuset cpu io memory hugetlb pids rdma misc\n");
        assert_eq!(places.cpu, place(Version::V2, "/sys/fs/cgroup"));
        assert_eq!(places.memory, places.cpu);
        assert_eq!(places.each().count(), 1);
        let below = places.join("warmimg");
        let path = &below.each().next().unwrap().path;
        assert_eq!(path, Path::new("/sys/fs/cgroup/warmimg"));
    }

    #[test]
    fn a_controller_that_is_switched_off_is_nowhere() {
        let places = decide(SYSTEMD, "cpuset cpu io pids\n");
        assert_eq!(places.memory, None);
        assert!(places.of(Controller::Cpu).is_some());
    }

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn on_a_hybrid_host_each_is_where_it_is_mounted() {
        let places = decide(HYBRID, "hugetlb\n");
        assert_eq!(places.cpu, place(Version::V1, "/sys/fs/cgroup/cpu"));
        assert_eq!(places.memory, place(Version::V1, "/sys/fs/cgroup/memory"));
        assert_eq!(places.each().count(), 2);
        // One on each version is possible too.
        let without_memory = HYBRID.replace("cgroup rw,memory", "cgroup rw,pids");
        let places = decide(&without_memory, "memory\n");
        assert_eq!(places.cpu, place(Version::V1, "/sys/fs/cgroup/cpu"));
        assert_eq!(places.memory, place(Version::V2, "/sys/fs/cgroup/unified"));
    }

    #[test]
    fn on_a_host_of_version_1_controllers_may_share_a_hierarchy() {
        let text = "\
33 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
36 24 0:31 / /sys/fs/cgroup/memory rw,nosuid shared:18 - cgroup cgroup rw,memory
";
        let places = decide(text, "");
        assert_eq!(places.cpu, place(Version::V1, "/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(places.memory, place(Version::V1, "/sys/fs/cgroup/memory"));
        let together = "33 24 0:28 / /cg rw - cgroup cgroup rw,cpu,memory\n";
        assert_eq!(decide(together, "").each().count(), 1);
    }

    #[test]
    fn in_a_container_the_writable_mount_is_taken() {
        let read_only = "\
2 1 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate
";
        let only = decide(read_only, "cpu memory");
        assert_eq!(only.cpu, place(Version::V2, "/sys/fs/cgroup"));
        let writable = "3 1 0:26 / /mnt rw,relatime - cgroup2 cgroup rw,nsdelegate\n";
        let both = decide(&format!("{read_only}{writable}"), "cpu memory");
        assert_eq!(both.cpu, place(Version::V2, "/mnt"));
        assert_eq!(decide("", ""), Places::default());
    }
}
