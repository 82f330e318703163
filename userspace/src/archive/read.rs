//! Reads an archive into the store.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use tar::{Archive, Entry, EntryType};

use super::{
    ArchiveError, BLOBS, CHUNK, CONFIG_DUMP, FOLDERS, INDEX, MANIFEST, OCI_LAYOUT, Refusal,
    SPEC_DUMP, Sha256, name_in_archive,
    oci::{self, Blob, Documents},
    sparse::SparseFile,
};
use crate::store::{Digest, Image, Manifest, Staging, Store, StoreError, check_name};

/// How long the image's manifest may be, and any other document.
const LONGEST_MANIFEST: u64 = 64 << 20;
const LONGEST_DOCUMENT: u64 = 16 << 20;

/// How many files an image may have.
const MOST_FILES: usize = 100_000;

/// What may follow the end of a tar stream: it is filled up to a whole record.
const LONGEST_PADDING: u64 = 1 << 20;

/// How an archive is to be imported.
pub struct Import<'a> {
    pub store: &'a Store,
    /// What the archive is called in messages.
    pub path: &'a Path,
    /// The name of the image, instead of that in the archive.
    pub name: Option<&'a str>,
    /// The size that an image may have.
    pub most_bytes: u64,
    /// Keep what has arrived if the archive is cut short, and use what was kept.
    pub resume: bool,
    /// Told the image's size, and how much of it has been read, again and again.
    pub progress: &'a mut dyn FnMut(u64, u64),
}

/// An image that was imported.
#[derive(Debug)]
pub struct Imported {
    pub image: Image,
    /// It was there before.
    pub existed: bool,
    /// How much of it was left by an import that was cut short, in bytes.
    pub resumed_bytes: u64,
}

/// Why reading stopped.
enum Stop {
    Refused(String, Refusal),
    /// Reading or decompressing failed.
    Stream(io::Error),
    Other(ArchiveError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Other(error.into())
    }
}

impl Import<'_> {
    /// Reads an archive to its end, and stores its image.
    ///
    /// # Errors
    /// See [`ArchiveError`]; the store is then as it was, but for what `resume` keeps.
    pub fn run(mut self, from: impl Read) -> Result<Imported, ArchiveError> {
        if let Some(name) = self.name {
            check_name(name)?;
        }
        let (failed, mut is_kept) = (Failure::default(), false);
        let read = self.read(from, &failed, &mut is_kept);
        read.map_err(|stop| match (stop, failed.take()) {
            (Stop::Refused(entry, refusal), _) => ArchiveError::Refused {
                path: self.path.to_owned(),
                entry,
                refusal,
            },
            (Stop::Other(error), _) => error,
            (Stop::Stream(_), Some(error)) if is_interruption(&error) => ArchiveError::Interrupted,
            (Stop::Stream(_), Some(source)) => ArchiveError::Read {
                path: self.path.to_owned(),
                source,
            },
            (Stop::Stream(error), None) if error.kind() == io::ErrorKind::UnexpectedEof => {
                ArchiveError::CutShort {
                    path: self.path.to_owned(),
                    is_kept,
                }
            }
            (Stop::Stream(source), None) => ArchiveError::NoArchive {
                path: self.path.to_owned(),
                source,
            },
        })
    }

    /// Tells by `is_kept` whether what has arrived was kept.
    fn read(
        &mut self,
        from: impl Read,
        failed: &Failure,
        is_kept: &mut bool,
    ) -> Result<Imported, Stop> {
        let from = Source { from, failed };
        let zstd = zstd::Decoder::new(from).map_err(Stop::Stream)?;
        let mut archive = Archive::new(zstd);
        let mut entries = archive.entries().map_err(Stop::Stream)?.raw(true);
        let Some(first) = entries.next() else {
            return Err(refused(MANIFEST, Refusal::Missing));
        };
        let manifest = read_manifest(first.map_err(Stop::Stream)?)?;
        let digest = Digest::of(&manifest);
        if let Some(image) = self.store.existing(&digest)? {
            return self.known(image);
        }
        let plan = Plan::of(self.path, &manifest, self.most_bytes)?;
        let staging = match self.resume {
            true => self.store.stage_resumable(&digest)?,
            false => self.store.stage()?,
        };
        let mut unpacker = Unpacker {
            import: self,
            own: Blob::of(&manifest),
            digest: &digest,
            staging: &staging,
            plan,
            seen: BTreeSet::from([MANIFEST.to_owned()]),
            files: BTreeMap::new(),
            blobs: BTreeSet::new(),
            documents: Documents::default(),
            name: None,
            read: 0,
            resumed_bytes: 0,
        };
        let unpacked = entries
            .map(|entry| entry.map_err(Stop::Stream))
            .try_for_each(|entry| unpacker.take(entry?))
            .and_then(|()| unpacker.check());
        let (name, resumed_bytes) = (unpacker.name.take(), unpacker.resumed_bytes);
        if let Err(stop) = unpacked.and_then(|()| expect_end(archive.into_inner())) {
            // What was cut short may go on; what was refused leaves nothing.
            if self.resume && is_cut(&stop, failed) {
                self.store.keep_partial(staging);
                *is_kept = true;
            }
            return Err(stop);
        }
        let image = self.store.accept(staging, &manifest);
        let image = image.map_err(|error| unfit(self.path, error))?;
        if let Some(name) = self.name.or(name.as_deref()) {
            self.store.name(name, &image.digest)?;
        }
        Ok(Imported {
            image: self.store.find(Some(digest.as_str()))?,
            existed: false,
            resumed_bytes,
        })
    }

    /// An image that is there already: only its name may be new.
    fn known(&self, image: Image) -> Result<Imported, Stop> {
        image.check()?;
        if let Some(name) = self.name {
            self.store.name(name, &image.digest)?;
        }
        Ok(Imported {
            image: self.store.find(Some(image.digest.as_str()))?,
            existed: true,
            resumed_bytes: 0,
        })
    }

    /// Whether the image gets the name that its archive gives it: never that of another.
    fn choose_name(&self, name: String, digest: &Digest) -> Result<Option<String>, Stop> {
        if self.name.is_some() || name == digest.short() {
            return Ok(None);
        }
        if check_name(&name).is_err() {
            let reason = format!("{name:?} is not a name for an image");
            return Err(refused(CONFIG_DUMP, Refusal::Invalid(reason)));
        }
        match self.store.named(&name) {
            Some(other) if other != *digest => Err(Stop::Other(ArchiveError::NameTaken { name })),
            _ => Ok(Some(name)),
        }
    }
}

/// What an archive has to hold, by the manifest of its image.
struct Plan {
    /// By the name in the archive: the path in the image, and the size.
    files: BTreeMap<String, (PathBuf, u64)>,
    bytes: u64,
}

impl Plan {
    fn of(archive: &Path, manifest: &[u8], most: u64) -> Result<Self, Stop> {
        let manifest = Manifest::parse(&archive.join(MANIFEST), manifest)
            .and_then(|manifest| manifest.check_files().map(|()| manifest))
            .map_err(|error| unfit(archive, error))?;
        let count = manifest.files.len();
        if count > MOST_FILES {
            let reason = format!("it tells of {count} files");
            return Err(refused(MANIFEST, Refusal::Invalid(reason)));
        }
        let regular = manifest.files.iter().filter(|file| file.link.is_none());
        let bytes = regular.clone().map(|file| file.bytes);
        let bytes = bytes.fold(0_u64, u64::saturating_add);
        if bytes > most {
            return Err(refused(MANIFEST, Refusal::TooLarge { bytes, most }));
        }
        let place = |path: &str, bytes| (name_in_archive(path), (PathBuf::from(path), bytes));
        Ok(Self {
            files: regular
                .map(|file| place(&file.path(), file.bytes))
                .collect(),
            bytes,
        })
    }
}

/// Takes one entry of an archive after the other.
struct Unpacker<'a, 'b> {
    import: &'a mut Import<'b>,
    own: Blob,
    digest: &'a Digest,
    staging: &'a Staging,
    plan: Plan,
    /// All names so far.
    seen: BTreeSet<String>,
    /// The files of the image so far, by their names in the archive.
    files: BTreeMap<String, Blob>,
    /// The SHA-256 of the blobs so far.
    blobs: BTreeSet<String>,
    documents: Documents,
    /// The name that the archive gives the image, if that is to be its name.
    name: Option<String>,
    /// How much of the image has been read, in bytes.
    read: u64,
    resumed_bytes: u64,
}

impl Unpacker<'_, '_> {
    fn take(&mut self, entry: Entry<'_, impl Read>) -> Result<(), Stop> {
        let name = name_of(&entry)?;
        let refuse = |refusal| Err(Stop::Refused(name.clone(), refusal));
        if !self.seen.insert(name.clone()) {
            return refuse(Refusal::Duplicate);
        }
        match entry.header().entry_type() {
            EntryType::Regular => self.take_file(&name, entry),
            EntryType::Directory if entry.size() > 0 => refuse(Refusal::Size {
                found: entry.size(),
                expected: 0,
            }),
            EntryType::Directory if FOLDERS.contains(&&*name) => Ok(()),
            EntryType::Directory => refuse(Refusal::Unknown),
            EntryType::Link => match self.take_link(&name, &entry) {
                Ok(()) => Ok(()),
                Err(refusal) => refuse(refusal),
            },
            EntryType::Symlink => refuse(Refusal::Link),
            _ => refuse(Refusal::Special),
        }
    }

    /// Hard links only give files of the archive their names as blobs; none is ever made.
    fn take_link(&mut self, name: &str, entry: &Entry<'_, impl Read>) -> Result<(), Refusal> {
        let target = entry.link_name_bytes().unwrap_or_default();
        let target = std::str::from_utf8(&target).unwrap_or_default();
        let blob = match target {
            MANIFEST => Some(&self.own),
            file => self.files.get(file),
        };
        let (Some(blob), Some(digest)) = (blob, name.strip_prefix(BLOBS)) else {
            return Err(Refusal::Link);
        };
        if entry.size() > 0 {
            return Err(Refusal::Size {
                found: entry.size(),
                expected: 0,
            });
        }
        if blob.sha256 != digest {
            return Err(Refusal::Digest);
        }
        self.blobs.insert(digest.to_owned());
        Ok(())
    }

    fn take_file(&mut self, name: &str, entry: Entry<'_, impl Read>) -> Result<(), Stop> {
        if let Some((path, bytes)) = self.plan.files.get(name).cloned() {
            if entry.size() != bytes {
                let found = entry.size();
                return Err(refused(
                    name,
                    Refusal::Size {
                        found,
                        expected: bytes,
                    },
                ));
            }
            let blob = self.unpack(name, &path, entry)?;
            self.files.insert(name.to_owned(), blob);
            return Ok(());
        }
        match name {
            CONFIG_DUMP => {
                let bytes = read_document(name, entry, LONGEST_DOCUMENT)?;
                let given = oci::name_of(&bytes).map_err(|refusal| refused(name, refusal))?;
                self.name = self.import.choose_name(given, self.digest)?;
            }
            SPEC_DUMP => drop(read_document(name, entry, LONGEST_DOCUMENT)?),
            OCI_LAYOUT => self.documents.layout = read_document(name, entry, LONGEST_DOCUMENT)?,
            INDEX => self.documents.index = read_document(name, entry, LONGEST_DOCUMENT)?,
            _ => {
                let digest = name.strip_prefix(BLOBS);
                // The OCI manifest is the only blob that is no file of the image.
                let (Some(digest), []) = (digest, &self.documents.manifest[..]) else {
                    return Err(refused(name, Refusal::Unknown));
                };
                let bytes = read_document(name, entry, LONGEST_DOCUMENT)?;
                if Sha256::of(&bytes) != digest {
                    return Err(refused(name, Refusal::Digest));
                }
                self.documents.manifest = bytes;
            }
        }
        Ok(())
    }

    /// Unpacks a file of the image. If it is there from an earlier try, the archive's is only read:
    /// that both are the same is seen when the image is complete.
    fn unpack(
        &mut self,
        name: &str,
        path: &Path,
        mut entry: Entry<'_, impl Read>,
    ) -> Result<Blob, Stop> {
        let (part, target) = (
            self.staging.work().join("part"),
            self.staging.image().join(path),
        );
        let is_there = target
            .symlink_metadata()
            .is_ok_and(|found| found.is_file() && found.len() == entry.size());
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Stop::Other(StoreError::Write { path, source }.into())
        };
        let mut file = match is_there {
            true => None,
            false => Some(SparseFile::create(&part).map_err(failed(&part))?),
        };
        let (mut sha256, mut bytes) = (Sha256::default(), 0);
        let mut buffer = vec![0; CHUNK];
        loop {
            let chunk = read_chunk(&mut entry, &mut buffer).map_err(Stop::Stream)?;
            if chunk.is_empty() {
                break;
            }
            sha256.update(chunk);
            bytes += chunk.len() as u64;
            if let Some(file) = &mut file {
                file.add(chunk).map_err(failed(&part))?;
            }
            (self.import.progress)(self.plan.bytes, self.read + bytes);
        }
        self.read += bytes;
        if bytes != entry.size() {
            let expected = entry.size();
            return Err(refused(
                name,
                Refusal::Size {
                    found: bytes,
                    expected,
                },
            ));
        }
        match file {
            None => self.resumed_bytes += bytes,
            Some(file) => {
                let file = file.finish().map_err(failed(&part))?;
                if self.import.resume {
                    // What another try finds in its place is taken for whole.
                    file.sync_all().map_err(failed(&part))?;
                }
                let folder = target.parent().unwrap_or(&target);
                make_folder(folder).map_err(failed(folder))?;
                fs::rename(&part, &target).map_err(failed(&target))?;
            }
        }
        Ok(Blob {
            sha256: sha256.finish(),
            bytes,
        })
    }

    /// Checks that all is there that should be.
    fn check(&self) -> Result<(), Stop> {
        let missing = |name: &str| refused(name, Refusal::Missing);
        let mut files = self.plan.files.keys();
        if let Some(name) = files.find(|name| !self.files.contains_key(*name)) {
            return Err(missing(name));
        }
        let mut blobs = self.files.values().chain([&self.own]);
        if let Some(blob) = blobs.find(|blob| !self.blobs.contains(&blob.sha256)) {
            return Err(missing(&format!("{BLOBS}{}", blob.sha256)));
        }
        oci::check(&self.documents, &self.own, &self.files)
            .map_err(|(document, refusal)| refused(document, refusal))
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn read_manifest(entry: Entry<'_, impl Read>) -> Result<Vec<u8>, Stop> {
    let name = name_of(&entry)?;
    if name != MANIFEST || entry.header().entry_type() != EntryType::Regular {
        let order = Refusal::Order("manifest.json comes first");
        return Err(Stop::Refused(name, order));
    }
    read_document(&name, entry, LONGEST_MANIFEST)
}

fn read_document(name: &str, mut entry: Entry<'_, impl Read>, most: u64) -> Result<Vec<u8>, Stop> {
    let expected = entry.size();
    if expected > most {
        let found = expected;
        return Err(refused(name, Refusal::TooLong { found, most }));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(Stop::Stream)?;
    match bytes.len() as u64 {
        found if found == expected => Ok(bytes),
        found => Err(refused(name, Refusal::Size { found, expected })),
    }
}

/// Reads until the buffer is full or there is nothing more.
fn read_chunk<'b>(from: &mut impl Read, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(&buffer[..filled])
}

/// The name of an entry. Only names that are expected are ever used, as they are; this tells what
/// is wrong with others.
fn name_of(entry: &Entry<'_, impl Read>) -> Result<String, Stop> {
    let bytes = entry.path_bytes();
    let name = String::from_utf8_lossy(&bytes).into_owned();
    if name.starts_with('/') {
        return Err(Stop::Refused(name, Refusal::Absolute));
    }
    if name.split('/').any(|part| part == "..") {
        return Err(Stop::Refused(name, Refusal::Escape));
    }
    Ok(name)
}

/// Checks that nothing but padding follows the end of the tar stream.
fn expect_end(mut rest: impl Read) -> Result<(), Stop> {
    let (mut buffer, mut left) = (vec![0; CHUNK], LONGEST_PADDING);
    loop {
        let chunk = read_chunk(&mut rest, &mut buffer).map_err(Stop::Stream)?;
        if chunk.is_empty() {
            return Ok(());
        }
        left = left.saturating_sub(chunk.len() as u64);
        if left == 0 || chunk.iter().any(|&byte| byte != 0) {
            return Err(refused("the end", Refusal::Trailing));
        }
    }
}

fn refused(entry: &str, refusal: Refusal) -> Stop {
    Stop::Refused(entry.to_owned(), refusal)
}

/// What is wrong with the image itself is the archive's fault.
fn unfit(archive: &Path, error: StoreError) -> Stop {
    match error {
        StoreError::Foreign { .. }
        | StoreError::Unfit { .. }
        | StoreError::BadManifest { .. }
        | StoreError::OtherSchema { .. } => Stop::Other(ArchiveError::Unfit {
            path: archive.to_owned(),
            source: error,
        }),
        other => other.into(),
    }
}

/// What a source fails with when the user wants an end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interruption;

/// Whether the archive only ended too early, as far as can be told.
fn is_cut(stop: &Stop, failed: &Failure) -> bool {
    let error = failed.take();
    let is_failed = error.is_some();
    failed.set(error);
    matches!(stop, Stop::Stream(error) if is_failed || error.kind() == io::ErrorKind::UnexpectedEof)
}

/// Whether that is what a source failed with.
pub fn is_interruption(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<Interruption>())
}

/// What reading failed with, if it did: decompressing can fail as well.
type Failure = Cell<Option<io::Error>>;

/// Notes failures to read.
struct Source<'a, R> {
    from: R,
    failed: &'a Failure,
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(bytes);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            kind => {
                self.failed.set(Some(error));
                kind.into()
            }
        })
    }
}
