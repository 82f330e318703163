//! Compares all of an image with the digest that names it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::{
    Digest, ImageFile, MANIFEST, Manifest, Store, StoreError,
    encrypted::{CIPHERTEXT, HEADER},
    outside::KNOWN,
    parse_manifest,
    seal::{self, Damage, Identity, SEAL, Seal},
    stage_beside, sync_folder, write_error,
};
use crate::edit;

/// What a verification found.
#[derive(Clone, Debug)]
pub struct Verification {
    pub digest: Digest,
    pub names: Vec<String>,
    /// How many files there should be, and their size.
    pub files: usize,
    pub bytes: u64,
    /// What is wrong, by the path in the image.
    pub faults: Vec<(String, Damage)>,
    /// What is there and is not part of the image.
    pub unknown: Vec<String>,
    /// The content is what it was, but in other files than were stored: those are now the image's.
    pub resealed: bool,
    /// It is encrypted and not open: only what is encrypted was compared.
    pub closed: bool,
}

impl Verification {
    pub fn is_whole(&self) -> bool {
        self.faults.is_empty()
    }
}

impl Store {
    /// Compares an image with its digests. If it is whole, it can be restored from then on, also
    /// if its files have been replaced by copies.
    ///
    /// # Errors
    /// [`StoreError::Read`] or [`StoreError::Write`]. That the image is damaged is no error.
    pub fn verify(&self, digest: &Digest) -> Result<Verification, StoreError> {
        match self.encrypted(digest) {
            Ok(None) => self.verify_files(digest, &self.folder_of(digest)),
            Ok(Some(encrypted)) => {
                let mut verification = match encrypted.opened {
                    None => self.closed(digest),
                    Some(_) => self.verify_files(digest, &self.folder_in_memory(digest))?,
                };
                let damage = encrypted.damage();
                let faults = damage.map(|damage| (CIPHERTEXT.to_owned(), damage));
                verification.faults.extend(faults);
                Ok(verification)
            }
            Err(error) => {
                let mut verification = self.closed(digest);
                let reason = crate::doctor::chain(&error);
                let fault = (HEADER.to_owned(), Damage::Invalid { reason });
                verification.faults.push(fault);
                Ok(verification)
            }
        }
    }

    /// What is known of a closed image before it is looked at.
    fn closed(&self, digest: &Digest) -> Verification {
        let path = self.folder_of_encrypted(digest).join(CIPHERTEXT);
        Verification {
            digest: digest.clone(),
            names: self.names_of(digest),
            files: 1,
            bytes: path.metadata().map_or(0, |found| found.len()),
            faults: vec![],
            unknown: vec![],
            resealed: false,
            closed: true,
        }
    }

    fn verify_files(&self, digest: &Digest, folder: &Path) -> Result<Verification, StoreError> {
        let mut verification = Verification {
            digest: digest.clone(),
            names: self.names_of(digest),
            files: 0,
            bytes: 0,
            faults: vec![],
            unknown: vec![],
            resealed: false,
            closed: false,
        };
        let mut seal = Seal::default();
        let faults = &mut verification.faults;
        let mut note = |name: &str, checked: Result<Option<Identity>, Damage>| match checked {
            Ok(Some(identity)) => drop(seal.files.insert(name.to_owned(), identity)),
            Ok(None) => {}
            Err(damage) => faults.push((name.to_owned(), damage)),
        };
        let (checked, manifest) = read_manifest(&folder.join(MANIFEST), digest);
        note(MANIFEST, checked.map(Some));
        let Some(manifest) = manifest else {
            return Ok(verification);
        };
        let targets = seal::regular_names(&manifest.files);
        for file in &manifest.files {
            let name = file.path();
            let path = folder.join(&*name);
            let checked = match &file.link {
                None => verify_file(&path, file).map(Some),
                Some(target) => match seal::compare_link(&path, &name, target) {
                    Ok(leads_to) if targets.contains(&leads_to) => Ok(None),
                    Ok(_) => Err(Damage::Outside {
                        target: target.clone(),
                    }),
                    Err(damage) => Err(damage),
                },
            };
            note(&name, checked);
        }
        for file in manifest.files.iter().filter(|file| file.link.is_none()) {
            let name = file.path();
            // What cannot be read has been told of.
            if let Ok(Err(fault)) = edit::parse_whole(&folder.join(&*name)) {
                let edit::Fault { record, what } = fault;
                verification
                    .faults
                    .push((name.into_owned(), Damage::Malformed { record, what }));
            }
        }
        verification.files = manifest.files.len();
        verification.bytes = manifest.image_bytes();
        let names = manifest.files.iter().map(ImageFile::path);
        let own = [MANIFEST.into(), SEAL.into(), KNOWN.into()];
        let known: BTreeSet<PathBuf> = names.chain(own).map(|n| n.into_owned().into()).collect();
        let found = seal::walk(folder)?.into_iter();
        let unknown = found.filter(|(path, kind)| !kind.is_dir() && !known.contains(path));
        verification.unknown = unknown
            .map(|(path, _)| path.display().to_string())
            .collect();
        verification.unknown.sort();
        if verification.is_whole() && Seal::read(folder).ok().flatten().as_ref() != Some(&seal) {
            reseal(folder, &seal)?;
            verification.resealed = true;
        }
        Ok(verification)
    }
}

fn reseal(folder: &Path, seal: &Seal) -> Result<(), StoreError> {
    let staging = stage_beside(folder)?;
    let aside = staging.work().join(SEAL);
    seal.write(&aside)?;
    let path = folder.join(SEAL);
    fs::rename(&aside, &path).map_err(write_error(&path))?;
    sync_folder(folder)
}

/// Compares a manifest with its digest; returns its identity from before, and the manifest as far as
/// it can be read all the same.
fn read_manifest(path: &Path, digest: &Digest) -> (Result<Identity, Damage>, Option<Manifest>) {
    let identity = seal::identify(path);
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return (Err(Damage::unreadable(&error)), None),
    };
    let parsed = parse_manifest(path, &bytes);
    let invalid = |reason| Err(Damage::Invalid { reason });
    let checked = match &parsed {
        _ if blake3::hash(&bytes).to_hex().as_str() != digest.0 => Err(Damage::Content),
        Ok(_) => identity,
        Err(StoreError::BadManifest { source, .. }) => invalid(source.to_string()),
        Err(error) => invalid(error.to_string()),
    };
    (checked, parsed.ok())
}

/// Compares a file with its digest; returns its identity from before.
fn verify_file(path: &Path, expected: &ImageFile) -> Result<Identity, Damage> {
    let identity = seal::identify(path)?;
    seal::compare_size(&identity, expected)?;
    let unreadable = |error| Damage::unreadable(&error);
    let file = File::open(path).map_err(unreadable)?;
    match seal::digest(&file).map_err(unreadable)? == expected.blake3 {
        true => Ok(identity),
        false => Err(Damage::Content),
    }
}
