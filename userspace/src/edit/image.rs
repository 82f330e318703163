//! The frame of a CRIU image: magic numbers, then messages with their lengths.
//! See "Images" in CRIU's documentation and `criu/include/magic.h`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::wire::Message;

/// Begins every image of this kind.
pub(super) const COMMON_MAGIC: u32 = 0x5456_4319;
/// Begins statistics.
pub(super) const SERVICE_MAGIC: u32 = 0x5510_5940;

/// The images that are read or edited here, by their own magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Files = 0x5630_3138,
    Fdinfo = 0x5621_3732,
    Core = 0x5505_3847,
    Memfd = 0x4845_3499,
    Mm = 0x5749_2820,
    Pagemap = 0x5608_4025,
    RemapFpath = 0x5913_3954,
    Seccomp = 0x6441_3049,
    Stats = 0x5709_3306,
}

/// Why an image cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    #[error("cannot read the image {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the image {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is not a well-formed CRIU image: {what}", .path.display())]
    Malformed { path: PathBuf, what: &'static str },
    #[error("the server did not come to listen by listen(2)")]
    NotInListen,
}

/// An image as its messages.
pub struct Image {
    path: PathBuf,
    head: Vec<u8>,
    pub entries: Vec<Message>,
}

/// A number in an image.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl Image {
    /// An image to be written.
    #[cfg(test)]
    pub fn new(path: PathBuf, kind: Kind, entries: Vec<Message>) -> Self {
        let magic = [COMMON_MAGIC, kind as u32];
        Self {
            path,
            head: magic.into_iter().flat_map(u32::to_le_bytes).collect(),
            entries,
        }
    }

    /// Reads an image of a kind.
    ///
    /// # Errors
    /// [`EditError::Read`] or [`EditError::Malformed`].
    pub fn read(path: &Path, kind: Kind) -> Result<Self, EditError> {
        let bytes = fs::read(path).map_err(|source| EditError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(path, kind, &bytes).map_err(|what| EditError::Malformed {
            path: path.into(),
            what,
        })
    }

    pub(crate) fn parse(path: &Path, kind: Kind, bytes: &[u8]) -> Result<Self, &'static str> {
        let first = if kind == Kind::Stats {
            SERVICE_MAGIC
        } else {
            COMMON_MAGIC
        };
        if word(bytes, 0) != Some(first) || word(bytes, 4) != Some(kind as u32) {
            return Err("unexpected magic number");
        }
        let mut at = 8;
        let mut entries = Vec::new();
        while at < bytes.len() {
            let len = word(bytes, at).ok_or("a length is cut short")? as usize;
            let body = bytes
                .get(at + 4..at + 4 + len)
                .ok_or("an entry is cut short")?;
            entries.push(Message::parse(body).ok_or("an entry is no message")?);
            at += 4 + len;
        }
        Ok(Self {
            path: path.into(),
            head: bytes[..8].to_vec(),
            entries,
        })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.head.clone();
        for entry in &self.entries {
            let body = entry.to_bytes();
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(body);
        }
        bytes
    }

    /// The same image, to be written to another place.
    pub fn at(mut self, path: PathBuf) -> Self {
        self.path = path;
        self
    }

    /// Writes the image back to where it was read from.
    ///
    /// # Errors
    /// [`EditError::Write`].
    pub fn write(&self) -> Result<(), EditError> {
        self.write_to(&self.path)
    }

    /// Writes the image to another place.
    ///
    /// # Errors
    /// [`EditError::Write`].
    pub fn write_to(&self, path: &Path) -> Result<(), EditError> {
        fs::write(path, self.to_bytes()).map_err(|source| EditError::Write {
            path: path.into(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_written_as_they_were_read() {
        let mut bytes = COMMON_MAGIC.to_le_bytes().to_vec();
        bytes.extend((Kind::Files as u32).to_le_bytes());
        bytes.extend([2, 0, 0, 0, 0x08, 1, 0, 0, 0, 0]);
        let path = Path::new("files.img");
        let image = Image::parse(path, Kind::Files, &bytes).unwrap();
        assert_eq!(image.entries.len(), 2);
        assert_eq!(image.entries[0].number(1), Some(1));
        assert_eq!(image.to_bytes(), bytes);
        assert!(Image::parse(path, Kind::Core, &bytes).is_err());
        assert!(Image::parse(path, Kind::Files, &bytes[..bytes.len() - 1]).is_err());
    }
}
