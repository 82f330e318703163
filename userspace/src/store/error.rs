//! Why the store cannot give or take an image.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{Damage, Digest, Key, SCHEMA};
use crate::edit::EditError;

/// Why the store cannot give or take an image.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use the store {}", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("no image is called {wanted:?} in {}", .store.display())]
    Unknown { wanted: String, store: PathBuf },
    #[error("there is no image yet in {}", .0.display())]
    Empty(PathBuf),
    #[error("{prefix:?} is the beginning of several digests: {}", .candidates.join(", "))]
    Ambiguous {
        prefix: String,
        candidates: Vec<String>,
    },
    #[error("the image {0} has no name, and its digest is about to change")]
    Unnamed(Digest),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error("{name:?} is not a name for an image")]
    BadName { name: String },
    #[error("the manifest {} is not valid", .path.display())]
    BadManifest {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("the manifest {} has schema {found}; this warmimg reads up to {SCHEMA}", .path.display())]
    OtherSchema { path: PathBuf, found: u32 },
    #[error("{} {damage}", .path.display())]
    Damaged {
        path: PathBuf,
        /// What the image is called.
        image: String,
        damage: Damage,
    },
    #[error("{} cannot be stored: {reason}", .path.display())]
    Unfit { path: PathBuf, reason: &'static str },
    /// Of an image that came from elsewhere.
    #[error("{file} {damage}")]
    Foreign { file: String, damage: Damage },
    #[error("another import of the image is under way")]
    Arriving(Digest),
    #[error("the image {image} is encrypted, and is not open")]
    Closed {
        image: String,
        digest: Digest,
        key: Key,
    },
    #[error("cannot have a file system in memory at {}", .path.display())]
    Memory { path: PathBuf, source: io::Error },
}

pub(super) fn read_error(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Read {
        path: path.to_path_buf(),
        source,
    }
}

pub(super) fn write_error(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Write {
        path: path.to_path_buf(),
        source,
    }
}
