//! Images that are encrypted.
//!
//! ```text
//! encrypted/DIGEST/image.age     an archive of the image, encrypted; see the module `encryption`
//! encrypted/DIGEST/header.json   what is known of it without a key
//! ```
//!
//! Invariant: an image is open, and then in memory (see `memory`), or closed. What is known of a closed
//! one are its size and time, and nothing of its server.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Digest, Hold, Image, Staging, Store, StoreError, check_name, hold, read_error,
    seal::{self, Damage},
    sync_folder, write_error, write_synced,
};
use crate::watch::CapturePoint;

/// Where encrypted images are.
pub(super) const ENCRYPTED: &str = "encrypted";

pub(super) const CIPHERTEXT: &str = "image.age";
pub(super) const HEADER: &str = "header.json";

/// The version of the header's format.
const SCHEMA: u32 = 1;

/// What an image is encrypted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// The public keys of those who can open it.
    Recipients,
    Passphrase,
}

impl Key {
    /// What one needs to open it.
    pub fn opened_by(self) -> &'static str {
        match self {
            Self::Recipients => "identity",
            Self::Passphrase => "passphrase",
        }
    }
}

/// What is known of an encrypted image without a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    schema: u32,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    pub point: CapturePoint,
    /// The size of its files when it is open.
    pub image_bytes: u64,
    /// The size and the BLAKE3 of what is encrypted.
    pub bytes: u64,
    pub blake3: String,
    pub key: Key,
}

impl Header {
    /// That of an image which was encrypted to so many bytes with this BLAKE3.
    pub fn new(image: &Image, key: Key, bytes: u64, blake3: String) -> Self {
        Self {
            schema: SCHEMA,
            created_ms: image.manifest.created_ms,
            point: image.manifest.capture.point,
            image_bytes: image.manifest.image_bytes(),
            bytes,
            blake3,
            key,
        }
    }

    /// Reads one of `path`.
    ///
    /// # Errors
    /// [`StoreError::BadManifest`] or [`StoreError::OtherSchema`].
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        let header: Self =
            serde_json::from_slice(bytes).map_err(|source| StoreError::BadManifest {
                path: path.to_path_buf(),
                source,
            })?;
        match header.schema {
            SCHEMA => Ok(header),
            found => Err(StoreError::OtherSchema {
                path: path.to_path_buf(),
                found,
            }),
        }
    }
}

/// An encrypted image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encrypted {
    pub digest: Digest,
    pub names: Vec<String>,
    pub header: Header,
    /// What it holds, if it is open.
    pub opened: Option<Box<Image>>,
    folder: PathBuf,
}

impl Encrypted {
    /// The file that is encrypted.
    pub fn ciphertext(&self) -> PathBuf {
        self.folder.join(CIPHERTEXT)
    }

    /// A name if there is one, else the short digest.
    pub fn label(&self) -> &str {
        self.names
            .first()
            .map_or(self.digest.short(), String::as_str)
    }

    /// Keeps it from being removed.
    ///
    /// # Errors
    /// As of [`Image::hold`].
    pub fn hold(&self) -> Result<Hold, StoreError> {
        hold::share(&self.folder)
    }

    /// Whether the encrypted file is the one that was stored.
    pub fn damage(&self) -> Option<Damage> {
        let path = self.ciphertext();
        let found = match seal::identify(&path) {
            Ok(identity) => identity.bytes,
            Err(damage) => return Some(damage),
        };
        let expected = self.header.bytes;
        if found != expected {
            return Some(Damage::Size { found, expected });
        }
        match File::open(&path).and_then(|file| seal::digest(&file)) {
            Ok(blake3) => (blake3 != self.header.blake3).then_some(Damage::Content),
            Err(error) => Some(Damage::unreadable(&error)),
        }
    }
}

/// An image of a store, encrypted or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    Plain(Box<Image>),
    Encrypted(Encrypted),
}

impl Stored {
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Plain(image) => &image.digest,
            Self::Encrypted(encrypted) => &encrypted.digest,
        }
    }

    pub fn names(&self) -> &[String] {
        match self {
            Self::Plain(image) => &image.names,
            Self::Encrypted(encrypted) => &encrypted.names,
        }
    }

    /// Milliseconds since the Unix epoch.
    pub fn created_ms(&self) -> u64 {
        match self {
            Self::Plain(image) => image.manifest.created_ms,
            Self::Encrypted(encrypted) => encrypted.header.created_ms,
        }
    }

    /// What it takes on disk.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Plain(image) => image.manifest.image_bytes(),
            Self::Encrypted(encrypted) => encrypted.header.bytes,
        }
    }

    pub fn point(&self) -> CapturePoint {
        match self {
            Self::Plain(image) => image.manifest.capture.point,
            Self::Encrypted(encrypted) => encrypted.header.point,
        }
    }

    /// A name if there is one, else the short digest.
    pub fn label(&self) -> &str {
        match self {
            Self::Plain(image) => image.label(),
            Self::Encrypted(encrypted) => encrypted.label(),
        }
    }

    /// Keeps it from being removed.
    ///
    /// # Errors
    /// As of [`Image::hold`].
    pub fn hold(&self) -> Result<Hold, StoreError> {
        match self {
            Self::Plain(image) => image.hold(),
            Self::Encrypted(encrypted) => encrypted.hold(),
        }
    }

    /// The image itself, unless it is encrypted and closed.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub fn open(self) -> Result<Image, StoreError> {
        match self {
            Self::Plain(image) => Ok(*image),
            Self::Encrypted(encrypted) => {
                let image = encrypted.label().to_owned();
                let Encrypted { digest, header, .. } = encrypted;
                let closed = StoreError::Closed {
                    image,
                    digest,
                    key: header.key,
                };
                encrypted.opened.map(|image| *image).ok_or(closed)
            }
        }
    }
}

impl Store {
    /// An image by its digest, encrypted or not.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::BadManifest`] or [`StoreError::OtherSchema`].
    pub fn stored(&self, digest: &Digest) -> Result<Stored, StoreError> {
        match self.encrypted(digest)? {
            Some(encrypted) => Ok(Stored::Encrypted(encrypted)),
            None => self
                .load_plain(digest, self.folder_of(digest))
                .map(|image| Stored::Plain(Box::new(image))),
        }
    }

    /// The encrypted image with this digest, if it is one.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::BadManifest`] or [`StoreError::OtherSchema`].
    pub fn encrypted(&self, digest: &Digest) -> Result<Option<Encrypted>, StoreError> {
        let folder = self.folder_of_encrypted(digest);
        if !folder.is_dir() {
            return Ok(None);
        }
        let path = folder.join(HEADER);
        let bytes = fs::read(&path).map_err(read_error(&path))?;
        let opened = self.folder_in_memory(digest);
        let opened = match opened.is_dir() {
            true => Some(Box::new(self.load_plain(digest, opened)?)),
            false => None,
        };
        Ok(Some(Encrypted {
            digest: digest.clone(),
            names: self.names_of(digest),
            header: Header::parse(&path, &bytes)?,
            opened,
            folder,
        }))
    }

    /// A file to encrypt an image to, in a folder to prepare it in.
    pub fn ciphertext_in(&self, staging: &Staging) -> PathBuf {
        staging.work().join(CIPHERTEXT)
    }

    /// Puts an image that was encrypted to [`Store::ciphertext_in`] among the others, and points a name to
    /// it.
    ///
    /// # Errors
    /// [`StoreError::BadName`], [`StoreError::Read`] or [`StoreError::Write`]; the store is then as it was.
    pub fn commit_encrypted(
        &self,
        staging: Staging,
        digest: &Digest,
        header: &Header,
        name: Option<&str>,
    ) -> Result<(), StoreError> {
        name.map_or(Ok(()), check_name)?;
        let aside = staging.work();
        let bytes = serde_json::to_vec_pretty(header);
        let path = aside.join(HEADER);
        let bytes = bytes.map_err(|error| write_error(&path)(error.into()))?;
        write_synced(&path, &bytes)?;
        let ciphertext = aside.join(CIPHERTEXT);
        File::open(&ciphertext)
            .and_then(|file| file.sync_all())
            .map_err(write_error(&ciphertext))?;
        sync_folder(&aside)?;
        let folder = self.folder_of_encrypted(digest);
        match fs::rename(&aside, &folder) {
            // Another was faster, with the very same image.
            Err(_) if folder.join(HEADER).exists() => {}
            renamed => renamed.map_err(write_error(&folder))?,
        }
        sync_folder(&self.root.join(ENCRYPTED))?;
        name.map_or(Ok(()), |name| self.point(name, digest))
    }

    /// Whether there is an image with this digest.
    pub fn holds(&self, digest: &Digest) -> bool {
        self.folder_of(digest).is_dir() || self.folder_of_encrypted(digest).is_dir()
    }

    pub(super) fn folder_of_encrypted(&self, digest: &Digest) -> PathBuf {
        self.root.join(ENCRYPTED).join(digest.as_str())
    }
}
