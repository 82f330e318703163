//! Records files as they are at a capture.

use std::{
    fs::File,
    num::NonZero,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::{
    build_id::build_id,
    store::{Dependency, Identity, Role, digest},
};

/// Larger files count by their identity alone.
const LARGEST_DIGESTED: u64 = 1 << 30;

/// Where files are the kernel's.
const NO_FILES: [&str; 3] = ["/dev", "/proc", "/sys"];

/// A file to record.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: PathBuf,
    pub role: Role,
    /// What it was when it was used, if it may have changed since.
    pub identity: Option<Identity>,
}

impl Seen {
    /// A file as it is now.
    pub fn now(path: PathBuf, role: Role) -> Self {
        Self {
            path,
            role,
            identity: None,
        }
    }
}

/// Identifies files, with digests of their content. What is gone, or neither a file nor a folder, is left
/// out.
///
/// All processors compute: there is no other thread before and after.
pub fn identify(seen: Vec<Seen>) -> Vec<Dependency> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(seen) = seen.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.extend(describe(seen));
        }
        found
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let mut found: Vec<Dependency> = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let joined = others.into_iter().filter_map(|other| other.join().ok());
        joined.fold(own, |all, found| [all, found].concat())
    });
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Whether a path can be that of a file with a content of its own.
pub fn is_file_system(path: &Path) -> bool {
    !NO_FILES.iter().any(|folder| path.starts_with(folder))
}

fn describe(seen: &Seen) -> Option<Dependency> {
    let path = &seen.path;
    // The format has no others.
    if !is_file_system(path) || path.to_str().is_none() {
        return None;
    }
    let metadata = path.metadata().ok()?;
    let role = match seen.role {
        _ if metadata.is_dir() => Role::Folder,
        _ if !metadata.is_file() => return None,
        role => role,
    };
    let now = Identity::of(&metadata);
    let identity = seen.identity.unwrap_or(now);
    let counts = matches!(role, Role::Mapped | Role::Open | Role::Read);
    let is_digested = counts && identity == now && now.bytes <= LARGEST_DIGESTED;
    let digested = is_digested.then(|| File::open(path).and_then(|file| digest(&file)).ok());
    Some(Dependency {
        path: path.clone(),
        role,
        bytes: identity.bytes,
        modified_ns: identity.modified_ns,
        inode: identity.inode,
        mode: matches!(role, Role::Mapped | Role::Open | Role::Folder).then_some(metadata.mode()),
        blake3: digested.flatten(),
        build_id: (role == Role::Mapped).then(|| build_id(path)).flatten(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_recorded_by_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (a, b) = (write("a", "one"), write("b", "two"));
        let gone = folder.path().join("gone");
        let earlier = Identity {
            bytes: 3,
            modified_ns: 1,
            inode: 1,
        };
        let found = identify(vec![
            Seen::now(b.clone(), Role::Written),
            Seen::now(a.clone(), Role::Read),
            Seen::now(folder.path().into(), Role::Open),
            Seen::now(gone, Role::Read),
            Seen::now("/proc/self/status".into(), Role::Read),
            Seen::now("/dev/null".into(), Role::Written),
            Seen {
                identity: Some(earlier),
                ..Seen::now(b.clone(), Role::Read)
            },
        ]);
        let hash = blake3::hash(b"one").to_hex().to_string();
        let found: Vec<_> = found
            .iter()
            .map(|file| (file.path.as_path(), file.role, file.blake3.clone()))
            .collect();
        let mut expected = vec![
            (folder.path(), Role::Folder, None),
            (a.as_path(), Role::Read, Some(hash)),
            (b.as_path(), Role::Written, None),
            // Changed since it was read: no content of now is the one of then.
            (b.as_path(), Role::Read, None),
        ];
        // Of the same path, either may come first.
        if found[2].1 == Role::Read {
            expected.swap(2, 3);
        }
        assert_eq!(found, expected);
    }
}
