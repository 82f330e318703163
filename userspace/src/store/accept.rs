//! Takes images that were made elsewhere, unpacked by `archive`.
//!
//! Invariant: such an image comes among the others only if its files are those that its manifest
//! tells of, by their BLAKE3, and its manifest is the one that its digest was taken of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::symlink,
    path::Path,
};

use super::{
    Damage, Digest, Image, ImageFile, MANIFEST, Manifest, Staging, Store, StoreError, check_name,
    parse_manifest,
    seal::{SEAL, destination, regular_names, seal_files},
    staging, write_error,
};

/// Where images arrive that are to be resumed.
const PARTIAL: &str = "partial";

impl ImageFile {
    /// The path in the image that a link leads to; none if it could lead elsewhere.
    pub fn destination(&self) -> Option<String> {
        destination(&self.path(), self.link.as_deref()?)
    }
}

impl Manifest {
    /// Reads a manifest that came from `path`.
    ///
    /// # Errors
    /// [`StoreError::BadManifest`] or [`StoreError::OtherSchema`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        parse_manifest(path, bytes)
    }

    /// Checks that the files are in folders of an image, each once, that links lead to some of
    /// them, and that nothing but them is mapped or read ahead at a restore.
    ///
    /// # Errors
    /// [`StoreError::Foreign`].
    pub fn check_files(&self) -> Result<(), StoreError> {
        let foreign = |file: &str, reason: &str| StoreError::Foreign {
            file: file.to_owned(),
            damage: Damage::Invalid {
                reason: reason.to_owned(),
            },
        };
        let regular = regular_names(&self.files);
        let mut seen = BTreeSet::new();
        for file in &self.files {
            let name = file.path();
            if !is_plain(&name) {
                return Err(foreign(&name, "it is in no folder of an image"));
            }
            if !seen.insert(name.clone().into_owned()) {
                return Err(foreign(&name, "it is listed twice"));
            }
            let leads = file.destination();
            if file.link.is_some() && !leads.is_some_and(|leads| regular.contains(&leads)) {
                return Err(foreign(
                    &name,
                    "it is a link to what is no file of the image",
                ));
            }
        }
        let mapped = self.mapped.iter().flat_map(|mapped| {
            let shared = mapped.shared.iter().map(|shared| &shared.pages);
            mapped.files.iter().chain(shared)
        });
        let read_ahead = self.working_set.iter().flat_map(|set| set.parts.keys());
        let mut used = mapped.chain(read_ahead).map(|name| format!("criu/{name}"));
        match used.find(|name| !regular.contains(name)) {
            Some(name) => Err(foreign(&name, "it is mapped, and no file of the image")),
            None => Ok(()),
        }
    }
}

/// Whether a path is that of a file in one of the folders of an image.
fn is_plain(path: &str) -> bool {
    /// As much as fits into the header of an archive, with the folder.
    const LONGEST: usize = 80;
    const FOLDERS: [&str; 3] = ["criu/", "map/", "fit/"];
    let name = FOLDERS.iter().find_map(|folder| path.strip_prefix(folder));
    name.is_some_and(|name| {
        let is_dots = name == "." || name == "..";
        let is_text = name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/');
        !name.is_empty() && !is_dots && is_text && name.len() <= LONGEST
    })
}

impl Store {
    /// The image with this digest, if it is there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn existing(&self, digest: &Digest) -> Result<Option<Image>, StoreError> {
        match self.holds(digest) {
            true => self.load(digest.clone()).map(Some),
            false => Ok(None),
        }
    }

    /// The image that a name points to.
    pub fn named(&self, name: &str) -> Option<Digest> {
        check_name(name).ok()?;
        let digest = fs::read_to_string(self.root.join("names").join(name)).ok()?;
        let digest = Digest(digest);
        self.holds(&digest).then_some(digest)
    }

    /// Points a name to an image.
    ///
    /// # Errors
    /// [`StoreError::BadName`] or [`StoreError::Write`].
    pub fn name(&self, name: &str, digest: &Digest) -> Result<(), StoreError> {
        check_name(name)?;
        self.point(name, digest)
    }

    /// A folder to unpack an image in. What [`Store::keep_partial`] left of it before is in there.
    ///
    /// # Errors
    /// [`StoreError::Arriving`] or [`StoreError::Write`].
    pub fn stage_resumable(&self, digest: &Digest) -> Result<Staging, StoreError> {
        let staging = Staging::reopen(&self.root.join(PARTIAL), digest.as_str())?;
        let staging = staging.ok_or_else(|| StoreError::Arriving(digest.clone()))?;
        // It may have come to its end, but not to its place.
        for name in [MANIFEST, SEAL] {
            let path = staging.image().join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(write_error(&path)(error));
                }
                _ => {}
            }
        }
        Ok(staging)
    }

    /// Leaves what has arrived for the next [`Store::stage_resumable`].
    pub fn keep_partial(&self, staging: Staging) {
        staging.keep();
    }

    /// Removes what was left of images that have not arrived, unless one does right now.
    pub fn sweep_partial(&self) {
        let folder = self.root.join(PARTIAL);
        staging::sweep(&folder);
        // If it is empty.
        let _ = fs::remove_dir(folder);
    }

    /// Turns what was unpacked into an image, if it is what the manifest tells of.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] if it is not, or others; the store is then as it was.
    pub fn accept(&self, staging: Staging, manifest: &[u8]) -> Result<Image, StoreError> {
        let image = staging.image();
        let parsed = Manifest::parse(&image, manifest)?;
        parsed.check_files()?;
        for file in &parsed.files {
            if let Some(target) = &file.link {
                let path = image.join(&*file.path());
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(write_error(&path)(error));
                    }
                    _ => symlink(target, &path).map_err(write_error(&path))?,
                }
            }
        }
        let (files, seal) = seal_files(&image)?;
        compare(&parsed.files, files)?;
        let digest = self.place(&staging, manifest, seal)?;
        drop(staging);
        self.load(digest)
    }
}

/// Compares the files that are there with those that should be.
fn compare(expected: &[ImageFile], found: Vec<ImageFile>) -> Result<(), StoreError> {
    let foreign = |file: &str, damage| StoreError::Foreign {
        file: file.to_owned(),
        damage,
    };
    let mut found: BTreeMap<String, ImageFile> = found
        .into_iter()
        .map(|file| (file.path().into_owned(), file))
        .collect();
    for file in expected {
        let name = file.path();
        let damage = match found.remove(&*name) {
            None => Damage::Missing,
            Some(other) if other.bytes != file.bytes => Damage::Size {
                found: other.bytes,
                expected: file.bytes,
            },
            Some(other) if other.blake3 != file.blake3 || other.link != file.link => {
                Damage::Content
            }
            Some(_) => continue,
        };
        return Err(foreign(&name, damage));
    }
    match found.into_keys().next() {
        Some(name) => Err(foreign(&name, Damage::Unlisted)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_arrives_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let digest = Digest::of(b"{}");
        let staging = store.stage_resumable(&digest).unwrap();
        let other = store.stage_resumable(&digest);
        assert!(matches!(other, Err(StoreError::Arriving(_))));
        // Another one can, and neither is swept.
        let other = store.stage_resumable(&Digest::of(b"[]")).unwrap();
        store.sweep_partial();
        assert!(staging.criu().is_dir() && other.criu().is_dir());
        fs::write(staging.criu().join("core-1.img"), "core").unwrap();
        fs::write(staging.work().join("part"), "half").unwrap();
        for name in [MANIFEST, SEAL] {
            fs::write(staging.image().join(name), "{}").unwrap();
        }
        store.keep_partial(staging);
        let staging = store.stage_resumable(&digest).unwrap();
        assert!(staging.criu().join("core-1.img").exists());
        assert!(!staging.work().join("part").exists());
        for name in [MANIFEST, SEAL] {
            assert!(!staging.image().join(name).exists());
        }
        drop((staging, other));
        assert!(!folder.path().join("partial").exists());
    }
}
