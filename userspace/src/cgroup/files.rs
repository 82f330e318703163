//! The files of a group, which differ from one version to the other.
//!
//! Sources: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst and
//! Documentation/scheduler/sched-bwc.rst of the kernel.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    CgroupError,
    hierarchy::{Controller, Place, Places, Version},
    limits::{Cpus, Memory, PERIOD_US},
};
use crate::tree::HostPid;

/// Makes a group; one that is there already is as good.
pub fn create(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::Create {
            path: path.to_path_buf(),
            source: error,
        }),
        _ => Ok(()),
    }
}

pub fn enter(place: &Place, pid: HostPid) -> Result<(), CgroupError> {
    let written = fs::write(place.path.join("cgroup.procs"), pid.to_string());
    written.map_err(|source| CgroupError::Enter {
        pid,
        path: place.path.clone(),
        source,
    })
}

/// Enables the controllers of version 2 from the top down to `parent`, for the groups below.
pub fn enable(tops: &Places, parent: &Places) -> Result<(), CgroupError> {
    for controller in [Controller::Cpu, Controller::Memory] {
        let (Some(top), Some(parent)) = (tops.of(controller), parent.of(controller)) else {
            continue;
        };
        if top.version == Version::V1 {
            continue;
        }
        let up = parent.path.ancestors();
        let mut groups: Vec<_> = up.take_while(|path| path.starts_with(&top.path)).collect();
        groups.reverse();
        for group in groups {
            let path = group.join("cgroup.subtree_control");
            let enabled = read(&path)?;
            if enabled
                .split_whitespace()
                .any(|name| name == controller.name())
            {
                continue;
            }
            fs::write(&path, format!("+{}", controller.name())).map_err(|source| {
                CgroupError::Enable {
                    path: path.clone(),
                    source,
                }
            })?;
        }
    }
    Ok(())
}

pub fn set_cpus(place: &Place, cpus: Cpus) -> Result<(), CgroupError> {
    match place.version {
        Version::V1 => {
            write(
                &place.path.join("cpu.cfs_period_us"),
                &PERIOD_US.to_string(),
            )?;
            write(&place.path.join("cpu.cfs_quota_us"), &cpus.to_v1())
        }
        Version::V2 => write(&place.path.join("cpu.max"), &cpus.to_v2()),
    }
}

pub fn cpus(place: &Place) -> Result<Cpus, CgroupError> {
    let text = |file: &str| read(&place.path.join(file));
    let (file, cpus) = match place.version {
        Version::V1 => {
            let (quota, period) = ("cpu.cfs_quota_us", "cpu.cfs_period_us");
            (quota, Cpus::from_v1(&text(quota)?, &text(period)?))
        }
        Version::V2 => ("cpu.max", Cpus::from_v2(&text("cpu.max")?)),
    };
    cpus.ok_or_else(|| not_understood(place.path.join(file)))
}

/// Limits memory, unless more is in use even after the kernel has reclaimed what it can. Version 1
/// refuses by itself then; version 2 would kill.
pub fn set_memory(place: &Place, memory: Memory) -> Result<(), CgroupError> {
    let in_use = |used| CgroupError::InUse {
        used,
        wanted: memory,
    };
    match place.version {
        Version::V1 => {
            let written = write(&place.path.join("memory.limit_in_bytes"), &memory.to_v1());
            match written {
                Err(CgroupError::Write { source, .. })
                    if source.raw_os_error() == Some(libc::EBUSY) =>
                {
                    Err(in_use(memory_used(place)?))
                }
                other => other,
            }
        }
        Version::V2 => {
            if let (Some(wanted), Some(now)) = (memory.0, memory_used(place)?.0)
                && now > wanted
            {
                // Since Linux 5.19. It fails if less can be reclaimed, which is seen below.
                let excess = (now - wanted).to_string();
                let _ = write(&place.path.join("memory.reclaim"), &excess);
                let left = memory_used(place)?;
                if left.0 > Some(wanted) {
                    return Err(in_use(left));
                }
            }
            write(&place.path.join("memory.max"), &memory.to_v2())
        }
    }
}

pub fn memory_used(place: &Place) -> Result<Memory, CgroupError> {
    number(place, "memory.usage_in_bytes", "memory.current")
}

pub fn memory(place: &Place) -> Result<Memory, CgroupError> {
    number(place, "memory.limit_in_bytes", "memory.max")
}

/// Reads a number of bytes from the file of the version.
fn number(place: &Place, v1: &str, v2: &str) -> Result<Memory, CgroupError> {
    let path = place.path.join(match place.version {
        Version::V1 => v1,
        Version::V2 => v2,
    });
    Memory::parse(&read(&path)?).ok_or_else(|| not_understood(path))
}

/// Whether the kernel has killed for want of memory.
pub fn has_killed(place: &Place) -> bool {
    let text = read(&place.path.join(match place.version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    }));
    text.is_ok_and(|text| counts_kills(&text))
}

fn counts_kills(text: &str) -> bool {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.is_some_and(|count| count.trim() != "0")
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read {
        path: path.to_path_buf(),
        source,
    })
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(|source| CgroupError::Write {
        path: path.to_path_buf(),
        source,
    })
}

fn not_understood(path: PathBuf) -> CgroupError {
    CgroupError::Read {
        path,
        source: io::Error::from(io::ErrorKind::InvalidData),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy of version 2 as ordinary files.
    fn version_2() -> (tempfile::TempDir, Place) {
        let folder = tempfile::tempdir().unwrap();
        let place = Place {
            version: Version::V2,
            path: folder.path().to_path_buf(),
        };
        (folder, place)
    }

    fn put(place: &Place, file: &str, text: &str) {
        fs::write(place.path.join(file), text).unwrap();
    }

    fn shown(place: &Place, file: &str) -> String {
        fs::read_to_string(place.path.join(file)).unwrap_or_default()
    }

    #[test]
    fn version_2_has_a_file_for_each_limit() {
        let (_folder, place) = version_2();
        set_cpus(&place, "0.5".parse().unwrap()).unwrap();
        assert_eq!(shown(&place, "cpu.max"), "50000 100000");
        assert_eq!(cpus(&place).unwrap().number(), Some(0.5));
        put(&place, "memory.current", "4096\n");
        set_memory(&place, "8K".parse().unwrap()).unwrap();
        assert_eq!(shown(&place, "memory.max"), "8192");
        assert_eq!(memory(&place).unwrap(), Memory(Some(8192)));
        set_memory(&place, Memory(None)).unwrap();
        assert_eq!(shown(&place, "memory.max"), "max");
    }

    #[test]
    fn version_2_is_asked_to_reclaim_and_not_made_to_kill() {
        let (_folder, place) = version_2();
        put(&place, "memory.current", "12288\n");
        let refused = set_memory(&place, "8K".parse().unwrap()).unwrap_err();
        let text = refused.to_string();
        assert_eq!(text, "12K of memory are in use, more than the limit of 8K");
        assert_eq!(shown(&place, "memory.reclaim"), "4096");
        assert!(!place.path.join("memory.max").exists());
    }

    #[test]
    fn controllers_are_enabled_down_the_path_where_they_are_not() {
        let (folder, top) = version_2();
        let parent = Place {
            version: Version::V2,
            path: folder.path().join("a/b"),
        };
        fs::create_dir_all(&parent.path).unwrap();
        put(&top, "cgroup.subtree_control", "cpuset cpu io\n");
        put(&top, "a/cgroup.subtree_control", "memory\n");
        put(&parent, "cgroup.subtree_control", "\n");
        let only_memory = |memory| Places {
            cpu: None,
            memory: Some(memory),
        };
        enable(&only_memory(top.clone()), &only_memory(parent.clone())).unwrap();
        assert_eq!(shown(&top, "cgroup.subtree_control"), "+memory");
        assert_eq!(shown(&top, "a/cgroup.subtree_control"), "memory\n");
        assert_eq!(shown(&parent, "cgroup.subtree_control"), "+memory");
    }

    #[test]
    fn kills_for_want_of_memory_are_told_by_both_versions() {
        assert!(counts_kills(
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"
        ));
        assert!(!counts_kills(
            "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"
        ));
        assert!(counts_kills("max 3\noom 1\noom_kill 1\noom_group_kill 0\n"));
    }
}
