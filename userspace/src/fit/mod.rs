//! Tells whether an image fits this host, and whether it is still what a start from now would come to.
//!
//! All that is compared is compared here, by pure functions over facts: of the image (its manifest, and
//! the files that were read before the freeze) and of the host. `verify` shows all that is found;
//! `restore` refuses on what breaks and warns of what may be stale.
//!
//! Invariant: the everyday check reads no content of a file that is what it was, by size, time of
//! modification and inode. The content of one that is another decides, and is read once.

mod environment;
mod files;
mod finding;
mod host;
mod look;
mod record;

use std::io;

pub use self::{
    files::Depth,
    finding::{Allow, Allowed, Code, Finding, Severity},
    record::{Seen, identify, is_file_system},
};
use crate::{
    criu,
    host::{Host, Surroundings},
    store::{Image, StoreError},
};

/// What an image is compared with: this host, as far as it is no file.
#[derive(Clone, Debug)]
pub struct Here {
    pub host: Host,
    pub surroundings: Surroundings,
    /// None if there is none.
    pub criu: Option<criu::Version>,
    /// `NAME=VALUE`, of this process.
    pub environment: Vec<String>,
}

impl Here {
    /// Reads what there is.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn read(criu: Option<criu::Version>) -> io::Result<Self> {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let variables = std::env::vars_os();
        Ok(Self {
            host: Host::read()?,
            surroundings: Surroundings::read()?,
            criu,
            environment: variables
                .map(|(name, value)| format!("{}={}", text(name), text(value)))
                .collect(),
        })
    }
}

/// A check of an image.
pub struct Check<'a> {
    image: &'a Image,
    here: &'a Here,
    files: files::Comparison<'a>,
}

impl<'a> Check<'a> {
    pub fn new(image: &'a Image, here: &'a Here, depth: Depth) -> Self {
        Self {
            image,
            here,
            files: files::Comparison::new(image, depth),
        }
    }

    /// What can break the restored server, or its restore.
    pub fn breaking(&mut self) -> Vec<Finding> {
        let manifest = &self.image.manifest;
        let mut findings = host::fit(manifest, self.here);
        let files = manifest.dependencies.iter();
        findings.extend(files.filter_map(|file| self.files.compare(file)));
        findings
    }

    /// What the server may not know yet, as it was read or looked at before the capture.
    ///
    /// # Errors
    /// If the record of the files that were read cannot be read.
    pub fn stale(&mut self) -> Result<Vec<Finding>, StoreError> {
        let manifest = &self.image.manifest;
        let mut findings = host::staleness(manifest, self.here);
        findings.extend(environment::compare(
            &manifest.command.environment,
            &self.here.environment,
        ));
        if self.files.depth() == Depth::Content {
            findings.extend(environment::user(manifest));
        }
        let read = self.image.read_files()?.unwrap_or_default();
        let files = read.files.iter();
        findings.extend(files.filter_map(|file| self.files.compare(file)));
        Ok(findings)
    }

    /// Remembers what was found to be the same although it is another file.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn remember(&self) -> Result<(), StoreError> {
        match self.files.learnt() {
            None => Ok(()),
            Some(known) => self.image.remember(known),
        }
    }
}
