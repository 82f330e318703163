//! Files that an image must carry because nothing keeps them where they are.
//!
//! Some servers map a file of their own in a temporary folder: every JVM has its counters in
//! `/tmp/hsperfdata_USER/PID`, which the next JVM to start removes as stale. CRIU would look for
//! it there at each restore. CRIU does carry a file that has been deleted, so these are deleted
//! while the tree stands still; each restored copy then has one of its own, too.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use procfs::process::{MMPermissions, MMapPath, Process};

use crate::tree::{HostPid, Member};

/// Folders whose contents nobody counts on.
const TEMPORARY: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// Deletes the temporary files that the frozen processes share by mapping and made themselves,
/// after `since`, and that no other process has mapped. Returns them.
///
/// # Errors
/// If a file cannot be deleted.
pub fn delete_mapped(members: &[Member], since: SystemTime) -> io::Result<Vec<PathBuf>> {
    let mut deleted = Vec::new();
    for path in members
        .iter()
        .flat_map(shared_files)
        .collect::<BTreeSet<_>>()
    {
        if is_own(&path, since) && !is_mapped_outside(&path, members) {
            fs::remove_file(&path)?;
            deleted.push(path);
        }
    }
    Ok(deleted)
}

/// The files of which a process has a shared mapping.
fn shared_files(member: &Member) -> Vec<PathBuf> {
    let Ok(maps) = Process::new(member.host.0).and_then(|process| process.maps()) else {
        return vec![];
    };
    maps.into_iter()
        .filter(|map| map.perms.contains(MMPermissions::SHARED))
        .filter_map(|map| match map.pathname {
            MMapPath::Path(path) => Some(path),
            _ => None,
        })
        .collect()
}

/// Whether a process that is not of the tree has a mapping of a file.
fn is_mapped_outside(path: &Path, members: &[Member]) -> bool {
    let processes = procfs::process::all_processes().into_iter().flatten();
    let outside = processes.flatten().filter(|process| {
        let pid = HostPid(process.pid);
        !members.iter().any(|member| member.host == pid)
    });
    let maps = outside.filter_map(|process| process.maps().ok()).flatten();
    maps.into_iter()
        .any(|map| matches!(map.pathname, MMapPath::Path(mapped) if mapped == path))
}

/// A file in a temporary folder, under one name only, and made after `since`.
fn is_own(path: &Path, since: SystemTime) -> bool {
    let in_temporary = TEMPORARY.iter().any(|folder| path.starts_with(folder));
    let metadata = path
        .symlink_metadata()
        .ok()
        .filter(|m| m.is_file() && m.nlink() == 1);
    let made = metadata.and_then(|metadata| metadata.created().ok());
    in_temporary && made.is_some_and(|made| made >= since)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_new_files_in_temporary_folders_are_own() {
        let hour = Duration::from_secs(3600);
        let file = tempfile::NamedTempFile::new_in("/tmp").unwrap();
        assert!(is_own(file.path(), SystemTime::now() - hour));
        assert!(!is_own(file.path(), SystemTime::now() + hour));
        assert!(!is_own(Path::new("/etc/passwd"), SystemTime::UNIX_EPOCH));
        assert!(!is_own(
            Path::new("/tmp/no/such/file"),
            SystemTime::UNIX_EPOCH
        ));
    }
}
