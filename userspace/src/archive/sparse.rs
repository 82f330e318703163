//! Files with holes in the place of pages of zeros.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

/// What becomes a hole: a block of zeros at a multiple of its size.
const BLOCK: usize = 4096;

/// A file that is written from its beginning to its end.
#[derive(Debug)]
pub struct SparseFile {
    file: File,
    written: u64,
}

impl SparseFile {
    /// # Errors
    /// What open(2) says.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self { file, written: 0 })
    }

    /// Adds bytes; all but the last addition are of whole blocks.
    ///
    /// # Errors
    /// What pwrite(2) says.
    pub fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        for run in bytes
            .chunks(BLOCK)
            .scan(0, |at, block| {
                let start = *at;
                *at += block.len();
                Some((start, block))
            })
            .collect::<Vec<_>>()
            .chunk_by(|(_, a), (_, b)| is_hole(a) == is_hole(b))
        {
            let (Some((start, first)), Some((last, end))) = (run.first(), run.last()) else {
                continue;
            };
            if !is_hole(first) {
                let run = &bytes[*start..last + end.len()];
                self.file.write_all_at(run, self.written + *start as u64)?;
            }
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Returns the file, of which nothing is synced yet.
    ///
    /// # Errors
    /// What ftruncate(2) says.
    pub fn finish(self) -> io::Result<File> {
        self.file.set_len(self.written)?;
        Ok(self.file)
    }
}

fn is_hole(block: &[u8]) -> bool {
    block.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn blocks_of_zeros_take_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut bytes = vec![0; 64 * BLOCK + 100];
        bytes[3 * BLOCK + 5] = 1;
        bytes[10 * BLOCK] = 2;
        bytes[11 * BLOCK - 1] = 3;
        let mut file = SparseFile::create(&path).unwrap();
        for part in bytes.chunks(8 * BLOCK) {
            file.add(part).unwrap();
        }
        file.finish().unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
        assert_eq!(path.metadata().unwrap().blocks() * 512, 2 * BLOCK as u64);
    }
}
