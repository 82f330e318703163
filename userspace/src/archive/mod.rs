//! Images as files that can be sent: a tar stream, compressed with zstd, that is an OCI image layout
//! and at the same time an archive as checkpointctl reads them.
//!
//! ```text
//! manifest.json          the image's; first, as everything else is measured by it
//! config.dump spec.dump  what checkpointctl wants to know
//! checkpoint/*.img       the files of the folder `criu`, but `stats-dump`, which stands above
//! map/*.img              those of the folder `map`; its links are in the manifest alone
//! blobs/sha256/DIGEST    a hard link to each of these, behind it; the OCI manifest
//! oci-layout index.json  last, since digests come before
//! ```
//!
//! Each file of the image is a blob of its own, so that an archive is written and read in one go:
//! a layer in one piece would need its digest before it begins, and checkpointctl does not look into
//! blobs. Holes of memory files are zeros in the archive, which compress to next to nothing, and
//! become holes again.
//!
//! Invariant: nothing that is read is believed before it was compared; whatever is refused leaves
//! the store as it was.

mod oci;
mod read;
mod sparse;
mod write;

use std::{io, path::PathBuf};

use crate::{edit::STATISTICS, store::StoreError};

pub use self::{
    read::{Import, Imported, Interruption, is_interruption},
    write::{Exported, export},
};

/// The file of an archive that comes first.
const MANIFEST: &str = "manifest.json";
const CONFIG_DUMP: &str = "config.dump";
const SPEC_DUMP: &str = "spec.dump";
const OCI_LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
const BLOBS: &str = "blobs/sha256/";

/// The folders of an archive.
const FOLDERS: [&str; 4] = ["blobs/", BLOBS, "checkpoint/", "map/"];

/// How much is read, hashed and written at a time.
const CHUNK: usize = 128 << 10;

/// Why an archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error("{} has another content than was stored", .path.display())]
    Damaged { path: PathBuf, image: String },
    #[error("{} ends too early: it is a part of an archive", .path.display())]
    CutShort {
        path: PathBuf,
        /// What has arrived was kept.
        is_kept: bool,
    },
    #[error("{} is no archive of an image, or is damaged", .path.display())]
    NoArchive { path: PathBuf, source: io::Error },
    #[error("{} is refused: {entry} {refusal}", .path.display())]
    Refused {
        path: PathBuf,
        entry: String,
        refusal: Refusal,
    },
    #[error("{} is refused", .path.display())]
    Unfit { path: PathBuf, source: StoreError },
    #[error("the image is called {name:?} in its archive, and another image has that name here")]
    NameTaken { name: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("interrupted")]
    Interrupted,
}

/// What is wrong with an entry of an archive.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("is an absolute path")]
    Absolute,
    #[error("leads out of the image")]
    Escape,
    #[error("is a link")]
    Link,
    #[error("is neither a file nor a folder")]
    Special,
    #[error("is there twice")]
    Duplicate,
    #[error("belongs to no image")]
    Unknown,
    #[error("is not where it belongs: {0}")]
    Order(&'static str),
    #[error("is {found} bytes long instead of {expected}")]
    Size { found: u64, expected: u64 },
    #[error("is {found} bytes long; at most {most} make sense")]
    TooLong { found: u64, most: u64 },
    #[error("tells of {bytes} bytes; {most} are allowed")]
    TooLarge { bytes: u64, most: u64 },
    #[error("has another content than its digest")]
    Digest,
    #[error("is missing")]
    Missing,
    #[error("is not valid: {0}")]
    Invalid(String),
    #[error("is followed by something else")]
    Trailing,
}

/// A SHA-256 that is being computed.
#[derive(Clone, Default)]
struct Sha256(sha2::Sha256);

impl Sha256 {
    fn of(bytes: &[u8]) -> String {
        let mut hasher = Self::default();
        hasher.update(bytes);
        hasher.finish()
    }

    fn update(&mut self, bytes: &[u8]) {
        sha2::Digest::update(&mut self.0, bytes);
    }

    /// In hexadecimal.
    fn finish(self) -> String {
        let digest = sha2::Digest::finalize(self.0);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The name in an archive of a file of an image: CRIU's statistics stand beside its images there.
fn name_in_archive(path: &str) -> String {
    match path.strip_prefix("criu/") {
        Some(name) if name == STATISTICS => name.to_owned(),
        Some(name) => format!("checkpoint/{name}"),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests;
