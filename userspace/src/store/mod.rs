//! Immutable, content-addressed images in a folder, with names that point to them.
//!
//! ```text
//! images/DIGEST/manifest.json   what the image is; DIGEST is the BLAKE3 of this file
//! images/DIGEST/seal.json       what identifies the files of the image to the file system
//! images/DIGEST/criu/*.img      CRIU's images; the manifest has the digest of each file
//! images/DIGEST/map/*.img       the same with mapped memory, see `edit::describe_mapped`
//! images/DIGEST/fit/read.json   the files that were read before the freeze, see `outside`
//! images/DIGEST/known.json      files that took the place of others with the same content
//! names/NAME                    a digest
//! staging/                      images being made, each locked by who makes it
//! partial/DIGEST/               what has arrived of an image, see `Store::stage_resumable`
//! encrypted/DIGEST/             an image that is encrypted, see `encrypted`
//! memory/                       what encrypted images hold while they are open, see `memory`
//! instances/                    see the module `instance`
//! kerndat/                      see the module `criu::kerndat`
//! logs/                         CRIU's logs of operations that failed
//! failures/DIGEST               how often an image failed to come back, see `trials`
//! locks/NAME                    held by who makes an image for `warmimg run`
//! ```
//!
//! Invariants: an image is whole or not there, since it is written aside, synced and renamed.
//! Nothing here touches a live process.

mod accept;
mod encrypted;
mod error;
mod hold;
mod manifest;
mod memory;
pub(crate) mod outside;
mod prune;
mod replace;
pub(crate) mod seal;
mod staging;
mod temporary;
mod trials;
mod verify;

use std::{
    fmt, fs,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use self::{
    encrypted::ENCRYPTED,
    error::{read_error, write_error},
    seal::{SEAL, Seal, seal_files},
};
pub use self::{
    encrypted::{Encrypted, Header, Key, Stored},
    error::StoreError,
    hold::{Claim, Hold},
    manifest::{
        Capture, CommandInfo, CriuInfo, ImageFile, Manifest, Moment, Recipe, SCHEMA, now_ms,
    },
    memory::MemoryStore,
    outside::{Dependency, Known, ReadFiles, Role},
    prune::{Choice, Rules},
    seal::{Damage, Identity, digest},
    staging::{Staging, is_free},
    temporary::TemporaryStore,
    verify::Verification,
};

/// The file that tells what an image is.
const MANIFEST: &str = "manifest.json";

/// How many logs of failures are kept.
const KEPT_LOGS: usize = 10;

/// The digest that names an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// That of the image with this manifest.
    pub fn of(manifest: &[u8]) -> Self {
        Self(blake3::hash(manifest).to_hex().to_string())
    }

    /// The first 12 digits: enough to tell images apart.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub digest: Digest,
    pub names: Vec<String>,
    pub manifest: Manifest,
    folder: PathBuf,
}

impl Image {
    /// The folder that has all of it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of CRIU's images.
    pub fn criu_folder(&self) -> PathBuf {
        self.folder.join("criu")
    }

    /// The folder of those with mapped memory, if there is any.
    pub fn map_folder(&self) -> PathBuf {
        self.folder.join("map")
    }

    /// A name if there is one, else the short digest.
    pub fn label(&self) -> &str {
        self.names
            .first()
            .map_or(self.digest.short(), String::as_str)
    }

    /// Makes a folder to prepare something in that is of this image: in memory if that is where it is.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn stage(&self) -> Result<Staging, StoreError> {
        stage_beside(&self.folder)
    }
}

/// Makes a folder to prepare something in where this folder of an image is.
fn stage_beside(folder: &Path) -> Result<Staging, StoreError> {
    let root = folder.ancestors().nth(2).unwrap_or(folder);
    Staging::new(&root.join("staging"))
}

/// A folder of images.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// The folders of a store.
const FOLDERS: [&str; 9] = [
    "images",
    ENCRYPTED,
    "names",
    "staging",
    "instances",
    "kerndat",
    "logs",
    "locks",
    "failures",
];

impl Store {
    /// Opens a store, making it if it is not there, and clears what others left half-made.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let fail = |source| StoreError::Open {
            path: root.to_path_buf(),
            source,
        };
        let root = std::path::absolute(root).map_err(fail)?;
        for folder in FOLDERS {
            let path = root.join(folder);
            if !path.is_dir() {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
                    .map_err(fail)?;
            }
        }
        // An existing folder that the store was put in keeps its mode; the store's own do not.
        let store = Self { root };
        staging::sweep(&store.root.join("staging"));
        store.sweep_memory();
        Ok(store)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where instances keep their state.
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    /// Where CRIU's kernel data is cached.
    pub fn kerndat(&self) -> PathBuf {
        let folder = self.root.join("kerndat");
        // It is looked for in other mount namespaces, where a link leads elsewhere.
        folder.canonicalize().unwrap_or(folder)
    }

    /// Makes a folder to prepare an image in.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn stage(&self) -> Result<Staging, StoreError> {
        Staging::new(&self.root.join("staging"))
    }

    /// Turns what was staged into an image and points a name to it.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Write`] or [`StoreError::Unfit`]; the store is then as it
    /// was.
    pub fn commit(
        &self,
        staging: Staging,
        mut manifest: Manifest,
        name: &str,
    ) -> Result<Image, StoreError> {
        check_name(name)?;
        let image = staging.image();
        let (files, seal) = seal_files(&image)?;
        manifest.files = files;
        let bytes = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| write_error(&image)(error.into()))?;
        let digest = self.place(&staging, &bytes, seal)?;
        self.point(name, &digest)?;
        Ok(Image {
            names: self.names_of(&digest),
            folder: self.folder_of(&digest),
            digest,
            manifest,
        })
    }

    /// Completes a sealed image by its manifest and puts it among the others.
    fn place(
        &self,
        staging: &Staging,
        manifest: &[u8],
        mut seal: Seal,
    ) -> Result<Digest, StoreError> {
        let (image, digest) = (staging.image(), Digest::of(manifest));
        let path = image.join(MANIFEST);
        write_synced(&path, manifest)?;
        let written = path.symlink_metadata().map_err(read_error(&path))?;
        seal.files.insert(MANIFEST.into(), Identity::of(&written));
        seal.write(&image.join(SEAL))?;
        sync_folder(&image)?;
        let folder = self.folder_of(&digest);
        match fs::rename(&image, &folder) {
            // Another was faster, with the very same.
            Err(_) if folder.join(MANIFEST).exists() => {}
            renamed => renamed.map_err(write_error(&folder))?,
        }
        sync_folder(&self.root.join("images"))?;
        Ok(digest)
    }

    fn folder_of(&self, digest: &Digest) -> PathBuf {
        self.root.join("images").join(&digest.0)
    }

    /// Takes an image of a store within this one, and points a name to it.
    ///
    /// # Errors
    /// [`StoreError::Write`]; the store is then as it was.
    pub fn adopt(&self, image: &Image, name: &str) -> Result<Image, StoreError> {
        check_name(name)?;
        let folder = self.folder_of(&image.digest);
        fs::rename(&image.folder, &folder).map_err(write_error(&folder))?;
        sync_folder(&self.root.join("images"))?;
        self.point(name, &image.digest)?;
        Ok(Image {
            names: self.names_of(&image.digest),
            digest: image.digest.clone(),
            manifest: image.manifest.clone(),
            folder,
        })
    }

    fn point(&self, name: &str, digest: &Digest) -> Result<(), StoreError> {
        self.put("names", name, digest.0.as_bytes())
    }

    /// Puts a small file in a folder of the store, in the place of an earlier one.
    fn put(&self, folder: &str, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let staging = self.stage()?;
        let aside = staging.work().join(name);
        write_synced(&aside, bytes)?;
        let folder = self.root.join(folder);
        let path = folder.join(name);
        fs::rename(&aside, &path).map_err(write_error(&path))?;
        sync_folder(&folder)
    }

    /// Finds an image by name, by the beginning of its digest, or, without either, the newest.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn pick(&self, wanted: Option<&str>) -> Result<Stored, StoreError> {
        let Some(wanted) = wanted else {
            let newest = self.list()?.into_iter().max_by_key(Stored::created_ms);
            return newest.ok_or_else(|| StoreError::Empty(self.root.clone()));
        };
        self.stored(&self.locate(wanted)?)
    }

    /// The same for an image that is not encrypted, or open.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn find(&self, wanted: Option<&str>) -> Result<Image, StoreError> {
        self.pick(wanted)?.open()
    }

    /// The digest behind a name or the beginning of a digest; the image itself is not looked at.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn locate(&self, wanted: &str) -> Result<Digest, StoreError> {
        if check_name(wanted).is_ok()
            && let Ok(digest) = fs::read_to_string(self.root.join("names").join(wanted))
        {
            return Ok(Digest(digest));
        }
        let matching: Vec<Digest> = self
            .digests()?
            .into_iter()
            .filter(|digest| digest.0.starts_with(wanted))
            .collect();
        match <[Digest; 1]>::try_from(matching) {
            Ok([digest]) => Ok(digest),
            Err(none) if none.is_empty() || wanted.is_empty() => Err(StoreError::Unknown {
                wanted: wanted.to_owned(),
                store: self.root.clone(),
            }),
            Err(several) => Err(StoreError::Ambiguous {
                prefix: wanted.to_owned(),
                candidates: several
                    .iter()
                    .map(|digest| digest.short().to_owned())
                    .collect(),
            }),
        }
    }

    /// All images, newest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let load = |digest: Digest| {
            let image = self.stored(&digest);
            // One that is damaged must not hide the others, nor keep from removing it.
            image
                .inspect_err(|error| tracing::warn!("{}", crate::doctor::chain(error)))
                .ok()
        };
        let mut images: Vec<Stored> = self.digests()?.into_iter().filter_map(load).collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.created_ms()));
        Ok(images)
    }

    /// Removes an image and the names that point to it; returns the names.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn remove(&self, digest: &Digest) -> Result<Vec<String>, StoreError> {
        let names = self.names_of(digest);
        for name in &names {
            let path = self.root.join("names").join(name);
            fs::remove_file(&path).map_err(write_error(&path))?;
        }
        let encrypted = self.folder_of_encrypted(digest);
        let (kind, folder) = match encrypted.is_dir() {
            true => {
                self.close(digest)?;
                (ENCRYPTED, encrypted)
            }
            false => ("images", self.folder_of(digest)),
        };
        // Out of the images first, so that no half-removed image is ever seen.
        let aside = self.stage()?;
        let target = aside.image().join("removed");
        fs::rename(&folder, &target).map_err(write_error(&folder))?;
        self.succeeded(digest);
        // And for good, before anything of it is removed.
        for folder in ["names", kind] {
            sync_folder(&self.root.join(folder))?;
        }
        Ok(names)
    }

    /// Keeps the log of a failed operation beyond the folder it stands in; returns its place.
    pub fn keep_log(&self, log: &Path) -> Option<PathBuf> {
        let folder = self.root.join("logs");
        let name = log.file_stem()?.to_string_lossy().into_owned();
        let kept = folder.join(format!("{name}-{}.log", now_ms()));
        fs::copy(log, &kept).ok()?;
        let mut logs: Vec<_> = fs::read_dir(&folder)
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        logs.sort_by_key(|path| path.metadata().and_then(|m| m.modified()).ok());
        for old in logs.iter().rev().skip(KEPT_LOGS) {
            let _ = fs::remove_file(old);
        }
        kept.canonicalize().ok()
    }

    /// Reads what an image is.
    ///
    /// # Errors
    /// As of [`Store::stored`], or [`StoreError::Closed`].
    pub fn load(&self, digest: Digest) -> Result<Image, StoreError> {
        self.stored(&digest)?.open()
    }

    fn load_plain(&self, digest: &Digest, folder: PathBuf) -> Result<Image, StoreError> {
        let path = folder.join(MANIFEST);
        let bytes = fs::read(&path).map_err(read_error(&path))?;
        Ok(Image {
            names: self.names_of(digest),
            digest: digest.clone(),
            manifest: parse_manifest(&path, &bytes)?,
            folder,
        })
    }

    /// The digests of all images, also of those that cannot be read.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub fn digests(&self) -> Result<Vec<Digest>, StoreError> {
        let mut digests = Vec::new();
        for folder in ["images", ENCRYPTED] {
            let path = self.root.join(folder);
            let entries = fs::read_dir(&path).map_err(read_error(&path))?;
            let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
            digests.extend(entries.flatten().filter_map(name).map(Digest));
        }
        digests.sort();
        Ok(digests)
    }

    fn names_of(&self, digest: &Digest) -> Vec<String> {
        let entries = fs::read_dir(self.root.join("names"));
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| text == digest.0))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }
}

fn parse_manifest(path: &Path, bytes: &[u8]) -> Result<Manifest, StoreError> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        schema: u32,
    }
    let bad = |source| StoreError::BadManifest {
        path: path.to_path_buf(),
        source,
    };
    let Versioned { schema } = serde_json::from_slice(bytes).map_err(bad)?;
    match schema {
        1..=SCHEMA => serde_json::from_slice(bytes).map_err(bad),
        found => Err(StoreError::OtherSchema {
            path: path.to_path_buf(),
            found,
        }),
    }
}

/// Checks that a name can be a name of an image.
///
/// # Errors
/// [`StoreError::BadName`].
pub fn check_name(name: &str) -> Result<(), StoreError> {
    let is_good = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if is_good {
        Ok(())
    } else {
        Err(StoreError::BadName {
            name: name.to_owned(),
        })
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(write_error(path))
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    fs::File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(write_error(path))
}

#[cfg(test)]
pub(crate) mod tests;

#[cfg(test)]
pub(crate) use self::tests::manifest as sample;
