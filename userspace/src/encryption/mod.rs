//! Images that are encrypted at rest, with age (<https://age-encryption.org/v1>).
//!
//! What is encrypted is the archive of an image, as `archive` writes it; so age(1) and zstd(1) are all
//! that one needs to look into it. To open it, it is read as any archive, into a store in memory,
//! where it is an image as any other until it is closed, or the machine restarts.
//!
//! Invariants: nothing of such an image is written to a disk unencrypted. It is open as a whole, compared
//! with all its digests, or not at all.

mod keys;

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use age::DecryptError;

use self::keys::Refused;
pub use self::keys::{KeyError, Keys, Recipients};
use crate::{
    archive::{self, ArchiveError, Exported, Import, Imported},
    store::{
        Digest, Encrypted, Header, Image, Key, MemoryStore, Store, StoreError, Stored,
        TemporaryStore,
    },
};

/// What an encrypted archive begins with.
const MAGIC: &[u8] = b"age-encryption.org/v1\n";

/// How much is read or written at a time.
const CHUNK: usize = 128 << 10;

/// How long to wait for another that opens the same image: enough for some ten gigabytes.
const LIMIT: Duration = Duration::from_secs(120);
const INTERVAL: Duration = Duration::from_millis(20);

/// Why an image cannot be encrypted or opened.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{what} is encrypted, and no {} was given", .key.opened_by())]
    NoKey { what: String, key: Key },
    #[error("{what} is encrypted by another {} than was given", .key.opened_by())]
    WrongKey { what: String, key: Key },
    #[error("{} is damaged, or cut short", .path.display())]
    Damaged { path: PathBuf },
    #[error("{} cannot be decrypted", .path.display())]
    Undecryptable { path: PathBuf, source: DecryptError },
    #[error("an open image is in memory, where {needed} bytes are needed and {free} are free")]
    NoRoom { needed: u64, free: u64 },
    #[error("another has been opening the image for {} s", LIMIT.as_secs())]
    Busy,
    #[error("{} has another image in it: {found}", .path.display())]
    Other { path: PathBuf, found: Digest },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EncryptionError {
    fn of(refused: Refused, path: &Path, what: &str) -> Self {
        let (path, what) = (path.to_owned(), what.to_owned());
        match refused {
            Refused::NoKey(key) => Self::NoKey { what, key },
            Refused::WrongKey(key) => Self::WrongKey { what, key },
            Refused::Other(DecryptError::Io(error)) if is_damage(&error) => Self::Damaged { path },
            Refused::Other(DecryptError::InvalidHeader | DecryptError::InvalidMac) => {
                Self::Damaged { path }
            }
            Refused::Other(source) => Self::Undecryptable { path, source },
        }
    }
}

/// Puts an image that was made in memory into a store, encrypted, under a name.
///
/// # Errors
/// See [`EncryptionError`]; the store is then as it was.
pub fn encrypt(
    store: &Store,
    image: &Image,
    recipients: &Recipients,
    name: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<(), EncryptionError> {
    let staging = store.stage()?;
    let mut file = Hashed::create(&store.ciphertext_in(&staging))?;
    let failed = file.failed();
    let encryptor = recipients.encryptor()?;
    let buffered = BufWriter::with_capacity(CHUNK, &mut file);
    let mut writer = encryptor.wrap_output(buffered).map_err(&failed)?;
    archive::export(image, &mut writer, progress).map_err(|error| match error {
        ArchiveError::Write(source) => failed(source),
        other => other.into(),
    })?;
    let buffered = writer.finish().map_err(&failed)?;
    buffered
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    let header = file.header(image, recipients.key);
    store.commit_encrypted(staging, &image.digest, &header, Some(name))?;
    Ok(())
}

/// Opens an encrypted image: from now on it can be restored without a key. Nothing is done, and no key
/// read, if it is open already.
///
/// # Errors
/// See [`EncryptionError`]; nothing of the image is in memory then.
pub fn open(
    store: &Store,
    digest: &Digest,
    keys: impl FnOnce() -> Result<Keys, KeyError>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Image, EncryptionError> {
    let encrypted = match store.stored(digest)? {
        Stored::Encrypted(encrypted) if encrypted.opened.is_none() => encrypted,
        opened => return Ok(opened.open()?),
    };
    let keys = keys()?;
    let _held = encrypted.hold()?;
    let memory = store.memory()?;
    let _lock = lock(&memory, digest)?;
    if let Ok(image) = store.load(digest.clone()) {
        return Ok(image);
    }
    let (needed, free) = (encrypted.header.image_bytes, memory.free_bytes()?);
    if needed > free {
        return Err(EncryptionError::NoRoom { needed, free });
    }
    let path = encrypted.ciphertext();
    let file = File::open(&path).map_err(|source| StoreError::Read {
        path: path.clone(),
        source,
    })?;
    let source = BufReader::with_capacity(CHUNK, file);
    let archive = Archive {
        what: &format!("the image {}", encrypted.label()),
        path: &path,
        most_bytes: needed,
    };
    let unpacked = archive.unpack(source, &memory, &keys, progress);
    let unpacked = unpacked.map_err(|error| match error {
        // All of it need not be read for that.
        EncryptionError::NoKey { .. } | EncryptionError::NoRoom { .. } => error,
        // It may be the damage that looks like another key.
        _ if encrypted.damage().is_some() => EncryptionError::Damaged { path: path.clone() },
        _ => error,
    })?;
    if unpacked.image.digest != *digest {
        return Err(EncryptionError::Other {
            path,
            found: unpacked.image.digest,
        });
    }
    memory.take(&unpacked.image)?;
    Ok(store.load(digest.clone())?)
}

/// Makes sure that only one opens an image.
fn lock(memory: &MemoryStore, digest: &Digest) -> Result<File, EncryptionError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match memory.single_flight(digest.as_str())? {
            Some(lock) => return Ok(lock),
            None if Instant::now() > deadline => return Err(EncryptionError::Busy),
            None => thread::sleep(INTERVAL),
        }
    }
}

/// Writes an encrypted image to a stream, as it is; `progress` is told how much has been written.
///
/// # Errors
/// See [`ArchiveError`]; among them that the image is not what was stored.
pub fn export(
    encrypted: &Encrypted,
    mut to: impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<Exported, ArchiveError> {
    let path = encrypted.ciphertext();
    if encrypted.damage().is_some() {
        let image = encrypted.label().to_owned();
        return Err(ArchiveError::Damaged { path, image });
    }
    let read = |source| ArchiveError::Read {
        path: path.clone(),
        source,
    };
    let mut file = File::open(&path).map_err(read)?;
    let (mut buffer, mut written) = (vec![0; CHUNK], 0);
    loop {
        let count = file.read(&mut buffer).map_err(read)?;
        if count == 0 {
            break;
        }
        to.write_all(&buffer[..count])
            .map_err(ArchiveError::Write)?;
        written += count as u64;
        progress(written);
    }
    to.flush().map_err(ArchiveError::Write)?;
    Ok(Exported {
        archive_bytes: written,
        files: 1,
        image_bytes: encrypted.header.image_bytes,
    })
}

/// Whether what follows is an encrypted archive.
///
/// # Errors
/// What reading says.
pub fn is_encrypted(source: &mut impl BufRead) -> io::Result<bool> {
    Ok(source.fill_buf()?.starts_with(MAGIC))
}

/// Stores an encrypted archive as it is. Its image is open then, as all of it had to be read.
///
/// # Errors
/// See [`EncryptionError`]; the store is then as it was.
pub fn import(
    store: &Store,
    (source, path): (impl Read, &Path),
    name: Option<&str>,
    most_bytes: u64,
    keys: &Keys,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Imported, EncryptionError> {
    let staging = store.stage()?;
    let mut copied = Copied {
        from: source,
        to: Hashed::create(&store.ciphertext_in(&staging))?,
        failed: None,
    };
    let memory = store.memory()?;
    let archive = Archive {
        what: &path.display().to_string(),
        path,
        most_bytes: most_bytes.min(memory.free_bytes()?),
    };
    let unpacked = archive.unpack(&mut copied, &memory, keys, progress);
    if let Some(source) = copied.failed.take() {
        return Err(copied.to.failed()(source));
    }
    let Unpacked {
        image,
        key,
        store: _unpacked,
    } = unpacked?;
    let existed = store.holds(&image.digest);
    let name = match (name, image.names.first()) {
        (Some(name), _) => Some(name),
        (None, Some(given)) if !existed => match store.named(given) {
            Some(_) => {
                return Err(ArchiveError::NameTaken {
                    name: given.clone(),
                }
                .into());
            }
            None => Some(given.as_str()),
        },
        (None, _) => None,
    };
    if existed {
        name.map_or(Ok(()), |name| store.name(name, &image.digest))?;
    } else {
        let header = copied.to.header(&image, key);
        store.commit_encrypted(staging, &image.digest, &header, name)?;
    }
    if matches!(store.stored(&image.digest)?, Stored::Encrypted(_)) {
        memory.take(&image)?;
    }
    Ok(Imported {
        image: store.load(image.digest)?,
        existed,
        resumed_bytes: 0,
    })
}

/// The image of an encrypted archive, in a store in memory that ends with this.
struct Unpacked {
    image: Image,
    key: Key,
    store: TemporaryStore,
}

/// An encrypted archive.
struct Archive<'a> {
    /// What it is called in messages.
    what: &'a str,
    path: &'a Path,
    /// The size that its image may have.
    most_bytes: u64,
}

impl Archive<'_> {
    fn unpack(
        &self,
        source: impl Read,
        memory: &MemoryStore,
        keys: &Keys,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Unpacked, EncryptionError> {
        let Self {
            what,
            path,
            most_bytes,
        } = *self;
        let (key, mut source) = keys
            .decrypt(source)
            .map_err(|refused| EncryptionError::of(refused, path, what))?;
        let store = memory.temporary()?;
        let import = Import {
            store: &store,
            path,
            name: None,
            most_bytes,
            resume: false,
            progress,
        };
        let imported = import.run(&mut source);
        let imported = imported.map_err(|error| match error {
            ArchiveError::Read { source, .. } if is_damage(&source) => {
                EncryptionError::Damaged { path: path.into() }
            }
            ArchiveError::CutShort { .. } | ArchiveError::NoArchive { .. } => {
                EncryptionError::Damaged { path: path.into() }
            }
            ArchiveError::Store(StoreError::Write { source, .. })
                if source.kind() == io::ErrorKind::StorageFull =>
            {
                EncryptionError::NoRoom {
                    needed: most_bytes,
                    free: memory.free_bytes().unwrap_or(0),
                }
            }
            other => other.into(),
        })?;
        // What is left is its end, which is to be there as well.
        io::copy(&mut source, &mut io::sink())
            .map_err(|_| EncryptionError::Damaged { path: path.into() })?;
        Ok(Unpacked {
            image: imported.image,
            key,
            store,
        })
    }
}

/// What decrypting says of bytes that are not those that were encrypted.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
    )
}

/// A file of which the digest is known when it is written.
struct Hashed {
    file: File,
    path: PathBuf,
    blake3: blake3::Hasher,
    bytes: u64,
}

impl Hashed {
    fn create(path: &Path) -> Result<Self, EncryptionError> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        Ok(Self {
            file: file.map_err(|source| StoreError::Write {
                path: path.to_owned(),
                source,
            })?,
            path: path.to_owned(),
            blake3: blake3::Hasher::new(),
            bytes: 0,
        })
    }

    fn failed(&self) -> impl Fn(io::Error) -> EncryptionError + use<> {
        let path = self.path.clone();
        move |source| {
            let path = path.clone();
            StoreError::Write { path, source }.into()
        }
    }

    /// The header of the image that was encrypted to this.
    fn header(&self, image: &Image, key: Key) -> Header {
        let blake3 = self.blake3.finalize().to_hex().to_string();
        Header::new(image, key, self.bytes, blake3)
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.blake3.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A source of which all that is read is written to a file as well.
struct Copied<R> {
    from: R,
    to: Hashed,
    /// Tells failures to write from those to read.
    failed: Option<io::Error>,
}

impl<R: Read> Read for Copied<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(bytes)?;
        if let Err(error) = self.to.write_all(&bytes[..count]) {
            let kind = error.kind();
            self.failed = Some(error);
            return Err(kind.into());
        }
        Ok(count)
    }
}
