//! Writes an image as an archive.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use serde_json::Value;
use tar::{Builder, EntryType, Header};

use super::{
    ArchiveError, BLOBS, CHUNK, CONFIG_DUMP, FOLDERS, INDEX, MANIFEST, OCI_LAYOUT, SPEC_DUMP,
    Sha256, name_in_archive,
    oci::{self, Blob},
};
use crate::store::{Digest, Image, ImageFile};

/// The level of zstd: what follows takes several times as long for a few percent.
const LEVEL: i32 = 3;

/// What was written.
#[derive(Clone, Copy, Debug)]
pub struct Exported {
    /// The size of the archive.
    pub archive_bytes: u64,
    /// One, if they are encrypted.
    pub files: usize,
    /// The size of the image's files.
    pub image_bytes: u64,
}

/// Writes an image to a stream; `progress` is told how many of its bytes have been read, again and
/// again.
///
/// # Errors
/// See [`ArchiveError`]; among them that the image is not what was stored.
pub fn export(
    image: &Image,
    to: impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<Exported, ArchiveError> {
    image.check()?;
    let path = image.folder().join(MANIFEST);
    let manifest = std::fs::read(&path).map_err(read_error(&path))?;
    if Digest::of(&manifest) != image.digest {
        return Err(damaged(image, &path));
    }
    let mut archive = Writer::new(image, to).map_err(ArchiveError::Write)?;
    let own = archive.begin(&manifest).map_err(ArchiveError::Write)?;
    archive.json(CONFIG_DUMP, &oci::config_dump(image))?;
    archive.json(SPEC_DUMP, &oci::spec_dump(image))?;
    let (mut files, mut done) = (Vec::new(), 0);
    for file in image
        .manifest
        .files
        .iter()
        .filter(|file| file.link.is_none())
    {
        let blob = archive.file(file, &mut |read| progress(done + read))?;
        files.push((name_in_archive(&file.path()), blob));
        done += file.bytes;
    }
    let manifest = oci::manifest(image, &own, &files);
    let bytes = manifest.to_string().into_bytes();
    let manifest = Blob::of(&bytes);
    archive
        .add(&format!("{BLOBS}{}", manifest.sha256), &bytes)
        .map_err(ArchiveError::Write)?;
    archive.json(OCI_LAYOUT, &oci::layout())?;
    archive.json(INDEX, &oci::index(image, &manifest))?;
    Ok(Exported {
        archive_bytes: archive.finish().map_err(ArchiveError::Write)?,
        files: files.len(),
        image_bytes: image.manifest.image_bytes(),
    })
}

struct Writer<'a, W: Write> {
    image: &'a Image,
    tar: Builder<zstd::Encoder<'static, Counted<W>>>,
    /// The digests of the blobs that are there.
    linked: BTreeSet<String>,
}

impl<'a, W: Write> Writer<'a, W> {
    fn new(image: &'a Image, to: W) -> io::Result<Self> {
        let mut zstd = zstd::Encoder::new(Counted { to, bytes: 0 }, LEVEL)?;
        zstd.include_checksum(true)?;
        Ok(Self {
            image,
            tar: Builder::new(zstd),
            linked: BTreeSet::new(),
        })
    }

    fn append(
        &mut self,
        kind: EntryType,
        name: &str,
        bytes: u64,
        link: Option<&str>,
        content: impl Read,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_path(name)?;
        header.set_entry_type(kind);
        header.set_size(bytes);
        header.set_mode(if kind == EntryType::Directory {
            0o700
        } else {
            0o600
        });
        header.set_mtime(oci::modified(&self.image.manifest));
        if let Some(link) = link {
            header.set_link_name(link)?;
        }
        header.set_cksum();
        self.tar.append(&header, content)
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.append(EntryType::Regular, name, bytes.len() as u64, None, bytes)
    }

    fn json(&mut self, name: &str, value: &Value) -> Result<(), ArchiveError> {
        self.add(name, value.to_string().as_bytes())
            .map_err(ArchiveError::Write)
    }

    /// Adds the manifest of the image, and the folders behind it: checkpointctl wants an entry of
    /// `checkpoint`.
    fn begin(&mut self, manifest: &[u8]) -> io::Result<Blob> {
        let blob = Blob::of(manifest);
        self.add(MANIFEST, manifest)?;
        for name in FOLDERS {
            self.append(EntryType::Directory, name, 0, None, io::empty())?;
        }
        self.link(MANIFEST, &blob)?;
        Ok(blob)
    }

    /// Makes a file known as a blob.
    fn link(&mut self, name: &str, blob: &Blob) -> io::Result<()> {
        if !self.linked.insert(blob.sha256.clone()) {
            return Ok(());
        }
        let path = format!("{BLOBS}{}", blob.sha256);
        self.append(EntryType::Link, &path, 0, Some(name), io::empty())
    }

    fn file(
        &mut self,
        file: &ImageFile,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Blob, ArchiveError> {
        let path = self.image.folder().join(&*file.path());
        let name = name_in_archive(&file.path());
        let opened = File::open(&path).map_err(read_error(&path))?;
        let mut content = Content {
            file: opened,
            blake3: blake3::Hasher::new(),
            sha256: Sha256::default(),
            read: 0,
            failed: None,
            progress,
        };
        // What was added behind its end is not read.
        let limited = (&mut content).take(file.bytes);
        let buffered = io::BufReader::with_capacity(CHUNK, limited);
        let appended = self.append(EntryType::Regular, &name, file.bytes, None, buffered);
        if let Some(source) = content.failed.take() {
            return Err(ArchiveError::Read { path, source });
        }
        appended.map_err(ArchiveError::Write)?;
        let is_same = content.blake3.finalize().to_hex().as_str() == file.blake3;
        if content.read != file.bytes || !is_same {
            return Err(damaged(self.image, &path));
        }
        let blob = Blob {
            sha256: content.sha256.finish(),
            bytes: file.bytes,
        };
        self.link(&name, &blob).map_err(ArchiveError::Write)?;
        Ok(blob)
    }

    fn finish(self) -> io::Result<u64> {
        let mut out = self.tar.into_inner()?.finish()?;
        out.flush()?;
        Ok(out.bytes)
    }
}

/// A file of the image that is being read.
struct Content<'a> {
    file: File,
    blake3: blake3::Hasher,
    sha256: Sha256,
    read: u64,
    /// Tells failures to read from those to write.
    failed: Option<io::Error>,
    progress: &'a mut dyn FnMut(u64),
}

impl Read for Content<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = match self.file.read(bytes) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                let kind = error.kind();
                self.failed = Some(error);
                return Err(kind.into());
            }
            other => other?,
        };
        self.blake3.update(&bytes[..count]);
        self.sha256.update(&bytes[..count]);
        self.read += count as u64;
        (self.progress)(self.read);
        Ok(count)
    }
}

/// Counts what is written.
struct Counted<W> {
    to: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn damaged(image: &Image, path: &Path) -> ArchiveError {
    ArchiveError::Damaged {
        path: path.to_owned(),
        image: image.label().to_owned(),
    }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |source| ArchiveError::Read { path, source }
}
