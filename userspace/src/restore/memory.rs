//! Whether the memory of an image is mapped or copied.

use std::path::PathBuf;

use rustix::fs::{StatVfsMountFlags, statvfs};
use serde::{Deserialize, Serialize};

use super::RestoreError;
use crate::{
    edit::{self, Mapped, Shared},
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

/// The memory that is there before CRIU restores, which only maps it.
#[derive(Default)]
pub(super) struct Ready {
    /// What is mapped from the image.
    pub guarded: Option<Guarded>,
    /// What processes share, each with the file that has its pages.
    pub shared: Vec<(PathBuf, Shared)>,
}

impl Ready {
    /// CRIU's names of the files that it is mapped from.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let files = self
            .guarded
            .as_ref()
            .map_or(0, |guarded| guarded.files.len());
        let files = (1..=files).map(edit::inherited_name);
        files.chain((1..=self.shared.len()).map(edit::shared_name))
    }
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
) -> Result<(Option<Ready>, MemoryUse), RestoreError> {
    if mode == MemoryMode::Copy {
        return Ok((None, MemoryUse::default()));
    }
    let mapped_bytes = |mapped: &Mapped| mapped.bytes;
    match mappable(image)? {
        Ok(ready) => {
            let memory = MemoryUse {
                mapped_bytes: image.manifest.mapped.as_ref().map_or(0, mapped_bytes),
                copied_because: None,
            };
            Ok((ready, memory))
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

fn mappable(image: &Image) -> Result<Result<Option<Ready>, Unmappable>, RestoreError> {
    let Some(mapped) = &image.manifest.mapped else {
        return Ok(Err(Unmappable::Unprepared));
    };
    if mapped.is_empty() {
        return Ok(Ok(None));
    }
    let folder = image.criu_folder();
    let open = |source| RestoreError::Image {
        path: folder.clone(),
        source,
    };
    let absolute = std::path::absolute(&folder).map_err(open)?;
    let shared = mapped.shared.iter();
    let shared = shared.map(|shared| (absolute.join(&shared.pages), shared.clone()));
    let mut ready = Ready {
        guarded: None,
        shared: shared.collect(),
    };
    if mapped.files.is_empty() {
        return Ok(Ok(Some(ready)));
    }
    if let Err(reason) = guard::supported() {
        return Ok(Err(reason.into()));
    }
    // Memory of a process can be made executable, a file there cannot.
    let info = statvfs(&folder).map_err(|errno| open(errno.into()))?;
    if info.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        return Ok(Err(Unmappable::NoExec));
    }
    ready.guarded = Some(Guarded {
        files: mapped
            .files
            .iter()
            .map(|name| absolute.join(name))
            .collect(),
        ranges: mapped.ranges.clone(),
        traits: mapped.traits.clone(),
    });
    Ok(Ok(Some(ready)))
}
