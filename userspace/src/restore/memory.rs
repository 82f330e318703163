//! Whether the memory of an image is mapped or copied.

use std::{fs, os::fd::OwnedFd};

use rustix::fs::{StatVfsMountFlags, fstatvfs};
use serde::{Deserialize, Serialize};

use super::RestoreError;
use crate::{
    edit,
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

/// Where memory that is mapped comes from.
#[derive(Debug, Default)]
pub struct Source {
    pub files: Vec<OwnedFd>,
    pub guarded: Guarded,
    pub bytes: u64,
}

impl Source {
    /// CRIU's names of the files.
    pub fn names(&self) -> impl Iterator<Item = String> {
        (1..=self.files.len()).map(edit::inherited_name)
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

/// Opens what is to be mapped: nothing if all is to be copied.
pub(super) fn choose(
    image: &Image,
    mode: MemoryMode,
) -> Result<(Option<Source>, MemoryUse), RestoreError> {
    if mode == MemoryMode::Copy {
        return Ok((None, MemoryUse::default()));
    }
    match open(image)? {
        Ok(source) => {
            let mapped_bytes = source.bytes;
            let memory = MemoryUse {
                mapped_bytes,
                copied_because: None,
            };
            Ok(((mapped_bytes > 0).then_some(source), memory))
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

fn open(image: &Image) -> Result<Result<Source, Unmappable>, RestoreError> {
    let Some(mapped) = &image.manifest.mapped else {
        return Ok(Err(Unmappable::Unprepared));
    };
    if mapped.files.is_empty() {
        return Ok(Ok(Source::default()));
    }
    if let Err(reason) = guard::supported() {
        return Ok(Err(reason.into()));
    }
    let open = |name: &String| {
        let path = image.criu_folder().join(name);
        fs::File::open(&path)
            .map(OwnedFd::from)
            .map_err(|source| RestoreError::Image { path, source })
    };
    let files: Result<Vec<OwnedFd>, _> = mapped.files.iter().map(open).collect();
    let files = files?;
    // Memory of a process can be made executable, a file there cannot.
    let is_noexec = |file: &OwnedFd| {
        fstatvfs(file).is_ok_and(|info| info.f_flag.contains(StatVfsMountFlags::NOEXEC))
    };
    if files.iter().any(is_noexec) {
        return Ok(Err(Unmappable::NoExec));
    }
    Ok(Ok(Source {
        files,
        guarded: Guarded {
            ranges: mapped.ranges.clone(),
            traits: mapped.traits.clone(),
        },
        bytes: mapped.bytes,
    }))
}
