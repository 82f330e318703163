//! What in a frozen tree cannot become part of an image, found before CRIU comes upon it, or does
//! not.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{
    criu::GHOST_LIMIT,
    tree::{self, Member, NsPid},
};

/// Why a tree cannot be captured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// CRIU takes such a process for ended, with all of its threads.
    #[error("{process} goes on although its main thread has ended")]
    Headless { process: String },
    /// No restore could put it into that session.
    #[error("{process} is in session 0, which was begun outside of its pid namespace")]
    Session { process: String },
    /// CRIU gives it a name again, which the first restore takes away from the next.
    #[error("{process} uses {}, which is deleted but has another name left", .path.display())]
    Linked { process: String, path: PathBuf },
    #[error(
        "{process} uses {}, which is deleted and has {} MiB: an image carries up to {}",
        .path.display(), .bytes >> 20, GHOST_LIMIT >> 20
    )]
    TooBig {
        process: String,
        path: PathBuf,
        bytes: u64,
    },
}

/// Looks for what cannot be captured.
///
/// # Errors
/// The first that is found.
pub fn look_for(members: &[Member]) -> Result<(), Obstacle> {
    for member in members {
        let process = tree::label(member.host);
        if tree::is_headless(member.host) {
            return Err(Obstacle::Headless { process });
        }
        if member.session == NsPid(0) {
            return Err(Obstacle::Session { process });
        }
        for (path, file) in deleted_files(member) {
            let bytes = file.blocks() * 512;
            if file.nlink() > 0 {
                return Err(Obstacle::Linked { process, path });
            }
            if bytes > u64::from(GHOST_LIMIT) {
                return Err(Obstacle::TooBig {
                    process,
                    path,
                    bytes,
                });
            }
        }
    }
    Ok(())
}

/// The deleted files that a process has open or mapped, with the names they had.
fn deleted_files(member: &Member) -> Vec<(PathBuf, Metadata)> {
    let process = format!("/proc/{}", member.host);
    ["fd", "map_files"]
        .into_iter()
        .filter_map(|kind| fs::read_dir(format!("{process}/{kind}")).ok())
        .flat_map(|entries| entries.flatten())
        .filter_map(|entry| {
            let link = fs::read_link(entry.path()).ok()?;
            let path = link.to_str()?.strip_suffix(" (deleted)")?;
            // Of the open file itself, whatever its name.
            let file = fs::metadata(entry.path()).ok()?;
            is_in_folder(Path::new(path), &file).then(|| (path.into(), file))
        })
        .collect()
}

/// Whether it was a file in a folder: memory that is shared shows as a deleted file, too.
fn is_in_folder(path: &Path, file: &Metadata) -> bool {
    let folder = path.parent().and_then(|folder| folder.metadata().ok());
    file.is_file() && folder.is_some_and(|folder| folder.dev() == file.dev())
}
