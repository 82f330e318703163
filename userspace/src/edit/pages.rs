//! What the memory in an image is, page by page.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read as _},
    path::Path,
};

use super::{
    EditError, FILES, file_entry,
    image::{Image, Kind},
    process::{Memory, extent, open, page_size, processes},
    reg_file_entry, vma_entry,
    wire::Message,
};
use crate::tree::NsPid;

/// Tells the content of pages apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Content([u8; 16]);

impl Content {
    pub fn of(page: &[u8]) -> Self {
        let mut first = [0; 16];
        first.copy_from_slice(&blake3::hash(page).as_bytes()[..16]);
        Self(first)
    }
}

/// The memory of a process in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessPages {
    pub pid: NsPid,
    /// In the order of addresses.
    pub mappings: Vec<Mapping>,
}

/// A mapping, or several that follow each other and are alike, with those of its pages that the
/// image holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// The path of a file, or `[stack]`, `[anonymous]` and the like.
    pub what: String,
    /// `PROT_READ` and so on, of mmap(2).
    pub protection: u64,
    /// By their number in the mapping.
    pub pages: BTreeMap<u64, Content>,
}

/// Reads the private memory of all processes of an image.
///
/// # Errors
/// See [`EditError`].
pub fn pages(images: &Path) -> Result<Vec<ProcessPages>, EditError> {
    let names = names(images)?;
    let of_process = |pid: String| {
        let memory = Memory::read(images, &pid)?;
        let mapping = |message: &Message| mapping(message, &names);
        let mut mappings: Vec<_> = memory.mappings().iter().filter_map(mapping).collect();
        mappings.sort_by_key(|mapping| mapping.start);
        // The kernel cuts and joins mappings as it likes.
        mappings.dedup_by(|next, last| {
            let goes_on = last.end == next.start
                && (&last.what, last.protection) == (&next.what, next.protection);
            if goes_on {
                last.end = next.end;
            }
            goes_on
        });
        read(&memory, images, &mut mappings)?;
        Ok(ProcessPages {
            pid: NsPid(pid.parse().unwrap_or_default()),
            mappings,
        })
    };
    processes(images)?.into_iter().map(of_process).collect()
}

fn read(memory: &Memory, images: &Path, mappings: &mut [Mapping]) -> Result<(), EditError> {
    let path = memory.pages_path(images);
    let runs = memory.runs().ok_or_else(|| EditError::Malformed {
        path: path.clone(),
        what: "some of its pages are elsewhere",
    })?;
    let mut file = BufReader::with_capacity(1 << 20, open(&path)?);
    let mut page = vec![0; page_size() as usize];
    for run in runs {
        for address in (run.address..run.end()).step_by(page.len()) {
            let read = BufReader::<File>::read_exact(&mut file, &mut page);
            read.map_err(|source| EditError::Read {
                path: path.clone(),
                source,
            })?;
            let behind = mappings.partition_point(|mapping| mapping.start <= address);
            let within = mappings[..behind].last_mut();
            if let Some(mapping) = within.filter(|mapping| address < mapping.end) {
                let number = (address - mapping.start) / page_size();
                mapping.pages.insert(number, Content::of(&page));
            }
        }
    }
    Ok(())
}

fn mapping(message: &Message, names: &BTreeMap<u64, String>) -> Option<Mapping> {
    let (start, end) = extent(message)?;
    let number = |field| message.number(field).unwrap_or(0);
    let status = number(vma_entry::STATUS);
    let has = |bits: u64| status & bits != 0;
    let what = if has(vma_entry::FILE_PRIVATE | vma_entry::FILE_SHARED) {
        let name = names.get(&number(vma_entry::SHMID));
        name.map_or("[file]", String::as_str)
    } else if has(vma_entry::VDSO | vma_entry::VVAR) {
        "[vdso]"
    } else if number(vma_entry::FLAGS) & libc::MAP_GROWSDOWN as u64 != 0 {
        "[stack]"
    } else if has(vma_entry::ANON_PRIVATE) {
        // The heap as well: a restore that maps it leaves it without its mark.
        "[anonymous]"
    } else {
        "[shared]"
    };
    Some(Mapping {
        start,
        end,
        what: what.to_owned(),
        protection: number(vma_entry::PROT),
        pages: BTreeMap::new(),
    })
}

/// The paths of the regular files, by their numbers.
fn names(images: &Path) -> Result<BTreeMap<u64, String>, EditError> {
    let image = Image::read(&images.join(FILES), Kind::Files)?;
    let name = |entry: &Message| {
        let file = Message::parse(entry.bytes(file_entry::REG)?)?;
        let name = file.bytes(reg_file_entry::NAME)?;
        let name = String::from_utf8_lossy(name).into_owned();
        Some((file.number(reg_file_entry::ID)?, name))
    };
    Ok(image.entries.iter().filter_map(name).collect())
}
