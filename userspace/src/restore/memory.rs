//! Whether the memory of an image is mapped or copied.

use rustix::fs::{StatVfsMountFlags, statvfs};
use serde::{Deserialize, Serialize};

use super::RestoreError;
use crate::{
    edit::{self, Mapped},
    guard::{self, Guarded},
    store::Image,
};

/// How the memory of a server comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryMode {
    /// Mapped where it can be
    #[default]
    Auto,
    /// Copied from the image
    Copy,
    /// Mapped from the image, and shared with all copies of it until it is written to
    Map,
}

/// Why memory is copied that could be mapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmappable {
    #[error("the image was made by a version that did not prepare it for that")]
    Unprepared,
    #[error("the store is on a file system that is mounted noexec")]
    NoExec,
    #[error(transparent)]
    Unguarded(#[from] guard::Unsupported),
}

/// CRIU's names of the files that memory is mapped from.
pub(super) fn names(guarded: &Guarded) -> impl Iterator<Item = String> {
    (1..=guarded.files.len()).map(edit::inherited_name)
}

/// What the server got its memory by.
#[derive(Clone, Debug, Default)]
pub struct MemoryUse {
    /// How much is mapped, in bytes.
    pub mapped_bytes: u64,
    /// Why nothing is although it might be.
    pub copied_because: Option<Unmappable>,
}

/// What is to be mapped: nothing if all is to be copied.
pub(super) fn choose(
    image: &Image,
    mode: MemoryMode,
) -> Result<(Option<Guarded>, MemoryUse), RestoreError> {
    if mode == MemoryMode::Copy {
        return Ok((None, MemoryUse::default()));
    }
    let mapped_bytes = |mapped: &Mapped| mapped.bytes;
    match mappable(image)? {
        Ok(guarded) => {
            let memory = MemoryUse {
                mapped_bytes: image.manifest.mapped.as_ref().map_or(0, mapped_bytes),
                copied_because: None,
            };
            Ok(((!guarded.files.is_empty()).then_some(guarded), memory))
        }
        Err(reason) if mode == MemoryMode::Map => Err(RestoreError::Unmappable(reason)),
        Err(reason) => {
            let memory = MemoryUse {
                mapped_bytes: 0,
                copied_because: Some(reason),
            };
            Ok((None, memory))
        }
    }
}

fn mappable(image: &Image) -> Result<Result<Guarded, Unmappable>, RestoreError> {
    let Some(mapped) = &image.manifest.mapped else {
        return Ok(Err(Unmappable::Unprepared));
    };
    if mapped.files.is_empty() {
        return Ok(Ok(Guarded::default()));
    }
    if let Err(reason) = guard::supported() {
        return Ok(Err(reason.into()));
    }
    let folder = image.criu_folder();
    let open = |source| RestoreError::Image {
        path: folder.clone(),
        source,
    };
    // Memory of a process can be made executable, a file there cannot.
    let info = statvfs(&folder).map_err(|errno| open(errno.into()))?;
    if info.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Ok(Err(Unmappable::NoExec));
    }
    let folder = std::path::absolute(&folder).map_err(open)?;
    Ok(Ok(Guarded {
        files: mapped.files.iter().map(|name| folder.join(name)).collect(),
        ranges: mapped.ranges.clone(),
        traits: mapped.traits.clone(),
    }))
}
