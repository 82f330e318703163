//! Tells whether the files of an image are still those that were stored.
//!
//! The manifest has the digest of each. To compute all of them takes about as long as a restore, so
//! `seal.json` beside it has what identifies the files to the file system: that is compared in
//! microseconds, at each restore.
//!
//! Invariant: `seal.json` identifies files as they were before their digests were computed, so that
//! whatever is changed afterwards is noticed. A link leads to a regular file of the image.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, FileType, Metadata, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown},
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Image, ImageFile, MANIFEST, StoreError, read_error, sync_folder, write_error, write_synced,
};

/// The file that identifies the others.
pub(super) const SEAL: &str = "seal.json";

/// The version of its format. Any other is taken for none of ours.
const SCHEMA: u32 = 1;

/// What is wrong with a file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Damage {
    #[error("is missing")]
    Missing,
    #[error("is {found} bytes long instead of {expected}")]
    Size { found: u64, expected: u64 },
    #[error("has changed since it was stored")]
    Changed,
    #[error("has another content than was stored")]
    Content,
    #[error("is no regular file")]
    NoFile,
    #[error("is no link to {expected}")]
    Link { expected: String },
    #[error("is a link to {target}, which is no file of the image")]
    Outside { target: String },
    #[error("cannot be read: {reason}")]
    Unreadable { reason: String },
    #[error("is not valid: {reason}")]
    Invalid { reason: String },
    #[error("is not part of the image")]
    Unlisted,
    /// Of CRIU's images.
    #[error("is no image that CRIU could read: {what} (record {record})")]
    Malformed { record: usize, what: &'static str },
}

impl Damage {
    pub(super) fn unreadable(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            _ => Self::Unreadable {
                reason: error.to_string(),
            },
        }
    }
}

/// What tells a file from any other that takes its place, and from itself once it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub bytes: u64,
    /// Modification time in nanoseconds since the Unix epoch.
    pub modified_ns: i64,
    pub inode: u64,
}

impl Identity {
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            modified_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
            inode: metadata.ino(),
        }
    }
}

/// The identity of each regular file of an image, the manifest included, by its path there.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seal {
    schema: u32,
    pub files: BTreeMap<String, Identity>,
}

impl Default for Seal {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            files: BTreeMap::new(),
        }
    }
}

impl Seal {
    /// Reads the seal of the image in a folder; images of earlier versions have none.
    pub fn read(folder: &Path) -> Result<Option<Self>, Damage> {
        let bytes = match fs::read(folder.join(SEAL)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Damage::unreadable(&error)),
        };
        Self::parse(&bytes).map(Some)
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let invalid = |reason| Damage::Invalid { reason };
        let seal: Self =
            serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        match seal.schema {
            SCHEMA => Ok(seal),
            other => Err(invalid(format!("it has schema {other}"))),
        }
    }

    pub fn write(&self, path: &Path) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).map_err(|error| write_error(path)(error.into()))?;
        write_synced(path, &bytes)
    }
}

impl Image {
    /// Checks that the files are those that were stored, without reading them.
    ///
    /// Without a seal, their sizes have to do.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for the first that is not.
    pub fn check(&self) -> Result<(), StoreError> {
        let damaged = |name: &str, damage| StoreError::Damaged {
            image: self.label().to_owned(),
            path: self.folder.join(name),
            damage,
        };
        let seal = Seal::read(&self.folder).map_err(|damage| damaged(SEAL, damage))?;
        let files = seal.unwrap_or_default().files;
        if let Some(stored) = files.get(MANIFEST) {
            let found = identify(&self.folder.join(MANIFEST));
            match found.map_err(|damage| damaged(MANIFEST, damage))? {
                found if found == *stored => {}
                _ => return Err(damaged(MANIFEST, Damage::Changed)),
            }
        }
        for file in &self.manifest.files {
            let name = file.path();
            compare(&self.folder.join(&*name), file, files.get(&*name))
                .map_err(|damage| damaged(&name, damage))?;
        }
        Ok(())
    }
}

fn compare(path: &Path, file: &ImageFile, stored: Option<&Identity>) -> Result<(), Damage> {
    if let Some(target) = &file.link {
        return compare_link(path, &file.path(), target).map(drop);
    }
    let found = identify(path)?;
    compare_size(&found, file)?;
    match stored {
        Some(stored) if *stored != found => Err(Damage::Changed),
        _ => Ok(()),
    }
}

/// Checks a link called `name` in the image; returns the path in the image that it leads to.
pub(super) fn compare_link(path: &Path, name: &str, expected: &str) -> Result<String, Damage> {
    match fs::read_link(path) {
        Ok(found) if found.as_os_str() == expected => {}
        // That is what readlink(2) says of what is no link.
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => {
            return Err(Damage::unreadable(&error));
        }
        _ => {
            return Err(Damage::Link {
                expected: expected.to_owned(),
            });
        }
    }
    destination(name, expected).ok_or_else(|| Damage::Outside {
        target: expected.to_owned(),
    })
}

pub(super) fn compare_size(found: &Identity, file: &ImageFile) -> Result<(), Damage> {
    match (found.bytes, file.bytes) {
        (found, expected) if found == expected => Ok(()),
        (found, expected) => Err(Damage::Size { found, expected }),
    }
}

/// The identity of what must be a regular file.
pub(super) fn identify(path: &Path) -> Result<Identity, Damage> {
    let metadata = path
        .symlink_metadata()
        .map_err(|error| Damage::unreadable(&error))?;
    match metadata.is_file() {
        true => Ok(Identity::of(&metadata)),
        false => Err(Damage::NoFile),
    }
}

/// The BLAKE3 of a file, in hexadecimal.
///
/// # Errors
/// What reading says.
pub fn digest(file: &File) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Where a link called `name` in the image leads to, as a path in the image; none if it may lead
/// out of it.
///
/// A `..` that comes after a name could be that of another folder, where that name is a link: it
/// is none of an image.
pub(super) fn destination(name: &str, target: &str) -> Option<String> {
    let mut folders: Vec<&str> = name.split('/').collect();
    folders.pop();
    let mut has_name = false;
    for component in Path::new(target).components() {
        match component {
            Component::ParentDir if !has_name => drop(folders.pop()?),
            Component::Normal(part) => {
                folders.push(part.to_str()?);
                has_name = true;
            }
            Component::CurDir => {}
            _ => return None,
        }
    }
    has_name.then(|| folders.join("/"))
}

/// Makes the files of an image private to root, syncs them and computes their digests.
pub(super) fn seal_files(folder: &Path) -> Result<(Vec<ImageFile>, Seal), StoreError> {
    let mut files = Vec::new();
    let mut seal = Seal::default();
    for (path, kind) in walk(folder)? {
        let whole = folder.join(&path);
        let unfit = |reason| StoreError::Unfit {
            path: whole.clone(),
            reason,
        };
        if kind.is_dir() {
            sync_folder(&whole)?;
            continue;
        }
        let name = path.to_str().ok_or_else(|| unfit("its name is no text"))?;
        // Without a folder, it would be taken for a file of CRIU's.
        if !name.contains('/') {
            return Err(unfit("it is in no folder of the image"));
        }
        if kind.is_file() {
            let (file, identity) = seal_file(&whole, name)?;
            files.push(file);
            seal.files.insert(name.to_owned(), identity);
        } else if kind.is_symlink() {
            let target = fs::read_link(&whole).map_err(read_error(&whole))?;
            let target = target.to_str().ok_or_else(|| unfit(LEADS_OUT))?;
            files.push(ImageFile::link(name, target));
        } else {
            return Err(unfit("it is neither a file nor a link"));
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let names = regular_names(&files);
    for file in &files {
        let Some(target) = &file.link else { continue };
        let leads_to = destination(&file.name, target);
        if !leads_to.is_some_and(|name| names.contains(&name)) {
            return Err(StoreError::Unfit {
                path: folder.join(&file.name),
                reason: LEADS_OUT,
            });
        }
    }
    Ok((files, seal))
}

const LEADS_OUT: &str = "it is a link to what is no file of the image";

fn seal_file(path: &Path, name: &str) -> Result<(ImageFile, Identity), StoreError> {
    let file = File::open(path).map_err(read_error(path))?;
    fchown(&file, Some(0), Some(0)).map_err(write_error(path))?;
    file.set_permissions(Permissions::from_mode(0o600))
        .map_err(write_error(path))?;
    file.sync_all().map_err(write_error(path))?;
    let identity = Identity::of(&file.metadata().map_err(read_error(path))?);
    let sealed = ImageFile {
        name: name.to_owned(),
        bytes: identity.bytes,
        blake3: digest(&file).map_err(read_error(path))?,
        link: None,
    };
    Ok((sealed, identity))
}

/// The paths in the image that links may lead to.
pub(super) fn regular_names(files: &[ImageFile]) -> BTreeSet<String> {
    let regular = files.iter().filter(|file| file.link.is_none());
    regular.map(|file| file.path().into_owned()).collect()
}

/// All that is in a folder and those below, by its path in it. Links are not followed.
pub(super) fn walk(root: &Path) -> Result<Vec<(PathBuf, FileType)>, StoreError> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let whole = root.join(&folder);
        for entry in fs::read_dir(&whole).map_err(read_error(&whole))? {
            let entry = entry.map_err(read_error(&whole))?;
            let kind = entry.file_type().map_err(read_error(&entry.path()))?;
            let path = folder.join(entry.file_name());
            if kind.is_dir() {
                folders.push(path.clone());
            }
            found.push((path, kind));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_files_of_the_image_or_nowhere() {
        for (target, expected) in [
            ("../criu/a.img", Some("criu/a.img")),
            ("a.img", Some("map/a.img")),
            ("./a.img", Some("map/a.img")),
            ("../../a.img", None),
            ("../../../etc/passwd", None),
            ("/etc/passwd", None),
            ("", None),
            ("..", None),
            // What `criu` is a link to is not known here.
            ("../criu/../a.img", None),
        ] {
            let found = destination("map/a", target);
            assert_eq!(found.as_deref(), expected, "{target}");
        }
    }
}
