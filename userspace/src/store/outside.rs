//! What an image depends on outside of itself: files that its processes hold, and files that they have
//! read.
//!
//! The first are in the manifest. The others, which may be thousands and are looked at later, are in a
//! file of their own. A file that is another one with the same content, as after an upgrade that changed
//! nothing, is remembered in `known.json`, which is in no digest, so that its content is read only once.

use std::{collections::BTreeMap, fs, os::unix::fs::DirBuilderExt as _, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{Identity, Image, Staging, StoreError, read_error, sync_folder, write_error};
use crate::private;

/// The files that were read.
const READ: &str = "fit/read.json";

/// The files that are others and yet the same.
pub(super) const KNOWN: &str = "known.json";

/// What processes of an image have to do with a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// An image of an earlier version refers to it.
    #[default]
    Referred,
    /// It is mapped: code, or data that does not change.
    Mapped,
    /// It is open to be read.
    Open,
    /// It is open to be written to: what is in it does not matter.
    Written,
    /// It is a folder that is open or that a process works in.
    Folder,
    /// It was read before the freeze.
    Read,
}

/// A file outside of the image, as it was at the capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    pub path: PathBuf,
    #[serde(default)]
    pub role: Role,
    pub bytes: u64,
    /// Modification time in nanoseconds since the Unix epoch.
    pub modified_ns: i64,
    pub inode: u64,
    /// Type and permissions, as of stat(2), where CRIU compares them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// BLAKE3 of the content, in hexadecimal; none if only the identity counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Of an executable or a library, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
}

impl Dependency {
    pub fn identity(&self) -> Identity {
        Identity {
            bytes: self.bytes,
            modified_ns: self.modified_ns,
            inode: self.inode,
        }
    }
}

/// The files that the processes of an image read before they were frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFiles {
    pub files: Vec<Dependency>,
    /// How many more there were that could not be recorded.
    pub unrecorded: u64,
}

impl ReadFiles {
    /// Makes them part of an image.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn write(&self, staging: &Staging) -> Result<(), StoreError> {
        let folder = staging.fit();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(write_error(&folder))?;
        let path = staging.image().join(READ);
        let bytes = serde_json::to_vec(self).map_err(|error| write_error(&path)(error.into()))?;
        private::write(&path, &bytes).map_err(write_error(&path))
    }
}

/// The identity of files that have taken the place of others with the same content.
pub type Known = BTreeMap<PathBuf, Identity>;

impl Image {
    /// The files that were read before the freeze; none if that is not known of the image.
    ///
    /// # Errors
    /// [`StoreError::Read`] or [`StoreError::BadManifest`].
    pub fn read_files(&self) -> Result<Option<ReadFiles>, StoreError> {
        if !self.manifest.files.iter().any(|file| file.name == READ) {
            return Ok(None);
        }
        let path = self.folder.join(READ);
        let bytes = fs::read(&path).map_err(read_error(&path))?;
        let parsed = serde_json::from_slice(&bytes);
        parsed
            .map(Some)
            .map_err(|source| StoreError::BadManifest { path, source })
    }

    /// What was remembered of other files with the same content. Only a help: what cannot be read is
    /// as good as none.
    pub fn known(&self) -> Known {
        let bytes = fs::read(self.folder.join(KNOWN));
        bytes
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Remembers files that are others with the same content.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn remember(&self, known: &Known) -> Result<(), StoreError> {
        let staging = self.stage()?;
        let aside = staging.work().join(KNOWN);
        let bytes = serde_json::to_vec(known).map_err(|error| write_error(&aside)(error.into()))?;
        private::write(&aside, &bytes).map_err(write_error(&aside))?;
        let path = self.folder.join(KNOWN);
        fs::rename(&aside, &path).map_err(write_error(&path))?;
        sync_folder(&self.folder)
    }
}
